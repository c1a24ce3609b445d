"""Which stages run, and on what, so that paths share every module that they run on the same input."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.student.manifest import Manifest


@dataclass(slots=True, kw_only=True, frozen=True)
class StageRun:
    """One stage on the output of run `parent` (None: the embedding), with its KV in `slot`.

    `width` is that of a module's rows; exits have none.
    """

    stage: str
    parent: int | None
    slot: int
    width: str = ""


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
    """A stage that several paths reach with different inputs or at different widths runs once for each, in slots of its
    own."""
    runs: list[StageRun] = []
    known: dict[tuple[int | None, str, str], int] = {}
    exits = {}
    for name in paths:
        path = manifest.path(name)
        parent: int | None = None
        for stage in manifest.stages(path):
            width = path.width if stage in path.modules else ""
            key = (parent, stage, width)
            if key not in known:
                known[key] = len(runs)
                slot = sum(run.stage == stage for run in runs)
                runs.append(StageRun(stage=stage, parent=parent, slot=slot, width=width))
            parent = known[key]
        assert parent is not None
        exits[name] = parent
    return RunTree(runs=tuple(runs), exits=exits)
