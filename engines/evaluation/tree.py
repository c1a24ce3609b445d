"""Which stages run, and on what, so that paths share every module that they run on the same input."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.student.manifest import Manifest


@dataclass(slots=True, kw_only=True, frozen=True)
class StageRun:
    """One stage on the output of run `parent` (None: the embedding), with its KV in `slot`."""

    stage: str
    parent: int | None
    slot: int


@dataclass(slots=True, kw_only=True, frozen=True)
class RunTree:
    """Runs, parents first, and which of them is every path's exit."""

    runs: tuple[StageRun, ...]
    exits: dict[str, int]

    @property
    def num_slots(self) -> int:
        return 1 + max(run.slot for run in self.runs)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.stage for run in self.runs))


def make_tree(manifest: Manifest, paths: Sequence[str]) -> RunTree:
    """A stage that several paths reach with different inputs runs once for each, in slots of its own."""
    runs: list[StageRun] = []
    known: dict[tuple[int | None, str], int] = {}
    exits = {}
    for path in paths:
        parent: int | None = None
        for stage in manifest.stages(manifest.path(path)):
            if (parent, stage) not in known:
                known[parent, stage] = len(runs)
                slot = sum(run.stage == stage for run in runs)
                runs.append(StageRun(stage=stage, parent=parent, slot=slot))
            parent = known[parent, stage]
        assert parent is not None
        exits[path] = parent
    return RunTree(runs=tuple(runs), exits=exits)
