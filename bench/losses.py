"""Cross-entropy of given tokens under given logits."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def nats_of(logits: npt.NDArray[np.float32], token_ids: Sequence[int]) -> float:
    """Summed negative log-likelihood of one token per row.

    Shapes: logits [R, vocab], R token ids.
    """
    rows = logits.astype(np.float64)
    highest = rows.max(axis=1)
    log_total = np.log(np.exp(rows - highest[:, None]).sum(axis=1)) + highest
    return float((log_total - rows[np.arange(len(token_ids)), list(token_ids)]).sum())
