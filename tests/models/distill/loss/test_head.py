"""Output losses against cases worked out by hand, and the chunked head against the whole one."""

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from models.distill.loss.head import (
    chunked,
    jensen_shannon,
    positions_in,
    reverse_kl,
    soft_target_kl,
    subset_kl,
    subset_vocabulary,
    task_cross_entropy,
    top_k_kl,
)

HALF_QUARTERS = torch.tensor([[0.5, 0.25, 0.25]]).log()
EVEN = torch.zeros(1, 3)
LEFT = torch.tensor([[0.75, 0.25]]).log()
RIGHT = torch.tensor([[0.25, 0.75]]).log()


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_soft_target_kl_goes_from_teacher_to_student() -> None:
    # ln(3/2) / 2 + 2 ln(3/4) / 4 = ln(9/8) / 2
    assert soft_target_kl(EVEN, HALF_QUARTERS, 1.0).item() == pytest.approx(0.058892, abs=1e-6)


def test_soft_target_kl_softens_both_and_scales_by_the_square() -> None:
    # Twice the logits at temperature 2 are the distribution above, and 2 squared is 4.
    assert soft_target_kl(EVEN, 2 * HALF_QUARTERS, 2.0).item() == pytest.approx(0.235566, abs=1e-6)


def test_soft_target_kl_keeps_rows_apart() -> None:
    student, teacher = torch.cat((EVEN, HALF_QUARTERS + 7)), torch.cat((HALF_QUARTERS, HALF_QUARTERS))
    assert soft_target_kl(student, teacher, 1.0).tolist() == pytest.approx([0.058892, 0.0], abs=1e-6)


def test_soft_target_kl_of_half_precision_is_summed_in_single() -> None:
    teacher = torch.tensor([[8.0, 0.0] + [1.0] * 5000], dtype=torch.bfloat16)
    loss = soft_target_kl(torch.zeros_like(teacher), teacher, 1.0)
    exact = soft_target_kl(torch.zeros_like(teacher, dtype=torch.float64), teacher.double(), 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)


def test_reverse_kl_goes_from_student_to_teacher() -> None:
    # ln(2/3) / 3 + 2 ln(4/3) / 3 = ln(32/27) / 3
    assert reverse_kl(EVEN, HALF_QUARTERS, 1.0).item() == pytest.approx(0.056633, abs=1e-6)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # The mix is (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
        (0.5, 0.130812),
        # The mix is (6/16, 10/16): (3/4 ln 2 + 1/4 ln(2/5)) / 4 + (1/4 ln(2/3) + 3/4 ln(6/5)) * 3/4.
        (0.25, 0.099228),
    ],
)
def test_jensen_shannon_measures_from_the_mix(beta: float, expected: float) -> None:
    assert jensen_shannon(RIGHT, LEFT, 1.0, beta).item() == pytest.approx(expected, abs=1e-6)
    assert jensen_shannon(2 * RIGHT, 2 * LEFT, 2.0, beta).item() == pytest.approx(4 * expected, abs=1e-5)


