"""Log-probabilities of a prompt's own tokens, computed from the logits of a few positions at a time."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from engines.sequence import TokenLogprob

Float = npt.NDArray[np.float32]

SCORE_ROWS = 64
"""Positions whose logits are held at once: a whole prompt's would be hundreds of megabytes."""


def pieces(first: int, end: int) -> Iterator[tuple[int, int]]:
    """The range in pieces of at most `SCORE_ROWS`."""
    return ((begin, min(begin + SCORE_ROWS, end)) for begin in range(first, end, SCORE_ROWS))


def score_tokens(
    logits: Float, token_ids: Sequence[int], num_alternatives: int, token_bytes: Callable[[int], bytes]
) -> list[TokenLogprob]:
    """One entry per token: its log-probability under the row of the position before it, and the likeliest ones there.

    Shapes: logits [len(token_ids), vocab].
    Raises: FloatingPointError for logits that are not finite.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_totals = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
    chosen = shifted[np.arange(len(token_ids)), list(token_ids)] - log_totals
    if not np.isfinite(chosen).all():
        raise FloatingPointError("the model's logits are not finite")
    likeliest = _likeliest(shifted, num_alternatives)
    return [
        TokenLogprob(
            token_id=token_id,
            logprob=float(chosen[row]),
            token_bytes=token_bytes(token_id),
            alternatives=tuple(
                TokenLogprob(token_id=other, logprob=float(value - log_totals[row]), token_bytes=token_bytes(other))
                for other, value in likeliest[row]
            ),
        )
        for row, token_id in enumerate(token_ids)
    ]


def _likeliest(shifted: Float, count: int) -> list[list[tuple[int, np.float32]]]:
    """The `count` largest of every row with their values, ties by token id. Overwrites `shifted`.

    A handful of passes for the largest costs less than one partition.
    """
    rows = np.arange(len(shifted))
    found: list[list[tuple[int, np.float32]]] = [[] for _ in rows]
    for _ in range(count):
        best = shifted.argmax(axis=1)
        values = shifted[rows, best]
        shifted[rows, best] = -np.inf
        for row, (token_id, value) in enumerate(zip(best.tolist(), values, strict=True)):
            found[row].append((token_id, value))
    return found
