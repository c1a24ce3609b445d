"""Scores an answer's tokens from logits of a few of its positions at a time.

How likely an answer is depends on its sampling: at a low temperature every answer is likely. So every token is compared
with what the same sampling would have drawn from these very logits, on average: position by position, behind the text
that is there. For answers that these logits were sampled from, the differences add up to 0 but for chance, whatever
temperature and filters.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.answer_score import AnswerScore
from engines.drawing import drawn_from
from engines.sequence import SamplingParams

Float = npt.NDArray[np.float32]


def score_answer(logits: Float, token_ids: Sequence[int], sampling: SamplingParams) -> AnswerScore:
    """The score of consecutive tokens; of `sampling` temperature and filters matter.

    Shapes: logits [len(token_ids), vocab]: the predictions of these tokens.
    Raises: FloatingPointError for logits that are not finite.
    """
    likeliest = logits.argmax(axis=1)
    shifted = logits - np.take_along_axis(logits, likeliest[:, None], axis=1)
    log_totals = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
    tokens = np.asarray(token_ids)
    nats = log_totals - shifted[np.arange(len(tokens)), tokens]
    if not np.isfinite(nats).all():
        raise FloatingPointError("the model's logits are not finite")
    own = [_expected(row, int(best), sampling) for row, best in zip(shifted, likeliest, strict=True)]
    return AnswerScore(
        num_tokens=len(tokens),
        nats=float(nats.sum()),
        expected_nats=float(log_totals.sum() + sum(below for below, _ in own)),
        num_agreed=int((likeliest == tokens).sum()),
        expected_agreed=sum(share for _, share in own),
    )


def _expected(shifted: npt.NDArray[np.float32], likeliest: int, sampling: SamplingParams) -> tuple[float, float]:
    """How far below the largest logit a token is drawn, on average, and how often the likeliest one is drawn.

    Units: nats. Shapes: shifted [vocab], the largest 0.
    """
    if sampling.is_greedy:
        return 0.0, 1.0
    if sampling.top_k is None and sampling.top_p >= 1.0 and sampling.min_p == 0.0:
        weights = np.exp(shifted / np.float32(sampling.temperature))
        total = float(weights.sum(dtype=np.float64))
        return -float(weights @ shifted) / total, float(weights[likeliest]) / total
    tokens, shares = drawn_from(shifted, sampling)
    below = -float(shares @ shifted[tokens].astype(np.float64))
    return below, float(shares[tokens == likeliest].sum())
