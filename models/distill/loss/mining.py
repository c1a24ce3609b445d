"""Hard examples: tokens of which the teacher itself is unsure, without those that are only noise.

Tensor names carry shapes: N tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


@dataclass(slots=True, kw_only=True, frozen=True)
class MiningSettings:
    """Hard-example mining by the teacher's entropy: see `entropy_weights`."""

    strength: float = 0.5
    drop_share: float = 0.02

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if 0 <= self.strength <= 1 else [f"mining.strength must be from 0 to 1, not {self.strength}"]
        if not 0 <= self.drop_share < 1:
            found.append(f"mining.drop_share must be from 0 to below 1, not {self.drop_share}")
        return found


def token_entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of next-token distributions. Shapes: returns [N]. Units: nats."""
    log_p_NV = log_softmax(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), dim=-1)
    return -(log_p_NV.exp() * log_p_NV).sum(dim=-1)


def entropy_weights(entropy_N: Tensor, strength: float, drop_share: float) -> Tensor:
    """How much each token counts: more where the teacher is less sure, 0 for the most uncertain `drop_share`.

    `strength` 0 weighs the kept tokens equally, 1 in proportion to their entropy; values between interpolate. The
    mean over all tokens is 1, so the learning rate needs no change. Shapes: returns [N].
    """
    assert 0 <= strength <= 1, strength
    assert 0 <= drop_share < 1, drop_share
    num_kept = len(entropy_N) - int(drop_share * len(entropy_N))
    kept = entropy_N.argsort(stable=True)[:num_kept]
    kept_entropy = entropy_N[kept].to(torch.promote_types(entropy_N.dtype, torch.float32))
    mean = kept_entropy.mean()
    relative = kept_entropy / mean if mean > 0 else torch.ones_like(kept_entropy)
    weights_N = torch.zeros(len(entropy_N), dtype=relative.dtype, device=relative.device)
    weights_N[kept] = (1 - strength + strength * relative) * (len(entropy_N) / max(1, num_kept))
    return weights_N
