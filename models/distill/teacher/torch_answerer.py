"""The teacher's answers from plain torch, one prompt at a time: for small runs without an engine."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.errors import ConfigError
from models.reference import KvCache, ReferenceDecoder
from models.sources.source import ModelSource


class TorchAnswerer:
    """An `Answerer`. An answer depends on its prompt and the seed, not on the other prompts."""

    def __init__(self, source: ModelSource) -> None:
        """Raises: WeightsError for an incomplete model."""
        self._decoder = ReferenceDecoder(source)
        self._end_ids = source.tokenizer().eos_token_ids

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """See `Answerer`. Raises: ConfigError for a prompt that with its answer exceeds the teacher's context."""
        limit = self._decoder.architecture.max_context_tokens - max_tokens
        if (longest := max(map(len, prompts), default=0)) > limit:
            raise ConfigError(
                f"a prompt of {longest} tokens and an answer of {max_tokens} do not fit the teacher's context of "
                f"{limit + max_tokens}; set max_prompt_tokens to at most {limit}"
            )
        for index, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(_seed_of(prompt, seed))
            yield index, self._continue(prompt, max_tokens, temperature, top_p, generator)

    def _continue(
        self, prompt: tuple[int, ...], max_tokens: int, temperature: float, top_p: float, generator: torch.Generator
    ) -> tuple[int, ...]:
        cache, new, answer = KvCache(), prompt, list[int]()
        while len(answer) < max_tokens and not (answer and answer[-1] in self._end_ids):
            hidden_TH = self._decoder.layers(self._decoder.embed(new), 0, self._decoder.architecture.num_layers, cache)
            logits_V = self._decoder.logits(hidden_TH[-1:])[0]
            new = (sample(logits_V, temperature, top_p, generator),)
            answer += new
        return tuple(answer)


def sample(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token: the likeliest at temperature 0, else drawn from the fewest that together reach `top_p`.

    Shapes: logits [V].
    """
    if temperature == 0.0:
        return int(logits_V.argmax())
    likely_V, ids_V = (logits_V / temperature).softmax(dim=-1).sort(descending=True, stable=True)
    before_V = likely_V.cumsum(dim=-1) - likely_V
    kept_V = likely_V.masked_fill(before_V >= top_p, 0.0)
    return int(ids_V[torch.multinomial(kept_V, 1, generator=generator)])


def _seed_of(prompt: tuple[int, ...], seed: int) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, prompt)).encode()).digest()[:8], "big") >> 1
