"""The output matrices of a layer's widths, each for the rows of its width: W_down, and W_o of attention.

Tensor names carry shapes: T tokens of the step, H hidden, N inputs of a matrix, R rank of a difference.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import ReplicatedLinear

from engines.vllm.differences import find_difference
from engines.vllm.products import Difference, Product, plan_products


def multiply(linear: ReplicatedLinear, inputs_TN: Tensor) -> Tensor:
    """What calling it comes to, without what vLLM's classes do around the product."""
    product: Tensor = linear.quant_method.apply(linear, inputs_TN, linear.bias)
    return product


class WidthMatrices(nn.Module):
    """`of_entry` has the matrix of each width, `linears` the matrices; every one has as many inputs as its widest width
    has neurons, which are the first ones of a row."""

    def __init__(
        self, sizes: Sequence[int], of_entry: Sequence[int], output_size: int, *, bias: bool, prefix: str
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(
            ReplicatedLinear(size, output_size, bias=bias, prefix=f"{prefix}.{index}")
            for index, size in enumerate(sizes)
        )
        self.of_entry = list(of_entry)
        self._sizes = list(sizes)
        self._differences: dict[int, Difference] = {}
        self._factors: dict[int, tuple[Tensor, Tensor]] = {}
        self._planned: tuple[tuple[int, ...], tuple[Product, ...]] = ((), ())

    def whole(self, inputs_TN: Tensor) -> Tensor:
        """For rows that are all of the whole width."""
        return multiply(self.linears[0], inputs_TN)

    def num_inputs(self, counts: tuple[int, ...]) -> int:
        """How many inputs `forward` reads of a row."""
        return max(self._sizes[product.rows.matrix] for product in self._plan(counts))

    def forward(self, inputs_TN: Tensor, counts: tuple[int, ...]) -> Tensor:
        """For rows of any widths, widest first; `counts` as in `StepRows`. A row is 0 from its last neuron on."""
        outputs = [self._product(product, inputs_TN) for product in self._plan(counts)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _plan(self, counts: tuple[int, ...]) -> tuple[Product, ...]:
        """Most steps have the rows of the one before."""
        if self._planned[0] != counts:
            self._planned = (counts, plan_products(counts, self.of_entry, self._differences))
        return self._planned[1]

    def _product(self, product: Product, inputs_TN: Tensor) -> Tensor:
        rows = product.rows
        output_TH = multiply(self.linears[rows.matrix], inputs_TN[rows.first : rows.end, : self._sizes[rows.matrix]])
        for one in product.corrected:
            right_NR, left_RH = self._factors[one.matrix]
            inner_TR = inputs_TN[one.first : one.end, : self._sizes[one.matrix]] @ right_NR
            output_TH[one.first - rows.first : one.end - rows.first].addmm_(inner_TR, left_RH)
        return output_TH

    def compare(self, matrices: Sequence[Tensor]) -> None:
        """Find out which of these, in the order of `linears`, are the same, and by what the others differ. Before vLLM
        packs them."""
        for index, matrix in enumerate(matrices):
            same = next((one for one in range(index) if torch.equal(matrices[one], matrix)), None)
            if same is not None:
                self.of_entry = [same if one == index else one for one in self.of_entry]
            else:
                self._compare_with(index, matrices)

    def _compare_with(self, index: int, matrices: Sequence[Tensor]) -> None:
        """The bases of differences have none themselves."""
        for base in reversed([one for one in self.of_entry if one < index and one not in self._differences]):
            found = find_difference(matrices[index].float(), matrices[base].float())
            if found is not None:
                weight = cast(Tensor, self.linears[base].weight)
                left_HR, right_RN = (one.to(weight.device, weight.dtype) for one in found)
                self._differences[index] = Difference(base=base, rank=left_HR.shape[1])
                self._factors[index] = (right_RN.T.contiguous(), left_HR.T.contiguous())
                return

    def forget_unused(self) -> None:
        """Free the matrices that are the same as another."""
        for index in set(range(len(self.linears))) - set(self.of_entry):
            self.linears[index] = nn.Identity()
