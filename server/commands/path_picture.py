"""A path as one line of text: the modules of the student, those that ran lit as high as the path is wide."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

LEVELS = "▁▂▃▄▅▆▇█"
UNLIT = "·"
CELLS = 6
"""Of a module."""
COLOURS = ("36", "35", "33", "32")
DIM = "2"


@dataclass(slots=True, kw_only=True, frozen=True)
class PathShape:
    """`compute` is the share of the full path's. `is_narrow`: its modules do not run at their whole width."""

    student: str
    path: str
    modules: tuple[str, ...]
    is_narrow: bool
    compute: float
    model: str


@dataclass(slots=True, kw_only=True, frozen=True)
class Paint:
    """Colours for a terminal that has them."""

    is_on: bool

    def __call__(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.is_on else text


def paint_for(out: TextIO, environ: Mapping[str, str] = os.environ) -> Paint:
    """Colours on a terminal, unless NO_COLOR asks for none (no-color.org)."""
    return Paint(is_on=out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb")


def read_shapes(models: Mapping[str, Any]) -> list[PathShape]:
    """The paths in an answer of GET /v1/models. Servers that are not fenhe have none."""
    listed = [(str(model["id"]), model["fenhe"]) for model in models.get("data", []) if "fenhe" in model]
    return [
        PathShape(
            student=told["student"],
            path=told["path"],
            modules=tuple(told["modules"]),
            is_narrow=told["width"] is not None,
            compute=told["compute_share"],
            model=name,
        )
        for name, told in listed
        if not told["is_routed"]
    ]


def draw(shape: PathShape, every: Sequence[PathShape], paint: Paint) -> str:
    """The modules in order, as the student's longest path has them."""
    longest = max((one.modules for one in every if one.student == shape.student), key=len, default=shape.modules)
    level = LEVELS[max(0, min(7, round(shape.compute * 8) - 1))] if shape.is_narrow else LEVELS[-1]
    drawn = []
    for number, module in enumerate(longest):
        is_lit = module in shape.modules
        bar = (level if is_lit else UNLIT) * CELLS
        drawn.append(paint(f"{module} {bar}", COLOURS[number % len(COLOURS)] if is_lit else DIM))
    return " ".join(drawn)
