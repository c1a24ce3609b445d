"""Whose soft targets a run trains on: those of all its teachers, or of the one that the switch has chosen."""

from collections.abc import Mapping
from typing import Any

from models.distill.config import DistillConfig
from models.distill.loss.objective import Teacher
from models.distill.teacher.switch import TeacherSwitch

OWN = "own"


class TeacherChoice:
    """`every` has all teachers by name; `own` runs the student's trunk and comes first."""

    def __init__(self, config: DistillConfig, own: Teacher, further: Mapping[str, Teacher]) -> None:
        self.own = own
        self.every = {OWN: own, **further}
        self._switch_steps = config.training.switch_steps
        is_switched = bool(further) and config.ensemble == "switch"
        self._switch = TeacherSwitch(list(self.every), config.switch) if is_switched else None

    @property
    def name(self) -> str:
        """The current teacher, for the log."""
        return OWN if self._switch is None else self._switch.current

    def current(self) -> list[Teacher]:
        """The teachers whose soft targets count now."""
        return list(self.every.values()) if self._switch is None else [self.every[self._switch.current]]

    def is_due(self, step: int) -> bool:
        """Whether the distances to all teachers are to be measured in this step, for `observe`."""
        return self._switch is not None and step % self._switch_steps == 0

    def observe(self, distances: Mapping[str, float]) -> None:
        """The mean KL from each teacher to the student."""
        assert self._switch is not None, "there is one choice only"
        self._switch.observe(distances)

    def state_dict(self) -> dict[str, Any] | None:
        return None if self._switch is None else self._switch.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Raises: ConfigError when the state is of other teachers."""
        if self._switch is not None:
            self._switch.load_state_dict(state)