def test_jensen_shannon_ends_are_the_two_divergences() -> None:
    assert jensen_shannon(EVEN, HALF_QUARTERS, 1.0, 0.0).item() == pytest.approx(0.058892, abs=1e-6)
    assert jensen_shannon(EVEN, HALF_QUARTERS, 1.0, 1.0).item() == pytest.approx(0.056633, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        # Buckets (1/2, 1/4, 1/4) of the teacher, (1/4, 1/4, 1/2) of the student: ln 2 / 4.
        (1.0, 0.173287),
        # Their square roots, normalised by 1.707107: 4 (0.707107 ln 2 / 2 - 0.5 ln 2 / 2) / 1.707107.
        (2.0, 0.168186),
    ],
)
def test_top_k_kl_puts_the_rest_into_one_bucket(temperature: float, expected: float) -> None:
    top_ids, top_logprobs = torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]).log()
    loss = top_k_kl(torch.full((1, 4), 3.0), top_ids, top_logprobs, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_top_k_kl_of_the_whole_vocabulary_is_the_full_kl(temperature: float) -> None:
    student, teacher = random(5, 7).requires_grad_(), random(5, 7, seed=1)
    logprobs, ids = teacher.log_softmax(dim=1).sort(dim=1, descending=True)
    loss = top_k_kl(student, ids, logprobs, temperature)
    full = soft_target_kl(student, teacher, temperature)
    torch.testing.assert_close(loss, full)
    for ours, theirs in zip(_gradient(loss, student), _gradient(full, student), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_top_k_kl_bounds_the_full_kl_from_below() -> None:
    student, teacher = random(20, 30), random(20, 30, seed=1)
    full = soft_target_kl(student, teacher, 1.0)
    last = torch.zeros(20, dtype=torch.float64)
    for num_known in (1, 5, 20, 29):
        logprobs, ids = teacher.log_softmax(dim=1).topk(num_known)
        loss = top_k_kl(student, ids, logprobs, 1.0)
        assert (loss >= last - 1e-9).all()
        last = loss
    assert (last <= full + 1e-9).all()
    assert last.mean() > 0.9 * full.mean()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_top_k_kl_has_its_minimum_at_the_teacher(temperature: float) -> None:
    teacher = random(4, 9)
    logprobs, ids = teacher.log_softmax(dim=1).topk(3)
    student = teacher.clone().requires_grad_()
    loss = top_k_kl(student, ids, logprobs, temperature)
    assert loss.detach().abs().max() < 1e-9
    assert _gradient(loss, student)[0].abs().max() < 1e-9


def test_top_k_kl_survives_rounded_log_probabilities_that_leave_nothing_over() -> None:
    student = torch.zeros(1, 8).requires_grad_()
    loss = top_k_kl(student, torch.tensor([[1, 2]]), torch.tensor([[0.502, 0.502]]).log().half(), 1.0)
    # The student gives the two 1/8 each where the teacher gives them a half.
    assert loss.item() == pytest.approx(1.386294, abs=1e-3)
    assert _gradient(loss, student)[0].isfinite().all()


def test_task_cross_entropy_is_the_log_of_the_target() -> None:
    loss = task_cross_entropy(HALF_QUARTERS.repeat(2, 1), torch.tensor([0, 2]))
    assert loss.tolist() == pytest.approx([0.693147, 1.386294], abs=1e-6)


def test_subset_vocabulary_holds_likely_tokens_targets_and_random_others() -> None:
    top_ids, target = torch.tensor([[7, 3], [3, 9]]), torch.tensor([3, 40])
    subset = subset_vocabulary(top_ids, target, 5, 50, torch.Generator().manual_seed(0))
    assert len(subset) == 9
    assert {3, 7, 9, 40} <= set(subset.tolist())
    assert subset.tolist() == sorted(set(subset.tolist()))
    assert positions_in(subset, subset).tolist() == list(range(9))
    assert subset[positions_in(subset, top_ids)].tolist() == top_ids.tolist()


def test_subset_vocabulary_depends_on_the_generator_alone() -> None:
    top_ids, target = torch.tensor([[7, 3]]), torch.tensor([3])
    first, again, other = (
        subset_vocabulary(top_ids, target, 5, 500, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_subset_vocabulary_draws_the_others_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    top_ids, target = torch.tensor([[0]]), torch.tensor([1])
    counts = torch.zeros(10)
    for _ in range(600):
        counts[subset_vocabulary(top_ids, target, 4, 10, generator)] += 1
    assert counts[:2].tolist() == [600, 600]
    assert counts[2:].sum() == 2400
    assert (counts[2:] - 300).abs().max() < 60


def test_subset_kl_of_the_whole_vocabulary_is_the_full_kl() -> None:
    student, teacher, head = random(6, 4), random(6, 4, seed=1), random(12, 4, seed=2)
    ids, target = torch.tensor([[1, 2]]), torch.tensor([5])
    subset = subset_vocabulary(ids, target, 100, 12, torch.Generator())
    full = soft_target_kl(linear(student, head), linear(teacher, head), 2.0)
    torch.testing.assert_close(subset_kl(student, teacher, head[subset], 2.0), full)


def test_subset_kl_compares_the_restricted_distributions() -> None:
    # The head reads the state as logits; of (1/2, 1/4, 1/8, 1/8) and an even student the last two rows agree.
    teacher, student, head = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.zeros(1, 4), torch.eye(4)
    assert subset_kl(student, teacher, head[[2, 3]], 1.0).item() == pytest.approx(0.0, abs=1e-6)
    # (2/3, 1/3) against (1/2, 1/2): 2/3 ln(4/3) + 1/3 ln(2/3)
    assert subset_kl(student, teacher, head[[0, 1]], 1.0).item() == pytest.approx(0.056633, abs=1e-6)


def _gradient(loss: Tensor, of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), of)


def _distill_and_task(logits: Tensor, teacher_normed: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    teacher_logits = linear(teacher_normed, HEAD)
    return soft_target_kl(logits, teacher_logits, 2.0), task_cross_entropy(logits, target)


HEAD = random(64, 8, seed=5)
ROWS = (random(50, 8, seed=6), torch.arange(50))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 25, 50, 1000])
def test_chunked_has_the_losses_and_gradients_of_the_whole(chunk_tokens: int) -> None:
    normed, importance = random(50, 8).requires_grad_(), random(50, seed=9)
    total, terms = chunked(_distill_and_task, (0.75, 0.25), normed, HEAD, ROWS, chunk_tokens)
    whole = torch.stack(_distill_and_task(linear(normed, HEAD), *ROWS), dim=1)
    torch.testing.assert_close(terms, whole.detach())
    torch.testing.assert_close(total, 0.75 * whole[:, 0] + 0.25 * whole[:, 1])
    ours = _gradient(total * importance, normed)[0]
    torch.testing.assert_close(ours, _gradient((whole @ whole.new_tensor((0.75, 0.25))) * importance, normed)[0])


def test_chunked_gives_the_same_losses_without_gradients() -> None:
    normed = random(50, 8).requires_grad_()
    with_gradient, _ = chunked(_distill_and_task, (0.75, 0.25), normed, HEAD, ROWS, 7)
    with torch.no_grad():
        without, terms = chunked(_distill_and_task, (0.75, 0.25), normed, HEAD, ROWS, 7)
    assert not without.requires_grad
    assert terms.shape == (50, 2)
    torch.testing.assert_close(without, with_gradient.detach())


def test_chunked_terms_carry_no_gradient() -> None:
    _, terms = chunked(_distill_and_task, (1.0, 1.0), random(50, 8).requires_grad_(), HEAD, ROWS, 7)
    assert not terms.requires_grad


class LiveElements(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most elements of tensors made inside that were alive at once, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage(), tensor.element_size())
        return result

    def _watch(self, storage: torch.UntypedStorage, element_size: int) -> None:
        # A view shares its storage, and whatever comes to an address again was freed before.
        address, size = storage.data_ptr(), storage.nbytes() // element_size
        if address in self._known or size == 0:
            return
        self._known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def test_chunked_never_holds_more_logits_than_a_chunk_has() -> None:
    head, teacher = random(1000, 4, dtype=torch.float32), random(400, 4, seed=1, dtype=torch.float32)
    normed = random(400, 4, seed=2, dtype=torch.float32).requires_grad_()

    def losses(logits: Tensor, teacher_normed: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        teacher_logits = linear(teacher_normed, head)
        return soft_target_kl(logits, teacher_logits, 2.0), task_cross_entropy(logits, target)

    rows = (teacher, torch.arange(400))
    with LiveElements() as in_chunks:
        _gradient(chunked(losses, (0.75, 0.25), normed, head, rows, 20)[0], normed)
    with LiveElements() as whole:
        _gradient(torch.stack(losses(linear(normed, head), *rows)), normed)
    assert whole.peak > 400 * 1000
    assert in_chunks.peak < 12 * 20 * 1000
