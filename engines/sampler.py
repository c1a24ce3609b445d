"""From logits to tokens. Rows that need more than the largest logit are handled one at a time.

Every draw depends on the row's seed and position alone, so the same seed gives the same text whatever else runs.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.grammar import Masks, Tokens
from engines.sequence import SamplingParams, Sequence, TokenLogprob

Row = npt.NDArray[np.float32]

SPAN = 4.0
"""First guess of how far below the largest logit, in nats, top-p and top-k reach. Kept small: the tokens within have
to be sorted, and widening it costs little."""
SLACK = 1e-6
"""Nats below min-p within which tokens are still compared exactly."""
LARGEST_LOGIT = np.float32(1e30)
BLOCK = 128
"""Tokens per block of the two-level search in the cumulative distribution."""
REDRAW = 0x5851F42D4C957F2D
"""Turns a seed into another, for second draws: they must not depend on the first."""


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
        Raises: FloatingPointError for logits that are not finite: a broken model must not answer nonsense.
        """
        greedy = logits.argmax(axis=1)
        if not np.isfinite(logits[np.arange(len(greedy)), greedy]).all():
            raise FloatingPointError("the model's logits are not finite")
        rows = [adjust(row, sequence) for row, sequence in zip(logits, sequences, strict=True)]
        tokens = [_choose(*one) for one in zip(rows, greedy, sequences, strict=True)]
        for index, legal in self._legal_tokens(tokens, sequences).items():
            tokens[index] = _choose_legal(rows[index], legal, sequences[index])
        return [self._sampled(*one) for one in zip(logits, tokens, sequences, strict=True)]

    def _legal_tokens(self, tokens: list[int], sequences: list[Sequence]) -> dict[int, Tokens]:
        """What grammars allow, by row; only for rows whose grammar refuses their token, because listing costs more.

        A token drawn among all is kept if it is legal; otherwise another is drawn among the legal ones. Without filters
        such as top-p this gives every legal token the probability that it has among the legal tokens. Filters apply to
        all tokens in the first draw, and to the legal ones in the second.
        """
        bound = {
            index: sequence.matcher
            for index, (token, sequence) in enumerate(zip(tokens, sequences, strict=True))
            if sequence.matcher is not None and not sequence.matcher.allows(token)
        }
        return dict(zip(bound, self._masks.legal_tokens(list(bound.values())), strict=True)) if bound else {}

    def _sampled(self, row: Row, token_id: int, sequence: Sequence) -> Sampled:
        num_alternatives = sequence.request.sampling.logprobs
        if num_alternatives is None:
            return Sampled(token_id=token_id)
        return Sampled(token_id=token_id, logprob=self._logprob(row, token_id, num_alternatives))

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


def _choose(adjusted: Row, best: np.intp, sequence: Sequence) -> int:
    """`best` is the largest logit before any adjustment."""
    params = sequence.request.sampling
    if params.is_greedy:
        return int(adjusted.argmax()) if _is_adjusted(params) else int(best)
    return draw(adjusted, params, uniform(sequence.seed, sequence.num_completion_tokens))


def _choose_legal(adjusted: Row, legal: Tokens, sequence: Sequence) -> int:
    """A token among the legal ones; if there are none, any token, which the grammar then refuses."""
    params = sequence.request.sampling
    if not len(legal):
        return int(adjusted.argmax())
    if params.is_greedy:
        return int(legal[adjusted[legal].argmax()])
    return int(legal[draw(adjusted[legal], params, uniform(sequence.seed ^ REDRAW, sequence.num_completion_tokens))])


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
    """The token at `point` of the cumulative distribution after temperature, min-p, top-k and top-p, in that order."""
    # Float64 and a shift by the largest: a temperature near zero must not overflow.
    scaled = (logits.astype(np.float64) - logits.max()) / params.temperature
    if params.top_k is None and params.top_p >= 1.0 and params.min_p == 0.0:
        return _draw_from_all(np.exp(scaled), point)
    tokens, weights = _filtered(scaled, params)
    cumulated = np.cumsum(weights)
    index = int(np.searchsorted(cumulated, point * cumulated[-1], side="right"))
    return int(tokens[min(index, len(tokens) - 1)])


def _draw_from_all(weights: npt.NDArray[np.float64], point: float) -> int:
    """Two levels: find the block, then the token in it; one cumulative sum over all would cost five times as much."""
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
    if params.min_p > 0.0:
        tokens = np.flatnonzero(scaled >= math.log(params.min_p) - SLACK)
    else:
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
    """Tokens that surely include the `limit` largest, or those that make up `mass`; found without sorting all."""
    span = SPAN
    while True:  # ends: at an infinite span every token is in
        tokens = np.flatnonzero(scaled >= -span)
        is_enough = len(tokens) >= limit if mass is None else float(np.exp(scaled[tokens]).sum()) >= mass
        if is_enough or len(tokens) == len(scaled):
            return tokens
        span *= 2
