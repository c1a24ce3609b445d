"""How much each loss of an exit counts at a point of the run, and the temperature of its soft targets."""

from collections.abc import Sequence

from models.distill.config import DistillConfig
from models.distill.network.exit_model import ExitModel
from models.distill.steering.adaptive_weights import AdaptiveWeights
from models.distill.steering.schedules import alignment_weights_at, stage_at, temperature_at


class LossWeights:
    """The stage's weights as `adaptive` has changed them; an exit's own `losses` replace them where it has some."""

    def __init__(self, config: DistillConfig, exits: Sequence[ExitModel], adaptive: AdaptiveWeights) -> None:
        self._config = config
        self._exits = list(exits)
        self._adaptive = adaptive

    def at(self, share: float, exit: ExitModel) -> tuple[dict[str, float], float]:
        """The weights by loss and the temperature, when `share` of the run is done."""
        stage, _ = stage_at(self._config.stages, share)
        weights, temperature = self._adaptive.weights(stage)
        temperature = temperature or stage.temperature or temperature_at(self._config.temperature, share)
        weights = dict(exit.losses) or weights
        if self._config.alignment is not None:
            errors = [other.map_error for other in self._exits]
            grown = alignment_weights_at(self._config.alignment, share, errors)
            weights = {**weights, "module_alignment": grown[self._exits.index(exit)]}
        return weights, temperature
