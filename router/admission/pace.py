"""How fast an engine has been lately: tokens a second while work was queueing, how long each tenant's answers were, and
the least time that an answer takes.

Pure: times come from the caller. What is not known yet refuses no request.
"""

import math

from engines.sequence import Finish, FinishReason, GenerationRequest, SamplingParams
from models.student.manifest import HeadKind
from router.admission.answer_lengths import AnswerKey, AnswerLengths
from router.admission.least_time import Need, PathTimes

HALF_LIFE_S = 10.0
"""In the drain rate, a second that is this long ago counts half."""
MIN_MEASURED_S = 0.5
FORGET_S = 60.0
"""How long the drain rate is used after it was last measured: where it refuses what would queue, nothing queues and it
is not measured."""


class DrainRate:
    """Tokens per second over the time that was reported; recent seconds count more."""

    def __init__(self) -> None:
        self._seen_s = 0.0
        self._begin()

    def _begin(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._measured_s = 0.0

    def add(self, num_tokens: int, seconds: float, now_s: float) -> None:
        """Report the tokens of the last `seconds`."""
        if now_s - seconds - self._seen_s > FORGET_S:
            self._begin()
        kept = 0.5 ** (seconds / HALF_LIFE_S)
        # Both sums decay alike, and a long interval decays within itself.
        weight = (1.0 - kept) * HALF_LIFE_S / math.log(2) / seconds if seconds > 0 else 1.0
        self._tokens = self._tokens * kept + num_tokens * weight
        self._seconds = self._seconds * kept + seconds * weight
        self._measured_s += seconds
        if seconds > 0:
            self._seen_s = now_s

    @property
    def tokens_per_s(self) -> float | None:
        """The last rate, however long ago."""
        if self._measured_s < MIN_MEASURED_S or self._tokens <= 0.0:
            return None
        return self._tokens / self._seconds

    def lately(self, now_s: float) -> float | None:
        """The rate, if it is fresh enough to be used."""
        return None if now_s - self._seen_s > FORGET_S else self.tokens_per_s


class Pace:
    """The pace of one engine. The admission feeds `drain`, because it knows when work is queueing, and says how many
    sequences run; the rest comes from every sequence that ends."""

    def __init__(self) -> None:
        self.drain = DrainRate()
        self._answers = AnswerLengths()
        self._times: dict[tuple[str, HeadKind], PathTimes] = {}
        self._num_running = 0
        self._crowded_s = -math.inf

    def count_running(self, num_sequences: int, now_s: float) -> None:
        """From now on this many sequences run."""
        if max(num_sequences, self._num_running) > 1:
            self._crowded_s = now_s
        self._num_running = num_sequences

    def observe_gap(self, seconds: float) -> None:
        """Ignored: the event bridge reports gaps to all its observers, but they play no part here."""

    def observe_finish(self, request: GenerationRequest, finish: Finish) -> None:
        if finish.reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        key = (request.cache_salt, request.path)
        self._answers.add(key, finish.usage.num_completion_tokens, finish.timings.finished_s)
        if finish.path == request.path:
            times = self._times.setdefault((request.path, request.head_on("cheap")), PathTimes())
            is_pure = self._ran_alone(finish) and _is_plain(request.sampling)
            times.learn(finish.usage, finish.timings, is_pure=is_pure)

    def _ran_alone(self, finish: Finish) -> bool:
        """Beside others, the same sequence takes many times as long."""
        admitted_s = finish.timings.admitted_s
        return self._num_running == 1 and admitted_s is not None and admitted_s >= self._crowded_s

    def expected_answer(self, key: AnswerKey, max_tokens: float, now_s: float) -> float:
        """How long an answer of at most `max_tokens` will probably be."""
        return min(max_tokens, self._answers.expected(key, now_s))

    def least_s(self, need: Need, now_s: float) -> float:
        """The least time a sequence takes once it runs, even alone; 0 where nothing is known."""
        times = self._times.get((need.path, need.head))
        return 0.0 if times is None else times.least_s(need, now_s)


def _is_plain(sampling: SamplingParams) -> bool:
    """Whether its tokens take no longer to choose than others: that must not be taken for the engine's pace."""
    wants_scores = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    has_penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1, 0, 0)
    return not (wants_scores or has_penalties or sampling.logit_bias or sampling.grammar is not None)
