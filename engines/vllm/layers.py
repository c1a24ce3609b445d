"""The layers of a student inside a model of vLLM's: feed-forward and attention's output by width, and the cheap head.

What runs in a step stands in one `Step`, which the runner sets before the pass. A plain step is vLLM's own model; in
any other, what depends on the rows is one operator, which a compiled graph calls like attention's.

Tensor names carry shapes: T tokens of the step, H hidden, R rows of logits, V vocabulary.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.library import Library
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.linear import MergedColumnParallelLinear
from vllm.utils.torch_utils import direct_register_custom_op

from engines.vllm.form import HeadForm
from engines.vllm.matrices import WidthMatrices, multiply
from engines.vllm.rows import StepRows
from models.graphs.widths import LayerWidths, NeuronBlock, OutputRun

HALVINGS = 8


class Step:
    """What the pass that runs now is made of; shared by all layers of a model.

    `is_plain`: every row runs everything. `counts`: `StepRows.counts`, None where every row is of the whole width.
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self.set(None, torch.device("cpu"))

    def set(self, rows: StepRows | None, device: torch.device) -> None:
        self.rows = rows
        self.counts = None if rows is None or rows.is_whole else rows.counts
        self.is_plain = rows is None or (rows.is_whole and rows.num_layers == self._num_layers)
        self._order: Tensor | None = None
        self._inverse: Tensor | None = None
        if rows is not None and rows.order is not None and not rows.is_whole:
            self._order = torch.tensor(rows.order, device=device)
            self._inverse = torch.argsort(self._order)

    def sorted(self, values_TX: Tensor) -> Tensor:
        """Rows in the order of their widths."""
        return values_TX if self._order is None else values_TX.index_select(0, self._order)

    def restored(self, values_TX: Tensor) -> Tensor:
        return values_TX if self._inverse is None else values_TX.index_select(0, self._inverse)


class _ByWidth(nn.Module):
    """A part of a layer that does with a row what its width says."""

    def __init__(self, output_size: int, step: Step, name: str, places: dict[str, Any]) -> None:
        """`places`: where vLLM's operators find the module that they are called for, by name."""
        super().__init__()
        self._output_size, self._step, self._name = output_size, step, name
        places[name] = self

    def forward(self, inputs_TX: Tensor) -> Tensor:
        if self._step.is_plain:
            return self.run_whole(inputs_TX)
        if torch.compiler.is_compiling():
            return cast(Tensor, torch.ops.fenhe.run_by_width(inputs_TX, self._name, self._output_size))
        return self.run_by_width(inputs_TX)

    def run_by_width(self, inputs_TX: Tensor) -> Tensor:
        counts = self._step.counts
        if counts is None:
            return self.run_whole(inputs_TX)
        return self._step.restored(self.run_sorted(self._step.sorted(inputs_TX), counts))

    def run_whole(self, inputs_TX: Tensor) -> Tensor:
        raise NotImplementedError

    def run_sorted(self, inputs_TX: Tensor, counts: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


def _run_by_width(inputs: Tensor, name: str, size: int) -> Tensor:
    return cast(Tensor, get_forward_context().no_compile_layers[name].run_by_width(inputs))


def _shape_of_run(inputs: Tensor, name: str, size: int) -> Tensor:
    return inputs.new_empty(inputs.shape[0], size)


OPERATORS = Library("fenhe", "FRAGMENT")  # type: ignore[no-untyped-call]
direct_register_custom_op("run_by_width", _run_by_width, fake_impl=_shape_of_run, target_lib=OPERATORS)


class WidthFeedForward(_ByWidth):
    """Blocks of neurons, each for the rows that run it, then the rows of each width with their own output matrix.

    With `keeps_whole` gate and up are there a second time, undivided, for steps of the whole width alone: on the CPU,
    where vLLM packs matrices and a packed one has no parts, one product is faster than one for each block.
    """

    def __init__(
        self,
        hidden_size: int,
        widths: LayerWidths,
        step: Step,
        name: str,
        places: dict[str, Any],
        *,
        keeps_whole: bool = False,
    ) -> None:
        super().__init__(hidden_size, step, name, places)
        self.blocks: tuple[NeuronBlock, ...] = widths.blocks
        self.gate_ups = nn.ModuleList(
            MergedColumnParallelLinear(
                hidden_size, [block.size] * 2, bias=False, disable_tp=True, prefix=f"{name}.gate_ups.{index}"
            )
            for index, block in enumerate(self.blocks)
        )
        self.whole: Any = None
        if keeps_whole:
            sizes = [widths.neurons[0]] * 2
            self.whole = MergedColumnParallelLinear(
                hidden_size, sizes, bias=False, disable_tp=True, prefix=f"{name}.whole"
            )
        entries = range(len(widths.neurons))
        self.downs = WidthMatrices(widths.neurons, entries, hidden_size, bias=False, prefix=f"{name}.downs")
        self.act_fn = SiluAndMul()

    def run_whole(self, inputs_TX: Tensor) -> Tensor:
        gate_ups = self.gate_ups if self.whole is None else [self.whole]
        products = [self._neurons(one, inputs_TX) for one in gate_ups]
        return self.downs.whole(products[0] if len(products) == 1 else torch.cat(products, -1))

    def run_sorted(self, inputs_TX: Tensor, counts: tuple[int, ...]) -> Tensor:
        used = [(block, one) for block, one in zip(self.blocks, self.gate_ups, strict=True) if counts[block.entry]]
        num_neurons = self.downs.num_inputs(counts)
        if used[0][0].end == num_neurons:
            return cast(Tensor, self.downs(self._neurons(used[0][1], inputs_TX), counts))
        neurons = inputs_TX.new_zeros(len(inputs_TX), num_neurons)
        for block, gate_up in used:
            rows = counts[block.entry]
            neurons[:rows, block.first : block.end] = self._neurons(gate_up, inputs_TX[:rows])
        return cast(Tensor, self.downs(neurons, counts))

    def _neurons(self, gate_up: Any, inputs_TX: Tensor) -> Tensor:
        product: Tensor = self.act_fn(multiply(gate_up, inputs_TX))
        return product


class WidthOutput(_ByWidth):
    """Attention's output, by the matrix of each row's width where it has its own."""

    def __init__(
        self,
        q_size: int,
        hidden_size: int,
        widths: LayerWidths,
        step: Step,
        name: str,
        places: dict[str, Any],
        *,
        bias: bool,
    ) -> None:
        super().__init__(hidden_size, step, name, places)
        self.runs: tuple[OutputRun, ...] = widths.output_runs
        own = [run.first for run in self.runs if run.own]
        of_entry = [
            1 + own.index(run.first) if run.own else 0 for run in self.runs for _ in range(run.first, run.last + 1)
        ]
        self.outputs = WidthMatrices([q_size] * (1 + len(own)), of_entry, hidden_size, bias=bias, prefix=name)

    def forward(self, inputs_TX: Tensor) -> Any:
        return super().forward(inputs_TX), None

    def run_whole(self, inputs_TX: Tensor) -> Tensor:
        return self.outputs.whole(inputs_TX)

    def run_sorted(self, inputs_TX: Tensor, counts: tuple[int, ...]) -> Tensor:
        return cast(Tensor, self.outputs(inputs_TX, counts))


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
