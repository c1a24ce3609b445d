"""From the sampling fields of a request to `SamplingParams`: defaults, and rules that span fields.

Source: vLLM, `ChatCompletionRequest.to_sampling_params`: a field that a request leaves out, or sends as null, has the
model's own default, whatever the other fields are.
"""

from typing import TypeVar

from engines.sequence import LogitBias, SamplingParams, WhileLoading
from models.errors import InvalidParameter
from models.sampling import RecommendedSampling
from server.context import Context
from server.students.student import ServedStudent
from server.wire.base import SamplingBody, StreamOptions

T = TypeVar("T", int, float)

_SEED_RANGE = 2**63
MAX_KEY_DIGITS = 10
BIASES_AT_ONCE = 1024


def sampling_params(
    body: SamplingBody,
    recommended: RecommendedSampling,
    *,
    max_tokens: int,
    logprobs: int | None,
    vocab_size: int,
) -> SamplingParams:
    """`recommended` has the values of fields that the body leaves out. Raises: InvalidParameter."""
    top_k = _first(body.top_k, recommended.top_k, 0)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(body.min_tokens or 0, max_tokens),
        temperature=_first(body.temperature, recommended.temperature, 1.0),
        top_p=_first(body.top_p, recommended.top_p, 1.0),
        top_k=top_k if top_k > 0 else None,
        min_p=_first(body.min_p, recommended.min_p, 0.0),
        repetition_penalty=_first(body.repetition_penalty, recommended.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body.logit_bias or {}, vocab_size),
        seed=None if body.seed is None else body.seed % _SEED_RANGE,
        stop=_stop(body.stop),
        stop_token_ids=_stop_token_ids(body.stop_token_ids or [], vocab_size),
        ignore_eos=bool(body.ignore_eos),
        shows_stop=bool(body.include_stop_str_in_output),
        logprobs=logprobs,
    )


def check_least_tokens(body: SamplingBody, max_tokens: int | None) -> None:
    """`max_tokens` is what the request asks for at most. Raises: InvalidParameter when that is less than it asks for at
    least."""
    if body.min_tokens is not None and max_tokens is not None and body.min_tokens > max_tokens:
        raise InvalidParameter(
            f"`min_tokens` {body.min_tokens} is more than the {max_tokens} tokens that the answer may have",
            param="min_tokens",
        )


def recommended_for(context: Context, student: ServedStudent) -> RecommendedSampling:
    """What is used where a request to this student gives no value; empty where the settings turn that off."""
    recommended = student.manifest.sampling if context.config.recommended_sampling else None
    return recommended or RecommendedSampling()


def _first(given: T | None, recommended: T | None, default: T) -> T:
    if given is not None:
        return given
    return default if recommended is None else recommended


def seed_of_choice(seed: int | None, index: int) -> int | None:
    """Give each choice a seed of its own: with the same one, all choices would be the same text."""
    return None if seed is None else (seed + index) % _SEED_RANGE


def while_loading(body: SamplingBody) -> WhileLoading:
    return WhileLoading((body.fenhe and body.fenhe.while_loading) or WhileLoading.WAIT)


def stream_options(body: SamplingBody) -> StreamOptions:
    """Raises: InvalidParameter without `stream`."""
    options = body.stream_options
    if options is None:
        return StreamOptions()
    if not body.stream:
        raise InvalidParameter("`stream_options` is allowed only with `stream: true`", param="stream_options")
    return options


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _stop_token_ids(ids: list[int], vocab_size: int) -> frozenset[int]:
    for id in ids:
        if id >= vocab_size:
            raise InvalidParameter(
                f"`stop_token_ids`: {id} is no token id of this student (0 to {vocab_size - 1})", param="stop_token_ids"
            )
    return frozenset(ids)


def _logit_bias(biases: dict[str, float], vocab_size: int) -> LogitBias:
    """In pieces, for it may have the whole vocabulary: the interpreter is free between two of them."""
    keys, values, read = list(biases), list(biases.values()), dict[int, float]()
    for start in range(0, len(keys), BIASES_AT_ONCE):
        piece = slice(start, start + BIASES_AT_ONCE)
        ids = _token_ids(keys[piece], vocab_size)
        if ids is None:
            key = next(key for key in keys[piece] if _token_ids([key], vocab_size) is None)
            raise InvalidParameter(
                f"`logit_bias`: {key[:40]!r} is no token id of this student (0 to {vocab_size - 1})",
                param="logit_bias",
            )
        read.update(zip(ids, values[piece], strict=True))
    return LogitBias(read)


def _token_ids(keys: list[str], vocab_size: int) -> list[int] | None:
    """None where one of them is none."""
    digits = "".join(keys)
    if not (digits.isascii() and digits.isdigit() and all(keys) and max(map(len, keys)) <= MAX_KEY_DIGITS):
        return None
    ids = list(map(int, keys))
    return ids if max(ids) < vocab_size else None
