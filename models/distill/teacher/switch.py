"""Several teachers: the choice of the one that teaches now, and the mean of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from models.distill.steering.plain_state import blend, from_plain, smoothing_problems, to_plain
from models.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSwitchConfig:
    """A teacher is mastered below a KL of `mastered_below` nats; before that, another one replaces it only when it is
    nearer to the student by `margin` of the current teacher's KL."""

    mastered_below: float = 0.2
    margin: float = 0.1
    smoothing: float = 0.9

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if self.mastered_below >= 0 else [f"mastered_below must not be negative, not {self.mastered_below}"]
        if not 0 <= self.margin < 1:
            found.append(f"margin must be from 0 to below 1, not {self.margin}")
        return found + smoothing_problems(self.smoothing)


@dataclass(kw_only=True, slots=True)
class _TeacherSwitchState:
    current: str
    distances: dict[str, float] = field(default_factory=dict)


class TeacherSwitch:
    """Of several teachers the one that is nearest to the student and not mastered yet, so that every step is small.

    When all are mastered, the farthest. Begins with the first teacher; ties go to the earlier one.
    Source: the gap between teacher and student, Mirzadeh et al., arXiv 1902.03393, section 3.
    """

    def __init__(self, teachers: Sequence[str], config: TeacherSwitchConfig) -> None:
        self._config = config
        self._teachers = tuple(teachers)
        self._state = _TeacherSwitchState(current=self._teachers[0])

    @property
    def current(self) -> str:
        return self._state.current

    def observe(self, divergences: Mapping[str, float]) -> str:
        """Take in the mean KL from each teacher to the student, of all or some of them; returns who teaches next.

        A teacher that was never measured is not chosen.
        """
        assert set(divergences) <= set(self._teachers), f"teachers {sorted(divergences)} for {self._teachers}"
        state = self._state
        for teacher, divergence in divergences.items():
            before = state.distances.get(teacher, divergence)
            state.distances[teacher] = blend(before, divergence, self._config.smoothing)
        state.current = self._chosen()
        return state.current

    def state_dict(self) -> dict[str, Any]:
        return to_plain(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: ConfigError when the state is of other teachers."""
        loaded = from_plain(state, _TeacherSwitchState)
        strangers = {loaded.current, *loaded.distances} - set(self._teachers)
        if strangers:
            raise ConfigError(
                f"the checkpoint names teachers {', '.join(sorted(strangers))}, which the config does not; "
                "add them again or start without --resume"
            )
        self._state = loaded

    def _chosen(self) -> str:
        config, state = self._config, self._state
        measured = [teacher for teacher in self._teachers if teacher in state.distances]
        ahead = [teacher for teacher in measured if state.distances[teacher] >= config.mastered_below]
        if not ahead:
            return max(measured, key=state.distances.__getitem__, default=state.current)
        nearest = min(ahead, key=state.distances.__getitem__)
        is_near_enough = state.distances[nearest] > (1 - config.margin) * state.distances.get(state.current, 0.0)
        return state.current if state.current in ahead and is_near_enough else nearest


def ensemble_logits(teacher_logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Logits whose softmax is the (weighted) mean of the teachers' probabilities.

    Shapes: [N, V] each, returns [N, V]. Source: Hinton et al., arXiv 1503.02531, section 1 (arithmetic mean).
    """
    stacked = torch.stack([log_softmax(logits_NV.float(), dim=-1) for logits_NV in teacher_logits])
    shares = stacked.new_tensor(weights if weights is not None else [1.0] * len(teacher_logits))
    return (stacked + (shares / shares.sum()).log()[:, None, None]).logsumexp(dim=0)
