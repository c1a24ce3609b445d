"""Weights that follow what a run observes: of losses by how fast they fall, of modules by their gradients.

Small deterministic state machines over plain numbers (`models.distill.steering.plain_state`): they touch no tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

from models.distill.steering.plain_state import blend, from_plain, require_same_names, smoothing_problems, to_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightAverageConfig:
    """`window_steps` take the place of the paper's epochs; `smoothing` is the share of the past in the averages;
    `floor` is the weight that every term keeps at least."""

    window_steps: int = 50
    temperature: float = 2.0
    smoothing: float = 0.5
    floor: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if self.window_steps >= 1 else [f"window_steps must be at least 1, not {self.window_steps}"]
        if not self.temperature > 0:
            found.append(f"temperature must be above 0, not {self.temperature}")
        if not 0 <= self.floor <= 1:
            found.append(f"floor must be from 0 to 1, not {self.floor}")
        return found + smoothing_problems(self.smoothing)


@dataclass(kw_only=True, slots=True)
class _WeightAverageState:
    sums: dict[str, float]
    averages: dict[str, float]
    ratios: dict[str, float]
    num_steps: int = 0
    num_windows: int = 0


class DynamicWeightAverage:
    """More weight for the terms whose loss falls more slowly than the others'; the weights add up to their number.

    Source: Liu et al., arXiv 1803.10704, section 3.3; the moving average and the floor are ours.
    """

    def __init__(self, terms: Iterable[str], config: WeightAverageConfig) -> None:
        self._config = config
        names = tuple(terms)
        self._state = _WeightAverageState(
            sums=dict.fromkeys(names, 0.0), averages=dict.fromkeys(names, 0.0), ratios=dict.fromkeys(names, 1.0)
        )

    @property
    def weights(self) -> dict[str, float]:
        """All 1 until two windows are over."""
        config, ratios = self._config, self._state.ratios
        highest = max(ratios.values())
        powers = {term: exp((ratio - highest) / config.temperature) for term, ratio in ratios.items()}
        total = sum(powers.values())
        return {term: config.floor + (1 - config.floor) * len(ratios) * power / total for term, power in powers.items()}

    def observe(self, losses: Mapping[str, float]) -> None:
        """One step's losses, unweighted, of exactly the terms that are weighed."""
        state = self._state
        assert losses.keys() == state.sums.keys(), f"terms {sorted(losses)} for {sorted(state.sums)}"
        for term, loss in losses.items():
            state.sums[term] += loss
        state.num_steps += 1
        if state.num_steps == self._config.window_steps:
            self._end_window()

    def state_dict(self) -> dict[str, Any]:
        return to_plain(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: ConfigError when the state is of other terms."""
        loaded = from_plain(state, _WeightAverageState)
        require_same_names("loss terms", loaded.sums, self._state.sums)
        self._state = loaded

    def _end_window(self) -> None:
        state = self._state
        for term, total in state.sums.items():
            mean, before = total / state.num_steps, state.averages[term]
            now = mean if state.num_windows == 0 else blend(before, mean, self._config.smoothing)
            # A term that has reached zero has nothing left to slow down.
            state.ratios[term] = now / before if state.num_windows > 0 and before > 0 else 1.0
            state.averages[term] = now
            state.sums[term] = 0.0
        state.num_steps = 0
        state.num_windows += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientGuideConfig:
    """`strength` 0: no guidance, 1: in proportion to instability. Weights stay within `lowest` and `highest`."""

    strength: float = 1.0
    smoothing: float = 0.95
    warmup_steps: int = 20
    lowest: float = 0.5
    highest: float = 2.0

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if self.strength >= 0 else [f"strength must not be negative, not {self.strength}"]
        if self.warmup_steps < 1:
            found.append(f"warmup_steps must be at least 1, not {self.warmup_steps}")
        if not 0 < self.lowest <= 1 <= self.highest:
            found.append(f"lowest and highest must be above 0 and include 1, not {self.lowest}, {self.highest}")
        return found + smoothing_problems(self.smoothing)


@dataclass(kw_only=True, slots=True)
class _GradientGuideState:
    means: dict[str, float]
    variances: dict[str, float]
    num_steps: int = 0


class GradientGuided:
    """A larger share of the learning rate for the module whose gradient norm is unstable.

    Instability is the norm's standard deviation over its mean, both moving, so that large modules are not unstable for
    their size. A module's weight is its instability over the modules' mean instability, to the power of `strength`.
    """

    def __init__(self, modules: Iterable[str], config: GradientGuideConfig) -> None:
        self._config = config
        names = tuple(modules)
        self._state = _GradientGuideState(means=dict.fromkeys(names, 0.0), variances=dict.fromkeys(names, 0.0))

    @property
    def weights(self) -> dict[str, float]:
        """The factor of every module's learning rate; all 1 before `warmup_steps` or without any instability."""
        config, state = self._config, self._state
        spreads = {name: _spread(mean, state.variances[name]) for name, mean in state.means.items()}
        average = sum(spreads.values()) / len(spreads)
        if state.num_steps < config.warmup_steps or average == 0:
            return dict.fromkeys(spreads, 1.0)
        return {
            name: min(config.highest, max(config.lowest, (spread / average) ** config.strength))
            for name, spread in spreads.items()
        }

    def observe(self, norms: Mapping[str, float]) -> None:
        """One step's gradient norm of every module, before clipping.

        Source: Finch 2009, Incremental calculation of weighted mean and variance, section 9.
        """
        state = self._state
        assert norms.keys() == state.means.keys(), f"modules {sorted(norms)} for {sorted(state.means)}"
        fresh = 1 - self._config.smoothing
        for name, norm in norms.items():
            if state.num_steps == 0:
                state.means[name] = norm
                continue
            difference = norm - state.means[name]
            state.means[name] += fresh * difference
            state.variances[name] = (1 - fresh) * (state.variances[name] + fresh * difference**2)
        state.num_steps += 1

    def state_dict(self) -> dict[str, Any]:
        return to_plain(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: ConfigError when the state is of other modules."""
        loaded = from_plain(state, _GradientGuideState)
        require_same_names("modules", loaded.means, self._state.means)
        self._state = loaded


def _spread(mean: float, variance: float) -> float:
    return 0.0 if mean == 0 else float(variance**0.5 / mean)
