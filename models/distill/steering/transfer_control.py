"""Adaptive distillation: watches how fast the student still learns from the teacher, and adapts the soft targets.

A small deterministic state machine over plain numbers (`models.distill.steering.plain_state`): it touches no tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.distill.steering.plain_state import from_plain, to_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig:
    """Where temperature and KD weight start and how far they may go, and when they move.

    `stalled_below` and `rising_above` are shares of the loss per million tokens: a fall by less than the former over
    `patience` windows is a stall, a rise by more than the latter over as many is a rise; otherwise nothing moves.
    """

    temperature: float = 2.0
    lowest_temperature: float = 0.5
    highest_temperature: float = 4.0
    kd_weight: float = 0.75
    lowest_kd_weight: float = 0.5
    highest_kd_weight: float = 0.95
    temperature_factor: float = 0.8
    kd_weight_step: float = 0.05
    window_tokens: int = 50_000
    patience: int = 2
    stalled_below: float = 0.1
    rising_above: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [
            f"{name} must be at least 1, not {getattr(self, name)}"
            for name in ("window_tokens", "patience")
            if getattr(self, name) < 1
        ]
        found += [
            f"{name} must not be negative, not {getattr(self, name)}"
            for name in ("kd_weight_step", "stalled_below", "rising_above")
            if not getattr(self, name) >= 0
        ]
        if not 0 < self.temperature_factor <= 1:
            found.append(f"temperature_factor must be above 0 and at most 1, not {self.temperature_factor}")
        if not 0 < self.lowest_temperature <= self.temperature <= self.highest_temperature:
            found.append("temperature must be above 0 and within lowest_temperature and highest_temperature")
        if not 0 <= self.lowest_kd_weight <= self.kd_weight <= self.highest_kd_weight <= 1:
            found.append("kd_weight must be within lowest_kd_weight and highest_kd_weight, and those within 0 and 1")
        return found


@dataclass(kw_only=True, slots=True)
class _TransferState:
    temperature: float
    kd_weight: float
    loss_sum: float = 0.0
    num_tokens: int = 0
    previous_loss: float | None = None
    num_stalled: int = 0
    num_rising: int = 0


class TransferController:
    """Watches transfer efficiency, the loss decrease per token, and moves temperature and KD weight within bounds.

    A stall means that soft targets have little left to teach: sharper targets, more of the task. A rising loss means
    that the student cannot follow: softer targets, more of the teacher. It takes the place of a temperature schedule.
    """

    def __init__(self, config: TransferConfig) -> None:
        self._config = config
        self._state = _TransferState(temperature=config.temperature, kd_weight=config.kd_weight)

    @property
    def temperature(self) -> float:
        return self._state.temperature

    @property
    def kd_weight(self) -> float:
        """The teacher's share of the loss; the task has the rest."""
        return self._state.kd_weight

    def observe(self, loss: float, num_tokens: int) -> None:
        """One step's mean KL over its tokens, without weights and without the square of the temperature. Only losses at
        the same temperature are compared: after a move the comparison starts afresh."""
        state = self._state
        state.loss_sum += loss * num_tokens
        state.num_tokens += num_tokens
        if state.num_tokens >= self._config.window_tokens:
            self._end_window(state.loss_sum / state.num_tokens)

    def state_dict(self) -> dict[str, Any]:
        return to_plain(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: ConfigError when it is not the state of a controller."""
        self._state = from_plain(state, _TransferState)

    def _end_window(self, loss: float) -> None:
        config, state = self._config, self._state
        if state.previous_loss is not None and state.previous_loss > 0:
            efficiency = (state.previous_loss - loss) / state.previous_loss / state.num_tokens * 1e6
            is_rising = efficiency < -config.rising_above
            is_stalled = not is_rising and efficiency < config.stalled_below
            state.num_rising = state.num_rising + 1 if is_rising else 0
            state.num_stalled = state.num_stalled + 1 if is_stalled else 0
        state.previous_loss = loss
        state.loss_sum, state.num_tokens = 0.0, 0
        if state.num_stalled >= config.patience:
            self._move(config.temperature_factor, -config.kd_weight_step)
        elif state.num_rising >= config.patience:
            self._move(1 / config.temperature_factor, config.kd_weight_step)

    def _move(self, factor: float, step: float) -> None:
        config, state = self._config, self._state
        temperature, kd_weight = state.temperature * factor, state.kd_weight + step
        state.temperature = min(config.highest_temperature, max(config.lowest_temperature, temperature))
        state.kd_weight = min(config.highest_kd_weight, max(config.lowest_kd_weight, kd_weight))
        # The next windows are judged anew, from a loss measured after the move.
        state.num_stalled, state.num_rising, state.previous_loss = 0, 0, None
