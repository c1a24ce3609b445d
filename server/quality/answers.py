"""A finished answer that is to be scored: what it must be like, and how its tokens are collected."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from engines.sequence import Finish, FinishReason, GenerationRequest, SamplingParams, SequenceEvent
from router.quality.config import OnlineQualityConfig
from router.quality.live import PathUse

Done = Callable[[tuple[int, ...], Finish], None]


@dataclass(slots=True, kw_only=True, frozen=True)
class Answer:
    """`token_ids` are the first ones of the answer, its end token among them. `request_id` names its request in the
    log; `is_shadow`: nobody asked for it."""

    request_id: str
    use: PathUse
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    at_s: float
    is_shadow: bool = False

    def scoring(self, id: str, full_path: str) -> GenerationRequest:
        """The pass of the full path that scores it."""
        return GenerationRequest(
            id=id,
            prompt_token_ids=(*self.prompt_token_ids, *self.token_ids),
            path=full_path,
            sampling=dataclasses.replace(plain_sampling(self.sampling), max_tokens=0),
            scored_from=len(self.prompt_token_ids),
            in_background=True,
        )


def plain_sampling(sampling: SamplingParams) -> SamplingParams:
    """What matters of the sampling of an answer that may be scored."""
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
    )


def why_left_out(request: GenerationRequest, config: OnlineQualityConfig) -> str | None:
    """Why no answer to a request can be scored, in a word; None where one can.

    Forced tokens say nothing about a path, and with a bias or penalties other tokens are right than those that the full
    path finds likely.
    """
    sampling = request.sampling
    if request.num_prompt_tokens > config.max_prompt_tokens:
        return "long_prompt"
    if sampling.max_tokens < config.min_answer_tokens:
        return "short"
    if sampling.grammar is not None:
        return "grammar"
    has_penalty = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
    is_bent = sampling.logit_bias or has_penalty or sampling.min_tokens or sampling.ignore_eos
    return "sampling" if is_bent else None


@dataclass(slots=True, kw_only=True)
class Collector:
    """Collects the tokens of a request's first choice, and hands them on when it has ended by itself."""

    max_tokens: int
    done: Done
    _token_ids: list[int] = field(default_factory=list)

    def __call__(self, index: int, event: SequenceEvent) -> None:
        if index:
            return
        if len(self._token_ids) < self.max_tokens:
            self._token_ids += event.token_ids
        if event.finish is not None:
            self.done(answer_tokens(self._token_ids, event.finish, self.max_tokens), event.finish)


def answer_tokens(token_ids: list[int], finish: Finish, max_tokens: int) -> tuple[int, ...]:
    """The first tokens of an answer, with the one that ended it: a path chose that one, too."""
    end = () if finish.end_token_id is None else (finish.end_token_id,)
    return (*token_ids, *end)[:max_tokens]


def has_ended(finish: Finish) -> bool:
    """Whether an answer is whole: no error cut it short, and nobody left."""
    return finish.reason in (FinishReason.STOP, FinishReason.LENGTH)
