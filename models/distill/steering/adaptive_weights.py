"""The weights of losses and exits in the next step, by the `weighting` that a run is configured with."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from models.distill.steering.schedules import Stage
from models.distill.steering.transfer_control import TransferConfig, TransferController
from models.distill.steering.weighting import (
    DynamicWeightAverage,
    GradientGuideConfig,
    GradientGuided,
    WeightAverageConfig,
)

SOFT = "soft_target_kl"
HARD = "task_cross_entropy"

Weighting = Literal["fixed", "dynamic_average", "gradient_guided", "controller"]


class WeightSettings(Protocol):
    """The parts of a `DistillConfig` that decide the weights."""

    @property
    def weighting(self) -> Weighting: ...

    @property
    def stages(self) -> Sequence[Stage]: ...

    @property
    def dynamic_average(self) -> WeightAverageConfig: ...

    @property
    def gradient_guided(self) -> GradientGuideConfig: ...

    @property
    def controller(self) -> TransferConfig: ...


class AdaptiveWeights:
    """`weights` and `module_weight` say how much everything counts now; `observe` takes in a step's results."""

    def __init__(self, config: WeightSettings, exits: Sequence[str]) -> None:
        self._config = config
        self._averages: dict[str, DynamicWeightAverage] = {}
        self._guide = GradientGuided(exits, config.gradient_guided) if config.weighting == "gradient_guided" else None
        self._controller = TransferController(config.controller) if config.weighting == "controller" else None
        self._seen_tokens = 0
        self._norms: dict[str, float] = {}

    def weights(self, stage: Stage) -> tuple[dict[str, float], float | None]:
        """The stage's weights as they are now, and the temperature where the controller sets it (else None)."""
        weights = dict(stage.weights)
        if self._controller is not None and weights.get(SOFT) and weights.get(HARD):
            total = weights[SOFT] + weights[HARD]
            weights[SOFT] = total * self._controller.kd_weight
            weights[HARD] = total - weights[SOFT]
        if self._config.weighting == "dynamic_average":
            average = self._average(stage)
            weights = {name: weight * average.weights[name] for name, weight in weights.items() if weight > 0}
        return weights, None if self._controller is None else self._controller.temperature

    def module_weight(self, exit: str) -> float:
        """The factor of an exit's learning rate."""
        return 1.0 if self._guide is None else self._guide.weights[exit]

    def observe(
        self,
        stage: Stage,
        sums: Mapping[str, Mapping[str, float]],
        norms: Mapping[str, float],
        num_tokens: int,
        temperature: float = 1.0,
    ) -> None:
        """`sums` are a step's terms by exit at this `temperature`, each exit's with its number of `passes`."""
        found = [terms for terms in sums.values() if "loss" in terms]
        if not found:
            return
        if self._guide is not None:
            self._observe_norms(self._guide, norms)
        if self._config.weighting == "dynamic_average":
            self._observe_terms(stage, found)
        if self._controller is not None:
            terms = [terms[SOFT] / terms["passes"] for terms in found if SOFT in terms]
            if terms:
                # The square of the temperature scales the loss for training; it says nothing about what was learned.
                divergence = sum(terms) / len(terms) / temperature**2
                self._controller.observe(divergence, num_tokens - self._seen_tokens)
        self._seen_tokens = num_tokens

    def _observe_norms(self, guide: GradientGuided, norms: Mapping[str, float]) -> None:
        """Exits that learned nothing in a step have no gradient: the guide observes norms once all exits have one."""
        self._norms |= norms
        if self._norms.keys() == guide.weights.keys():
            guide.observe(self._norms)
            self._norms = {}

    def _observe_terms(self, stage: Stage, found: Sequence[Mapping[str, float]]) -> None:
        """Use only exits that have all of the stage's terms: those with losses of their own may lack some."""
        names = _weighed(stage)
        whole = [terms for terms in found if all(name in terms for name in names)]
        if whole:
            self._average(stage).observe(
                {name: sum(terms[name] / terms["passes"] for terms in whole) / len(whole) for name in names}
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "averages": {name: average.state_dict() for name, average in self._averages.items()},
            "guide": None if self._guide is None else self._guide.state_dict(),
            "controller": None if self._controller is None else self._controller.state_dict(),
            "seen_tokens": self._seen_tokens,
            "norms": dict(self._norms),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for stage in self._config.stages:
            if stage.name in state["averages"]:
                self._average(stage).load_state_dict(state["averages"][stage.name])
        if self._guide is not None:
            self._guide.load_state_dict(state["guide"])
        if self._controller is not None:
            self._controller.load_state_dict(state["controller"])
        self._seen_tokens = state["seen_tokens"]
        self._norms = dict(state.get("norms", {}))  # earlier checkpoints had none

    def _average(self, stage: Stage) -> DynamicWeightAverage:
        if stage.name not in self._averages:
            self._averages[stage.name] = DynamicWeightAverage(_weighed(stage), self._config.dynamic_average)
        return self._averages[stage.name]


def _weighed(stage: Stage) -> list[str]:
    return [name for name, weight in stage.weights.items() if weight > 0]
