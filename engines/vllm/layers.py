"""The layers of a student inside a model of vLLM's: feed-forward and attention's output by width, and the cheap head.

What runs in a step stands in one `Step`, which the runner sets before the pass. While it is empty every row runs
everything, which is what vLLM traces and compiles.

Tensor names carry shapes: T tokens of the step, H hidden, R rows of logits, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, ReplicatedLinear

from engines.vllm.form import HeadForm
from engines.vllm.rows import StepRows
from models.graphs.widths import LayerWidths, NeuronBlock, OutputRun

HALVINGS = 8


class Step:
    """What the pass that runs now is made of; shared by all layers of a model."""

    def __init__(self) -> None:
        self.rows: StepRows | None = None
        self.order: Tensor | None = None
        self.inverse: Tensor | None = None

    def set(self, rows: StepRows | None, device: torch.device) -> None:
        self.rows = rows
        self.order = self.inverse = None
        if rows is not None and rows.order is not None and not rows.is_whole:
            self.order = torch.tensor(rows.order, device=device)
            self.inverse = torch.argsort(self.order)

    @property
    def counts(self) -> tuple[int, ...] | None:
        """`StepRows.counts`, None where every row runs everything."""
        return None if self.rows is None or self.rows.is_whole else self.rows.counts


def _sorted(step: Step, values_TX: Tensor) -> Tensor:
    return values_TX if step.order is None else values_TX.index_select(0, step.order)


def _restored(step: Step, values_TX: Tensor) -> Tensor:
    return values_TX if step.inverse is None else values_TX.index_select(0, step.inverse)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class WidthFeedForward(nn.Module):
    """Blocks of neurons, each for the rows that run it, then the rows of each width with their own output matrix.

    With `keeps_whole` gate and up are there a second time, undivided, for steps of the whole width alone: on the CPU,
    where vLLM packs matrices and a packed one has no parts, one product is faster than one for each block.
    """

    def __init__(
        self, hidden_size: int, widths: LayerWidths, step: Step, prefix: str, *, keeps_whole: bool = False
    ) -> None:
        super().__init__()
        self.blocks: tuple[NeuronBlock, ...] = widths.blocks
        self.gate_ups = nn.ModuleList(
            MergedColumnParallelLinear(
                hidden_size, [block.size] * 2, bias=False, disable_tp=True, prefix=f"{prefix}.gate_ups.{index}"
            )
            for index, block in enumerate(self.blocks)
        )
        self.whole: Any = None
        if keeps_whole:
            sizes = [widths.neurons[0]] * 2
            self.whole = MergedColumnParallelLinear(
                hidden_size, sizes, bias=False, disable_tp=True, prefix=f"{prefix}.whole"
            )
        self.downs = nn.ModuleList(
            ReplicatedLinear(neurons, hidden_size, bias=False, prefix=f"{prefix}.downs.{entry}")
            for entry, neurons in enumerate(widths.neurons)
        )
        self.act_fn = SiluAndMul()
        self._step = step

    def forward(self, hidden_TH: Tensor) -> Tensor:
        counts = self._step.counts
        if counts is None and self.whole is not None:
            return self._down(0, [self.act_fn(self.whole(hidden_TH)[0])])
        if counts is None:
            return self._down(0, [self._product(index, hidden_TH) for index in range(len(self.blocks))])
        hidden_TH = _sorted(self._step, hidden_TH)
        products = [
            self._product(index, hidden_TH[: counts[block.entry]]) if counts[block.entry] else None
            for index, block in enumerate(self.blocks)
        ]
        outputs, first = [], 0
        for entry, end in enumerate(counts):
            if end > first:
                parts = [
                    product[first:end]
                    for block, product in zip(self.blocks, products, strict=True)
                    if block.entry >= entry and product is not None
                ]
                outputs.append(self._down(entry, parts))
            first = end
        return _restored(self._step, _joined(outputs, 0))

    def _product(self, index: int, hidden_TH: Tensor) -> Tensor:
        gate_up, _ = self.gate_ups[index](hidden_TH)
        product: Tensor = self.act_fn(gate_up)
        return product

    def _down(self, entry: int, parts: list[Tensor]) -> Tensor:
        output: Tensor = self.downs[entry](_joined(parts, -1))[0]
        return output


class WidthOutput(nn.Module):
    """Attention's output, by the matrix of each row's width where it has its own."""

    def __init__(self, q_size: int, hidden_size: int, widths: LayerWidths, step: Step, *, bias: bool, prefix: str):
        super().__init__()
        self.runs: tuple[OutputRun, ...] = widths.output_runs
        self.outputs = nn.ModuleList(
            ReplicatedLinear(q_size, hidden_size, bias=bias, prefix=f"{prefix}.outputs.{index}")
            for index in range(len({run.first if run.own else 0 for run in self.runs}))
        )
        self._step = step

    def index_of(self, entry: int) -> int:
        """Which of `outputs` the rows of a width read."""
        own = [run.first for run in self.runs if run.own]
        run = next(run for run in self.runs if run.first <= entry <= run.last)
        return 1 + own.index(run.first) if run.own else 0

    def forward(self, attended_TX: Tensor) -> tuple[Tensor, None]:
        counts = self._step.counts
        if counts is None:
            output: Tensor = self.outputs[0](attended_TX)[0]
            return output, None
        attended_TX = _sorted(self._step, attended_TX)
        parts, first = [], 0
        for run in self.runs:
            end = counts[run.last]
            if end > first:
                parts.append(self.outputs[self.index_of(run.first)](attended_TX[first:end])[0])
            first = end
        return _restored(self._step, _joined(parts, 0)), None


class CheapHead(nn.Module):
    """Previews of all logits, exact ones where they matter. See `models/graphs/cheap_head.py`.

    Other than a row's own preview nothing decides which of its logits are exact.
    """

    def __init__(self, form: HeadForm, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.form = form
        self.project = nn.Parameter(torch.empty(form.rank, hidden_size), requires_grad=False)
        self.preview = nn.Parameter(torch.empty(vocab_size, form.rank), requires_grad=False)
        self.preview_bias = nn.Parameter(torch.empty(vocab_size), requires_grad=False)
        self.frequent: Tensor
        self.register_buffer("frequent", torch.tensor(form.frequent), persistent=False)
        self._frequent_rows: Tensor | None = None

    def forward(self, normed_RH: Tensor, head_VH: Tensor) -> Tensor:
        """Shapes: returns [R, V] in fp32."""
        if self._frequent_rows is None:
            self._frequent_rows = head_VH[self.frequent].contiguous()
        projected = normed_RH @ self.project.T
        logits_RV = torch.addmm(self.preview_bias, projected, self.preview.T).float()
        is_exact_RV = self._candidates(logits_RV)
        wanted = is_exact_RV.any(dim=0).nonzero().flatten()
        exact = (normed_RH @ head_VH[wanted].T).float()
        logits_RV[:, wanted] = torch.where(is_exact_RV[:, wanted], exact, logits_RV[:, wanted])
        logits_RV[:, self.frequent] = (normed_RH @ self._frequent_rows.T).float()
        return logits_RV

    def _candidates(self, preview_RV: Tensor) -> Tensor:
        """The tokens from a least preview on, which is raised in halvings of the distance to the best until few enough
        are left. Shapes: returns [R, V]."""
        rivals = preview_RV.index_fill(1, self.frequent, -torch.inf)
        enough = preview_RV.amax(dim=1, keepdim=True)
        least = enough - self.form.reach
        fits = (rivals >= least).sum(dim=1, keepdim=True) <= self.form.num_candidates
        if not bool(fits.all()):
            low = least
            for _ in range(HALVINGS):
                middle = 0.5 * (enough + low)
                few = (rivals >= middle).sum(dim=1, keepdim=True) <= self.form.num_candidates
                enough, low = torch.where(few, middle, enough), torch.where(few, low, middle)
            least = torch.where(fits, least, enough)
        return rivals >= least
