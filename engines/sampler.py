"""From logits to tokens, one row at a time where a row wants more than the largest logit.

Every draw depends on the row's seed and position alone, so the same seed gives the same text whatever else runs.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.grammar import Masks, Tokens
from engines.sequence import SamplingParams, Sequence, TokenLogprob

Row = npt.NDArray[np.float32]

SPAN = 16.0
"""First guess, in nats below the largest, at which tokens can matter to top-p and top-k."""
LARGEST_LOGIT = np.float32(1e30)
BLOCK = 128
"""Tokens per block of the two-level search in the cumulated distribution."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Sampled:
    token_id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """`token_bytes` gives the bytes a token stands for, for logprobs."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._masks = Masks()

    def sample(self, logits: npt.NDArray[np.float32], sequences: list[Sequence]) -> list[Sampled]:
        """The next token of every sequence.

        Shapes: logits [len(sequences), vocab].
        Raises: FloatingPointError for logits that are not finite: a broken model must not answer rubbish.
        """
        greedy = logits.argmax(axis=1)
        if not np.isfinite(logits[np.arange(len(greedy)), greedy]).all():
            raise FloatingPointError("the model's logits are not finite")
        legal = self._legal_tokens(greedy, sequences)
        return [
            Sampled(token_id=int(best))
            if _is_plain(sequence) and index not in legal
            else self._sample_row(row, sequence, legal.get(index))
            for index, (row, best, sequence) in enumerate(zip(logits, greedy, sequences, strict=True))
        ]

    def _legal_tokens(self, greedy: npt.NDArray[np.intp], sequences: list[Sequence]) -> dict[int, Tokens]:
        """What the grammars of sequences allow, by row.

        Not there: rows without a grammar, and those whose token is the largest logit anyway and legal.
        """
        bound = {
            index: sequence.matcher
            for index, sequence in enumerate(sequences)
            if sequence.matcher is not None
            and not (_is_plain(sequence) and sequence.matcher.allows(int(greedy[index])))
        }
        return dict(zip(bound, self._masks.legal_tokens(list(bound.values())), strict=True)) if bound else {}

    def _sample_row(self, row: Row, sequence: Sequence, legal: Tokens | None) -> Sampled:
        """`legal` None allows every token; of an empty one any token is taken, which the grammar then refuses."""
        params = sequence.request.sampling
        adjusted = adjust(row, sequence)
        if legal is not None and len(legal):
            token_id = int(legal[_choose(adjusted[legal], sequence)])
        else:
            token_id = _choose(adjusted, sequence)
        if params.logprobs is None:
            return Sampled(token_id=token_id)
        return Sampled(token_id=token_id, logprob=self._logprob(row, token_id, params.logprobs))

    def _logprob(self, row: Row, token_id: int, num_alternatives: int) -> TokenLogprob:
        """Under the raw distribution, before penalties and temperature."""
        raw = row.astype(np.float64)
        log_total = raw.max() + np.log(np.exp(raw - raw.max()).sum())
        best = np.argpartition(-raw, num_alternatives)[:num_alternatives] if num_alternatives else np.array([], int)
        ranked = sorted(best.tolist(), key=lambda index: (-raw[index], index))
        return TokenLogprob(
            token_id=token_id,
            logprob=float(raw[token_id] - log_total),
            token_bytes=self._token_bytes(token_id),
            alternatives=tuple(
                TokenLogprob(
                    token_id=index, logprob=float(raw[index] - log_total), token_bytes=self._token_bytes(index)
                )
                for index in ranked
            ),
        )


def _choose(adjusted: Row, sequence: Sequence) -> int:
    params = sequence.request.sampling
    if params.is_greedy:
        return int(adjusted.argmax())
    return draw(adjusted, params, uniform(sequence.seed, sequence.num_completion_tokens))


def _is_plain(sequence: Sequence) -> bool:
    """Whether the token is simply the largest logit, with nothing to report."""
    params = sequence.request.sampling
    return params.is_greedy and params.logprobs is None and not _is_adjusted(params)


def _is_adjusted(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


def adjust(row: Row, sequence: Sequence) -> Row:
    """Logits with bias and penalties; `row` itself stays as it is.

    Source: repetition over prompt and answer as in CTRL (arXiv 1909.05858, section 4.1); presence and frequency over
    the answer as the OpenAI specification defines them.
    """
    params = sequence.request.sampling
    if not _is_adjusted(params):
        return row
    adjusted = row.copy()
    if params.repetition_penalty != 1.0:
        seen = np.unique(sequence.token_ids)
        values = adjusted[seen]
        penalty = params.repetition_penalty
        adjusted[seen] = np.where(values > 0, values / penalty, values * penalty)
    counts = Counter(sequence.token_ids[sequence.num_prompt_tokens :])
    if counts and (params.presence_penalty or params.frequency_penalty):
        tokens = np.fromiter(counts.keys(), np.int64)
        times = np.fromiter(counts.values(), np.float32)
        adjusted[tokens] -= params.presence_penalty + params.frequency_penalty * times
    for token_id, bias in params.logit_bias.items():
        adjusted[token_id] += bias
    # An extreme penalty overflows; infinities would turn to NaN in the softmax.
    return np.clip(adjusted, -LARGEST_LOGIT, LARGEST_LOGIT)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone, the same on every machine.

    Source: splitmix64 (Steele, Lea, Flood 2014), whose state is a counter.
    """
    mask = (1 << 64) - 1
    value = (_mix(seed & mask) + (position + 1) * 0x9E3779B97F4A7C15) & mask
    return (_mix(value) >> 11) / (1 << 53)


