"""What a bench says about the machine it ran on."""

from engines.machine import Description

BUSY_LOAD = 0.5
"""Load per core above which the figures are doubtful."""


def note_busy(machine: Description, consequence: str) -> list[str]:
    """A warning if other processes were busy at the start; `consequence` says what that does to the figures."""
    load, cores = machine["load_1min"], machine["cores"]
    if not (isinstance(load, float) and isinstance(cores, int) and load > cores * BUSY_LOAD):
        return []
    return [f"the machine was busy at the start (load {load} on {cores} cores): {consequence}"]
