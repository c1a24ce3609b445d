"""Refuses at once the requests that an engine could never finish."""

from engines.scheduling.kv_budget import KvBudget
from engines.sequence import GenerationRequest, LogitBias
from models.errors import ContextTooLong, InvalidParameter, UnknownModel
from models.student.manifest import Manifest


def check_request(request: GenerationRequest, manifest: Manifest, kv: KvBudget, capacity_tokens: int) -> None:
    """Check that the engine can finish a request. `capacity_tokens` is the longest sequence a KV slot can hold.

    Raises: UnknownModel, InvalidParameter, ContextTooLong.
    """
    if all(request.path != path.name for path in manifest.paths):
        raise UnknownModel(f"student {manifest.name!r} has no path {request.path!r}")
    if not request.prompt_token_ids:
        raise InvalidParameter("the prompt is empty")
    _check_vocabulary(request, manifest.architecture.vocab_size)
    num_tokens = len(request.prompt_token_ids) + request.sampling.max_tokens
    if num_tokens > capacity_tokens:
        raise ContextTooLong(
            f"{len(request.prompt_token_ids)} prompt tokens and {request.sampling.max_tokens} new ones exceed "
            f"the context of {capacity_tokens} tokens"
        )
    if kv.needed_bytes(request.path, num_tokens) > kv.capacity_bytes:
        raise ContextTooLong(
            f"{num_tokens} tokens need {kv.needed_bytes(request.path, num_tokens)} bytes of KV, "
            f"kv_bytes allows {kv.capacity_bytes}; raise kv_bytes"
        )


def _check_vocabulary(request: GenerationRequest, vocab_size: int) -> None:
    sampling = request.sampling
    bias = sampling.logit_bias
    biased = bias.arrays.ends if isinstance(bias, LogitBias) else tuple(bias)
    for tokens in (request.prompt_token_ids, biased, sampling.stop_token_ids):  # the first two may be long
        if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
            raise InvalidParameter(f"token ids must lie between 0 and {vocab_size - 1}, the student's vocabulary")
    grammar = sampling.grammar
    if grammar is not None and grammar.vocab_size != vocab_size:
        raise InvalidParameter("the grammar was compiled for another student's vocabulary")
