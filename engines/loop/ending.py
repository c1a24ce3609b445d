"""When an answer ends: at an end token, a stop string, the end of its grammar, its length or the KV slot's capacity.

Looks at one sequence; knows no engine, no scheduler and no runner.
"""

from collections.abc import Container
from dataclasses import dataclass

from engines.sequence import FinishReason, SamplingParams, Sequence


@dataclass(slots=True, kw_only=True, frozen=True)
class Outcome:
    """What a new token makes of an answer: the text to show now and, if it ends here, why.

    `shows_token` is False for a token that ends the answer without being part of it.
    """

    text: str
    reason: FinishReason | None = None
    shows_token: bool = True


def take_newest_token(sequence: Sequence, *, eos_token_ids: Container[int], capacity_tokens: int) -> Outcome:
    """Add the sequence's newest token to its text, and decide whether the answer ends. Its matcher has advanced.

    `capacity_tokens` is the longest sequence a KV slot can hold.
    """
    token_id, sampling = sequence.token_ids[-1], sequence.request.sampling
    if is_end_token(token_id, sampling, eos_token_ids):
        shows_text = sampling.shows_stop and token_id in sampling.stop_token_ids
        text = (sequence.text.push(token_id) if shows_text else "") + sequence.text.finish()
        # Where the prompt is scored, the token that ends the text is reported too: see `SequenceEvent`.
        shows_token = shows_text or sampling.prompt_logprobs is not None
        return Outcome(text=text, reason=FinishReason.STOP, shows_token=shows_token)
    text = sequence.text.push(token_id, may_stop=sequence.num_completion_tokens > sampling.min_tokens)
    reason = _reason_to_end(sequence, capacity_tokens)
    return Outcome(text=text if reason is None else text + sequence.text.finish(), reason=reason)


def is_end_token(token_id: int, sampling: SamplingParams, eos_token_ids: Container[int]) -> bool:
    """Whether the token ends the answer by itself, whatever its text."""
    return token_id in sampling.stop_token_ids or (token_id in eos_token_ids and not sampling.ignore_eos)


def ends_with_prompt(sequence: Sequence) -> bool:
    """Whether only the prompt is computed and no token is generated."""
    return sequence.request.sampling.max_tokens == 0


def _reason_to_end(sequence: Sequence, capacity_tokens: int) -> FinishReason | None:
    """Why the answer ends after the token just pushed. A stop string wins over the length: it comes first."""
    if sequence.text.matched is not None:
        return FinishReason.STOP
    if sequence.matcher is not None and sequence.matcher.is_finished:
        return FinishReason.STOP
    if sequence.num_completion_tokens >= sequence.request.sampling.max_tokens or sequence.num_tokens >= capacity_tokens:
        return FinishReason.LENGTH
    return None
