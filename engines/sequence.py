"""What the engine generates for: the request (`GenerationRequest`), its events, and the state of one running sequence.

An HTTP request with `n` choices becomes `n` sequences. Nothing here knows HTTP, tensors or a tokenizer.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum

import numpy as np
import numpy.typing as npt

from engines.answer_score import AnswerScore
from engines.grammar import Grammar, Matcher
from engines.prefix_match import Match
from engines.remote_call import RemoteCall, Sender
from engines.text import TextStream
from engines.token_counts import TokenCounts
from models.errors import ServingError
from models.student.manifest import HeadKind

SPREAD_FROM = 2048
"""Shorter biases are added token by token, ..."""
SPREAD_TO = 32
"""... and so are those whose ids lie so far apart that whole rows would cost more."""


NEWEST_WEIGHT = 0.25
PLAIN_CHOOSING_S = 0.0001
"""Choosing a token may take so long without anybody being told: half of it is a draw without filters."""


def mean_with(mean: float | None, newest: float) -> float:
    """A mean of what was measured, the newest counting most; None: nothing was."""
    return newest if mean is None else mean + NEWEST_WEIGHT * (newest - mean)


class SequenceStatus(Enum):
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class WhileLoading(StrEnum):
    """What to do when the path's modules are not loaded yet."""

    WAIT = "wait"
    DEGRADE = "degrade"


@dataclass(slots=True, kw_only=True, frozen=True)
class SamplingParams:
    """How the next token is chosen. `temperature` 0 is greedy; `seed` None draws a fresh one.

    `logprobs` is the number of alternatives to report beside the chosen token (0: the chosen one alone, None: nothing).
    `prompt_logprobs` asks the same for the prompt's own tokens. `max_tokens` 0 computes the prompt and ends there.
    Before `min_tokens` no end token is chosen and no stop string counts. With `ignore_eos` the student's end tokens do
    not end the answer. With `shows_stop` the text has the stop string, or the stop token's text, that ended it.
    With a `grammar` the text follows it, and ends where it ends, also before `min_tokens`; an engine that cannot do
    that refuses the sequence.
    A `logit_bias` that may be long is a `LogitBias`.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    shows_stop: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(slots=True, kw_only=True, frozen=True)
class GenerationRequest:
    """One sequence to generate. `id` is unique among living sequences; `path` names a path of the student.

    Only requests with the same `cache_salt` share cached prefixes: otherwise the time that a prompt takes would reveal
    what others have asked. They are one tenant's, and tenants share steps fairly.
    With `needs_exact_head` tokens are chosen by the exact head, whichever the engine uses otherwise.
    With `scored_from` the prompt's tokens from this one on are an answer, drawn with this `sampling`, that the path
    scores (`engines/answer_scoring.py`); `sampling.max_tokens` is 0 then.
    No sequence is paused for one of a lower `priority`.
    What is `in_background` gives way to all other sequences, and is no part of any count but `background`.
    `queued_s` is when it began to wait, on the `time.monotonic` clock; None: when it is submitted.
    For a remote student `remote` is what its upstream is asked, all choices together, and `sender` who asks it; the
    prompt has no token ids then, and of `sampling` the upstream knows only what the call says.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    path: str
    sampling: SamplingParams
    while_loading: WhileLoading = WhileLoading.WAIT
    cache_salt: str = ""
    queued_s: float | None = None
    needs_exact_head: bool = False
    remote: RemoteCall | None = None
    sender: Sender | None = None
    scored_from: int | None = None
    in_background: bool = False
    priority: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """An estimate for a remote student."""
        return len(self.prompt_token_ids) if self.remote is None else self.remote.num_prompt_tokens

    def head_on(self, used: HeadKind) -> HeadKind:
        """The head that chooses its tokens in an engine that uses `used` where none is demanded.

        A prompt is scored by the exact head, and what is scored is answered by that head too.
        """
        is_scored = self.sampling.prompt_logprobs is not None or self.scored_from is not None
        return "exact" if self.needs_exact_head or is_scored else used