def _mix(value: int) -> int:
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def draw(logits: Row, params: SamplingParams, point: float) -> int:
    """The token at `point` of the cumulated distribution after temperature, min-p, top-k and top-p, in that order."""
    # Float64 and a shift by the largest: a temperature near zero must not overflow.
    scaled = (logits.astype(np.float64) - logits.max()) / params.temperature
    if params.top_k is None and params.top_p >= 1.0 and params.min_p == 0.0:
        return _draw_from_all(np.exp(scaled), point)
    tokens, weights = _filtered(scaled, params)
    cumulated = np.cumsum(weights)
    index = int(np.searchsorted(cumulated, point * cumulated[-1], side="right"))
    return int(tokens[min(index, len(tokens) - 1)])


def _draw_from_all(weights: npt.NDArray[np.float64], point: float) -> int:
    """Two levels: find the block, then the token in it; a full cumulated sum would cost five times as much."""
    padded = np.pad(weights, (0, -len(weights) % BLOCK)).reshape(-1, BLOCK)
    blocks = np.cumsum(padded.sum(axis=1))
    target = point * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    before = blocks[block - 1] if block else 0.0
    within = np.cumsum(padded[block])
    index = block * BLOCK + int(np.searchsorted(within, target - before, side="right"))
    # Rounding can point past the last token that has any weight.
    return index if index < len(weights) and weights[index] > 0 else int(np.flatnonzero(weights)[-1])


def _filtered(
    scaled: npt.NDArray[np.float64], params: SamplingParams
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that pass the filters and their weights, most probable first, ties by token id."""
    limit = min(params.top_k or len(scaled), len(scaled))
    total = float(np.exp(scaled).sum()) if params.top_p < 1.0 and params.top_k is None else None
    tokens = _candidates(scaled, limit, None if total is None else total * params.top_p)
    order = np.lexsort((tokens, -scaled[tokens]))
    tokens = tokens[order][:limit]
    weights = np.exp(scaled[tokens])
    if params.min_p > 0.0:
        kept = int((weights >= params.min_p).sum())
        tokens, weights = tokens[: max(kept, 1)], weights[: max(kept, 1)]
    if params.top_p < 1.0:
        mass = np.cumsum(weights)
        kept = int(np.searchsorted(mass, params.top_p * (mass[-1] if total is None else total))) + 1
        tokens, weights = tokens[:kept], weights[:kept]
    return tokens, weights


def _candidates(scaled: npt.NDArray[np.float64], limit: int, mass: float | None) -> npt.NDArray[np.int64]:
    """Tokens among which the `limit` largest, or those that make up `mass`, surely are; without sorting them all."""
    span = SPAN
    while True:  # ends: at an infinite span every token is in
        tokens = np.flatnonzero(scaled >= -span)
        is_enough = len(tokens) >= limit if mass is None else float(np.exp(scaled[tokens]).sum()) >= mass
        if is_enough or len(tokens) == len(scaled):
            return tokens
        span *= 2
