"""How far a training run is, and the type of the function that reports it."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is, as its checkpoints keep it.

    Step `first_step` began with pass `first_pass` of the order: both are 0 until a run is resumed with other batches.
    `smoothed` and `best` have two values of an exit: its loss, and that without the square of the temperature.
    """

    step: int = 0
    num_tokens: int = 0
    smoothed: dict[str, tuple[float, float]] = field(default_factory=dict)
    best: dict[str, tuple[float, float]] = field(default_factory=dict)
    phase: str = ""
    phase_step: int = 0
    first_step: int = 0
    first_pass: int = 0

    @property
    def losses(self) -> dict[str, float]:
        """Every exit's smoothed loss."""
        return {name: loss for name, (loss, _) in self.smoothed.items()}


Reporter = Callable[[Progress, int], None]
"""Called after every step, with the progress and the number of steps there will be."""
