"""The layers of a model for steps that are not plain, compiled where vLLM compiles on a CPU.

vLLM's own compiled model runs every layer for every row. Here the layers between two depths at which paths end are one
graph each, called as far as a step goes; in it, what depends on the rows' widths is an operator (`layers.py`).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.platforms import current_platform

from engines.vllm.form import ServedForm


class Trunk:
    """The first layers of a model, up to any depth at which a path of the form ends and not every row runs everything.

    `num_layers` are the most that it runs, 0 where all steps are plain.
    """

    def __init__(self, model: Any, form: ServedForm, vllm_config: VllmConfig) -> None:
        self._model = model
        num_layers = len(model.layers)
        ends = sorted({path.num_layers for path in form.paths.values() if form.widths or path.num_layers < num_layers})
        self._segments = [
            (end, _segment_class(number)(layers=tuple(model.layers[first:end]), vllm_config=vllm_config))
            for number, (first, end) in enumerate(pairwise([0, *ends]))
        ]
        self.num_layers = ends[-1] if ends else 0

    def __call__(self, hidden_TH: Tensor, positions_T: Tensor, num_layers: int) -> Tensor:
        residual_TH = None
        for end, segment in self._segments:
            if end <= num_layers:
                hidden_TH, residual_TH = segment(positions_T, hidden_TH, residual_TH)
        normed_TH: Tensor = self._model.norm(hidden_TH, residual_TH)[0]
        return normed_TH


def _segment_class(number: int) -> Any:
    """A class for each segment: vLLM finds what it has compiled by the name of a class's `forward`."""

    class Segment(nn.Module):
        def __init__(self, *, layers: Iterable[nn.Module], vllm_config: VllmConfig) -> None:
            super().__init__()
            self.layers = layers  # a tuple: they are the model's already

        def forward(
            self, positions_T: Tensor, hidden_TH: Tensor, residual_TH: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            for layer in self.layers:
                hidden_TH, residual_TH = layer(positions_T, hidden_TH, residual_TH)
            return hidden_TH, residual_TH

    Segment.forward.__qualname__ = f"Segment{number}.forward"
    # A captured CUDA graph knows no rows, so that on a GPU such steps run eagerly.
    compiled = support_torch_compile(
        dynamic_arg_dims={"positions_T": 0, "hidden_TH": 0, "residual_TH": 0},
        enable_if=lambda config: current_platform.is_cpu(),
    )
    return compiled(Segment)
