"""Losses on what happens before the head: hidden states, attention maps, the states between modules.

Off in the default recipe: they help most when compute is short (a hidden state costs no head), and states tied to the
teacher's at the same depth come to resemble the final state less (LEAP, arXiv 2605.01058), so an exit is better
aligned with the teacher's final state than with its neighbour's.

Tensor names carry shapes: B sequences, T positions, N real tokens of a batch (A heads of the student's maps, Z of the
teacher's), H hidden, P links between modules. Every loss is returned per token: the mean is the caller's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

MODULE_ALIGNMENT_WEIGHT = 0.1

_LEAST_PROBABILITY = 1e-12
_LEAST_SQUARE = 1e-12


def hidden_mse(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """Mean squared difference of two states. Shapes: returns [N]. Source: TinyBERT, arXiv 1909.10351, section 3.1."""
    return (_wide(student_NH) - _wide(teacher_NH)).square().mean(dim=-1)


def hidden_cosine(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """One minus the cosine: 0 when the states point the same way. Shapes: returns [N].

    Source: DistilBERT, arXiv 1910.01108, section 2.
    """
    return 1 - cosine_similarity(_wide(student_NH), _wide(teacher_NH), dim=-1)


def attention_transfer(student_BATT: Tensor, teacher_BZTT: Tensor, is_real_BT: Tensor) -> Tensor:
    """KL(teacher || student) between their attention probabilities, averaged over heads, without padded positions.

    Rows are causal and padding is at the end, so no real position looks at padding. Maps with different numbers of
    heads are averaged over their heads before they are compared.

    Shapes: returns [N], N the real positions in order. Units: nats. Source: MiniLM, arXiv 2002.10957, section 3.1.
    """
    student, teacher = _wide(student_BATT), _wide(teacher_BZTT)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
    logarithms = teacher.clamp_min(_LEAST_PROBABILITY).log() - student.clamp_min(_LEAST_PROBABILITY).log()
    divergence_BT = (teacher * logarithms).sum(dim=-1).mean(dim=1)
    return divergence_BT[is_real_BT]


def module_alignment(student_states: Sequence[Tensor], teacher_states: Sequence[Tensor]) -> Tensor:
    """How far a path's state is off at every module boundary, relative to the size of the teacher's at the layer
    that the boundary is mapped to: 0 when equal, 1 for a state of zeros.

    Relative per token, because a decoder's first positions carry states hundreds of times larger than the others.
    Used with `MODULE_ALIGNMENT_WEIGHT`. Shapes: P states [N, H] on either side; returns [P, N].
    """
    return torch.stack(
        [
            _relative_square(_wide(student_NH), _wide(teacher_NH))
            for student_NH, teacher_NH in zip(student_states, teacher_states, strict=True)
        ]
    )


def _relative_square(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    difference_N = (student_NH - teacher_NH).square().sum(dim=-1)
    return difference_N / teacher_NH.square().sum(dim=-1).clamp_min(_LEAST_SQUARE)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