@dataclass(slots=True, kw_only=True, frozen=True)
class TokenLogprob:
    """Natural-log probability of a token under the raw distribution (before temperature, penalties and filters)."""

    token_id: int
    logprob: float
    token_bytes: bytes
    alternatives: tuple["TokenLogprob", ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class Usage:
    """`num_exact_rows` counts the answer tokens for which the exact head ran beside the cheap one that chooses."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    num_exact_rows: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class Timings:
    """Seconds on the `time.monotonic` clock; None where the sequence never got that far.

    `choosing_s` is how long it took to choose its tokens, beyond `PLAIN_CHOOSING_S` for each, and with the passes of
    the exact head that only this took.
    """

    queued_s: float
    admitted_s: float | None
    first_token_s: float | None
    finished_s: float
    choosing_s: float = 0.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Finish:
    """The one terminal event of a sequence. `error` is set exactly when `reason` is ERROR.

    `path` is the path that really ran; `stop` is the stop string that matched, if one did; `end_token_id` is the token
    that ended the answer without being part of it.
    """

    reason: FinishReason
    path: str
    usage: Usage
    timings: Timings
    stop: str | None = None
    error: ServingError | None = None
    end_token_id: int | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class SequenceEvent:
    """What one step produced for one sequence: text that may be shown, its tokens, and perhaps the end.

    `text` never ends inside a UTF-8 character or a possible stop string; `token_ids` may therefore run ahead of it.
    Where `prompt_logprobs` were asked for, those of the prompt's tokens from the second on come in `logprobs` before
    all others, and a token that ends the text has its own there too: the scoring of prompts relies on it.
    `score` comes once, for a prompt with `scored_from`, when all of it is scored.
    The text of a remote student is JSON, one line per chunk of its upstream; `num_chunks` counts them.
    """

    sequence_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    num_chunks: int = 0
    score: AnswerScore | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class SequenceState:
    """How far a living sequence has got, for finding one that is stuck. `slot` is None while it waits."""

    id: str
    status: SequenceStatus
    path: str
    head: HeadKind
    slot: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int
    num_completion_tokens: int
    max_completion_tokens: int
    age_s: float


class LogitBias(dict[int, float]):
    """A `logit_bias` with its arrays, made where the request is read: all choices and all steps need them, and for the
    whole vocabulary they take milliseconds, which the engine's thread must not spend."""

    def __init__(self, given: Mapping[int, float]) -> None:
        super().__init__(given)
        self.arrays = Bias.of(given)


@dataclass(slots=True, frozen=True)
class Spread:
    """A long bias by token id: adding it to a whole row, and asking which tokens have one, is ten times as fast."""

    values: npt.NDArray[np.float32]
    is_biased: npt.NDArray[np.bool_]


@dataclass(slots=True, frozen=True)
class Bias:
    """A request's `logit_bias` as arrays: it may name the whole vocabulary, and every step needs it. `spread` is None
    for a short one."""

    tokens: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    spread: Spread | None = None

    @classmethod
    def of(cls, logit_bias: Mapping[int, float]) -> "Bias":
        num = len(logit_bias)
        tokens = np.fromiter(logit_bias.keys(), np.int64, num)
        values = np.fromiter(logit_bias.values(), np.float32, num)
        if num < SPREAD_FROM or tokens.min() < 0 or tokens.max() > SPREAD_TO * num:
            return cls(tokens, values)
        end = int(tokens.max()) + 1
        spread = Spread(np.zeros(end, np.float32), np.zeros(end, np.bool_))
        spread.values[tokens], spread.is_biased[tokens] = values, True
        return cls(tokens, values, spread)

    @property
    def ends(self) -> tuple[int, ...]:
        """The smallest and the largest token id; nothing where there is no bias."""
        return (int(self.tokens.min()), int(self.tokens.max())) if len(self.tokens) else ()

    def add_to(self, row: npt.NDArray[np.float32]) -> None:
        if self.spread is None:
            row[self.tokens] += self.values
        else:
            row[: len(self.spread.values)] += self.spread.values


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A request inside the engine. Owned by the engine thread alone.

    `num_computed_tokens` counts tokens whose KV is written; everything else about progress derives from it. `text` and
    `matcher` have processed the tokens of the answer and are kept when the sequence is preempted and its KV computed
    again; so are `prompt_logprobs`, which begin with the prompt's second token, and `score`. `match` is the cached
    prefix that the sequence began with. `head` chooses its tokens, from the first to the last. `choosing_s` is how long
    it lately took to choose one of them, `extra_choosing_s` is `Timings.choosing_s`, `waits_from`
    its place in the order of turns (`engines/scheduling/turns.py`), if it has one. `paused_at` is how many tokens it
    had when it was last paused for another tenant. `made_bias`, `whole` and `answer` are what `bias`,
    `count_tokens` and `count_answer` gave last.
    """

    request: GenerationRequest
    path: str
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int
    text: TextStream
    head: HeadKind = "exact"
    num_exact_rows: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    slot: int | None = None
    match: Match = field(default_factory=Match)
    matcher: Matcher | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    score: AnswerScore = field(default_factory=AnswerScore)
    queued_s: float = field(default_factory=time.monotonic)
    admitted_s: float | None = None
    first_token_s: float | None = None
    choosing_s: float | None = None
    extra_choosing_s: float = 0.0
    waits_from: int | None = None
    paused_at: int | None = None
    made_bias: Bias | None = field(default=None, init=False)
    whole: TokenCounts | None = field(default=None, init=False)
    answer: TokenCounts | None = field(default=None, init=False)

    @property
    def bias(self) -> Bias:
        if self.made_bias is None:
            given = self.request.sampling.logit_bias
            self.made_bias = given.arrays if isinstance(given, LogitBias) else Bias.of(given)
        return self.made_bias

    def note_choosing(self, seconds: float, exact_s: float = 0.0) -> None:
        """Choosing a token took so long, and beside that its part of a pass of the exact head: which costs the same for
        one row or for many, so that rows need no turns for it."""
        self.choosing_s = mean_with(self.choosing_s, seconds)
        self.extra_choosing_s += max(0.0, seconds - PLAIN_CHOOSING_S) + exact_s

    def count_tokens(self) -> TokenCounts:
        """Those of prompt and answer."""
        if self.whole is None:
            self.whole = TokenCounts(0)
        self.whole.follow(self.token_ids)
        return self.whole

    def count_answer(self) -> TokenCounts:
        if self.answer is None:
            self.answer = TokenCounts(self.num_prompt_tokens)
        self.answer.follow(self.token_ids)
        return self.answer

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def tenant(self) -> str:
        return self.request.cache_salt

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def in_background(self) -> bool:
        return self.request.in_background

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_unscored_tokens(self) -> int:
        """Prompt tokens whose log-probability is wanted and not known yet; the first token has none."""
        if self.request.sampling.prompt_logprobs is None and self.request.scored_from is None:
            return 0
        return self.num_prompt_tokens - 1 - self.next_scored_position

    @property
    def next_scored_position(self) -> int:
        """The position whose logits give the next log-probability that is wanted: that of the token after it."""
        if self.request.scored_from is not None:
            return self.request.scored_from - 1 + self.score.num_tokens
        return len(self.prompt_logprobs)

    def state(self) -> SequenceState:
        return SequenceState(
            id=self.id,
            status=self.status,
            path=self.path,
            head=self.head,
            slot=self.slot,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_computed_tokens=self.num_computed_tokens,
            num_completion_tokens=self.num_completion_tokens,
            max_completion_tokens=self.request.sampling.max_tokens,
            age_s=time.monotonic() - self.queued_s,
        )

    def usage(self) -> Usage:
        return Usage(
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_completion_tokens=self.num_completion_tokens,
            num_exact_rows=self.num_exact_rows,
        )

    def timings(self) -> Timings:
        return Timings(
            queued_s=self.queued_s,
            admitted_s=self.admitted_s,
            first_token_s=self.first_token_s,
            finished_s=time.monotonic(),
            choosing_s=self.extra_choosing_s,
        )


def new_sequence(
    request: GenerationRequest, token_bytes: Callable[[int], bytes], used_head: HeadKind = "exact"
) -> Sequence:
    """A waiting sequence; without a seed it gets one of its own. `token_bytes` are the bytes a token stands for,
    `used_head` is the engine's where none is demanded."""
    seed = request.sampling.seed
    grammar = request.sampling.grammar
    return Sequence(
        request=request,
        path=request.path,
        head=request.head_on(used_head),
        seed=secrets.randbits(63) if seed is None else seed,
        token_ids=list(request.prompt_token_ids),
        num_prompt_tokens=len(request.prompt_token_ids),
        text=TextStream(token_bytes, request.sampling.stop, shows_stop=request.sampling.shows_stop),
        queued_s=time.monotonic() if request.queued_s is None else request.queued_s,
        matcher=None if grammar is None else grammar.matcher(),
    )
