"""An exit as it is trained: a linear map of the trunk's state, copied decoder layers, the frozen final norm.

The map is fitted in closed form to the state that the copied layer read in the teacher: an exit then starts where a
run without the fit is after hundreds of steps (docs/distillation.md has the figures). The norm stays the model's own,
so that the shared head, which may have that norm folded into it, reads every exit alike.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.distill.network.decoder import DecoderLayer, Trunk
from models.distill.network.quantised import quantised
from models.errors import ConfigError

RIDGE = 1e-3
"""The ridge, as a share of each input channel's own energy: weak channels do not get large weights."""
FIT_CHUNK_TOKENS = 8192


class ExitModel(nn.Module):
    """One exit behind `depth` layers of the trunk. `copied_from` are the layers its blocks begin as.

    `tasks` it is trained on (none: all), by the weights in `losses` (none: the stage's). `map_error` is the
    error that `fit_map` left, `precision` what `quantise` set.
    """

    map_HH: nn.Parameter | None
    map_bias_H: nn.Parameter | None

    def __init__(
        self,
        trunk: Trunk,
        *,
        name: str,
        depth: int,
        copied_from: tuple[int, ...],
        has_map: bool,
        tasks: tuple[str, ...] = (),
        losses: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.tasks = tasks
        self.losses = dict(losses or {})
        self.map_error = 0.0
        self.precision: str | None = None
        self.depth = depth
        self.copied_from = copied_from
        self.trunk = trunk
        self.blocks = nn.ModuleList(trunk.copy_of(layer) for layer in copied_from)
        self.computed: list[DecoderLayer] = list(self.layers())
        hidden_size = trunk.architecture.hidden_size
        if has_map:
            self.map_HH = nn.Parameter(torch.eye(hidden_size, device=trunk.device))
            self.map_bias_H = nn.Parameter(torch.zeros(hidden_size, device=trunk.device))
        else:
            self.map_HH = self.map_bias_H = None

    @property
    def target_layer(self) -> int:
        """How many layers come before the layer that the first block was copied from; all of them without a block."""
        return self.copied_from[0] if self.copied_from else self.trunk.architecture.num_layers

    def enter(self, hidden_BTH: Tensor) -> Tensor:
        """The first block's input: the state after the map, where there is one. Shapes: [B, T, H] in and out."""
        if self.map_HH is None or self.map_bias_H is None:
            return hidden_BTH
        return linear(hidden_BTH, self.map_HH.to(hidden_BTH.dtype), self.map_bias_H.to(hidden_BTH.dtype))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """From the trunk's state behind `depth` layers to the head's input. Shapes: [B, T, H] in and out."""
        return self.leave(self.enter(hidden_BTH))

    def leave(self, hidden_BTH: Tensor) -> Tensor:
        """From what `enter` gives to the head's input. Shapes: [B, T, H] in and out."""
        for block in self.computed:
            hidden_BTH = block(hidden_BTH)
        return self.trunk.norm(hidden_BTH)

    def branch(self, task: str) -> "ExitModel":
        """A copy with the same weights that learns one task."""
        copy = ExitModel(
            self.trunk,
            name=f"{self.name}.{task}",
            depth=self.depth,
            copied_from=self.copied_from,
            has_map=self.map_HH is not None,
            tasks=(task,),
            losses=self.losses,
        )
        copy.load_state_dict(self.state_dict())
        copy.map_error = self.map_error
        return copy

    def quantise(self, precision: str) -> None:
        """From now on the blocks compute with the numbers that their graph at `precision` will hold."""
        self.precision = precision
        self.computed = [quantised(block, precision) for block in self.layers()]

    def trained(self) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def layers(self) -> Iterator[DecoderLayer]:
        for block in self.blocks:
            assert isinstance(block, DecoderLayer)
            yield block

    def tensors(self) -> dict[str, Tensor]:
        """Trained weights under the names of the exits file, below `NAME.`. Shapes: [out, in], [out]."""
        found: dict[str, Tensor] = {}
        if self.map_HH is not None and self.map_bias_H is not None:
            found = {"map.weight": self.map_HH.detach(), "map.bias": self.map_bias_H.detach()}
        for index, block in enumerate(self.layers()):
            found |= {f"layers.{index}.{name}": value for name, value in block.tensors()}
        return found

    @torch.no_grad()
    def fit_map(self, inputs_NH: Tensor, targets_NH: Tensor) -> float:
        """Set the map to the ridge regression from the trunk's states to `target_layer`'s.

        Every token weighs by the inverse of its target's energy; otherwise the few tokens with huge states would decide
        the fit. Returns the relative squared error on these tokens.

        Shapes: [N, H] both, one row per token.
        Source: linear shortcuts between layers, arXiv 2303.09435, section 3.
        Raises: ConfigError when the exit has no map or there are fewer tokens than channels.
        """
        if self.map_HH is None or self.map_bias_H is None:
            raise ConfigError(f"exit {self.name!r} has no map to fit")
        size = inputs_NH.shape[1]
        if len(inputs_NH) < 2 * size:
            raise ConfigError(
                f"exit {self.name!r}: {len(inputs_NH)} tokens are too few to fit a map of {size} channels; "
                "give more text, or set has_map = false"
            )
        gram, moment = torch.zeros(size + 1, size + 1), torch.zeros(size + 1, size)
        for inputs, targets in zip(
            torch.split(inputs_NH, FIT_CHUNK_TOKENS), torch.split(targets_NH, FIT_CHUNK_TOKENS), strict=True
        ):
            extended, wanted, weight_N1 = _weighted(inputs, targets)
            gram += extended.T @ (extended * weight_N1)
            moment += extended.T @ (wanted * weight_N1)
        energy = gram.diagonal().double()
        # A channel that is always zero has no energy of its own, and would leave nothing to solve.
        ridge = (RIDGE * energy).clamp_min(RIDGE * 1e-9 * float(energy.max()))
        solved = torch.linalg.solve(gram.double() + ridge.diag(), moment.double()).float()
        self.map_HH.copy_(solved[:-1].T)
        self.map_bias_H.copy_(solved[-1])
        self.map_error = self._error(inputs_NH[:FIT_CHUNK_TOKENS], targets_NH[:FIT_CHUNK_TOKENS])
        return self.map_error

    def _error(self, inputs_NH: Tensor, targets_NH: Tensor) -> float:
        wanted = targets_NH.float().to(self.trunk.device)
        error = self.enter(inputs_NH.float().to(self.trunk.device)) - wanted
        return float((error.square().sum(-1) / wanted.square().sum(-1)).mean())


def _weighted(inputs_NH: Tensor, targets_NH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with a channel of ones, targets, and the tokens' weights."""
    inputs, targets = inputs_NH.float(), targets_NH.float()
    extended = torch.cat((inputs, torch.ones(len(inputs), 1)), dim=1)
    return extended, targets, 1 / targets.square().mean(dim=1, keepdim=True).clamp_min(1e-12)
