"""Refuses at once what vLLM could not finish as the contract says, and decides by which head a sequence is answered."""

from engines.sequence import GenerationRequest, LogitBias, SamplingParams
from models.errors import ContextTooLong, InvalidParameter, UnknownModel, UnsupportedField
from models.student.manifest import HeadKind, Manifest

LEAST_TEMPERATURE = 0.01
"""vLLM raises lower ones to this, so that they would not mean what they say."""


def check_request(request: GenerationRequest, manifest: Manifest, capacity_tokens: int) -> None:
    """Raises: UnknownModel, InvalidParameter, UnsupportedField, ContextTooLong."""
    if all(request.path != path.name for path in manifest.paths):
        raise UnknownModel(f"student {manifest.name!r} has no path {request.path!r}")
    if not request.prompt_token_ids:
        raise InvalidParameter("the prompt is empty")
    _check_sampling(request.sampling)
    _check_vocabulary(request, manifest.architecture.vocab_size)
    num_new = max(request.sampling.max_tokens, 1)  # vLLM generates at least one
    if len(request.prompt_token_ids) + num_new > capacity_tokens:
        raise ContextTooLong(
            f"{len(request.prompt_token_ids)} prompt tokens and {num_new} new ones exceed the context of "
            f"{capacity_tokens} tokens"
        )


def _check_sampling(sampling: SamplingParams) -> None:
    if 0.0 < sampling.temperature < LEAST_TEMPERATURE:
        raise UnsupportedField(
            f"temperature {sampling.temperature:g} is below what vLLM takes: 0, or {LEAST_TEMPERATURE:g} and more",
            param="temperature",
        )


def _check_vocabulary(request: GenerationRequest, vocab_size: int) -> None:
    sampling = request.sampling
    bias = sampling.logit_bias
    biased = bias.arrays.ends if isinstance(bias, LogitBias) else tuple(bias)
    for tokens in (request.prompt_token_ids, biased, sampling.stop_token_ids):
        if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
            raise InvalidParameter(f"token ids must lie between 0 and {vocab_size - 1}, the student's vocabulary")
    if sampling.grammar is not None and sampling.grammar.vocab_size != vocab_size:
        raise InvalidParameter("the grammar was compiled for another student's vocabulary")


def head_of(request: GenerationRequest, used: HeadKind) -> HeadKind:
    """The head that chooses its tokens. What a request asks about and a preview only guesses (tokens with a bias or a
    penalty, what a grammar leaves) is the exact head's from the first token on."""
    sampling = request.sampling
    asks = (
        bool(sampling.logit_bias)
        or sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
        or sampling.grammar is not None
    )
    return "exact" if asks else request.head_on(used)
