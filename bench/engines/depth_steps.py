"""Decode steps of one depth and of several."""

from collections.abc import Sequence

from engines.contract import DecodeRow, StepInput
from models.student.folder import Student


def prefix_paths(student: Student) -> list[str]:
    """The paths that run the first one, two, ... modules: the depths a step can mix. Shallowest first."""
    names = tuple(module.name for module in student.manifest.modules)
    by_modules = {path.modules: path.name for path in student.manifest.paths if not path.width}
    prefixes = [names[:count] for count in range(1, len(names) + 1)]
    return [by_modules[prefix] for prefix in prefixes if prefix in by_modules]


def decode_step(paths: Sequence[str], position: int) -> StepInput:
    return StepInput(decode=tuple(DecodeRow(path=path, position=position, token_id=1) for path in paths))


def uniform_steps(paths: Sequence[str], rows_per_path: int, position: int) -> dict[str, StepInput]:
    """For every depth, a step of that path and of the path before, at the rows its last module has when mixed."""
    steps = {}
    for depth, path in enumerate(paths):
        num_rows = rows_per_path * (len(paths) - depth)
        for name in (paths[max(depth - 1, 0)], path):
            steps[f"{name}:{num_rows}"] = decode_step([name] * num_rows, position)
    return steps
