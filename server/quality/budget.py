"""How much of an engine's time scoring may still take."""

from dataclasses import dataclass

IN_HAND_S = 2.0
"""What may be saved up: a server that begins to work can score at once."""


@dataclass(slots=True)
class Budget:
    """Gains a share of the time that the engine works, and pays what scoring took of it. Units: seconds."""

    left_s: float = IN_HAND_S
    busy_s: float = 0.0
    background_s: float = 0.0

    def look(self, busy_s: float, background_s: float, share: float) -> float:
        """What is left, by the engine's clocks; below 0 when the last answer took longer than there was."""
        gained_s = share * max(0.0, busy_s - self.busy_s)
        self.left_s = min(self.left_s + gained_s, IN_HAND_S) - max(0.0, background_s - self.background_s)
        self.busy_s, self.background_s = busy_s, background_s
        return self.left_s
