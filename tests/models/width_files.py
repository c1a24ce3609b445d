"""A tiny widths file for 4-layer models with 256 neurons in a layer: three widths, some with as many neurons as another
in some layers, one with output matrices of attention of its own."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.architecture import Architecture
from models.building.width_file import NarrowPath, WidthPlan, write_width_file
from models.sources.source import ModelSource
from models.student.manifest import Width

Tensors = dict[str, npt.NDArray[Any]]

NUM_NEURONS = 256
WIDTHS = (
    Width(name="wide", neurons=(192, 192, 256, 192)),
    Width(name="mid", neurons=(192, 128, 128, 64), has_own_output=True),
    Width(name="slim", neurons=(64, 64, 128, 64)),
)
PLAN = WidthPlan(
    source_sha256="",
    widths=WIDTHS,
    paths=(
        NarrowPath(name="wide", width="wide"),
        NarrowPath(name="middle", width="mid"),
        NarrowPath(name="slim", width="slim"),
    ),
    training={"tokens": 12},
)
MIXED = {"almost": ("", "wide", "", "wide"), "between": ("wide", "wide", "mid", "mid")}
"""Two widths without matrices of their own: some layers whole and the others of `wide`, and half `wide`, half `mid`."""
MIXED_WIDTHS = (
    Width(name="almost", neurons=(256, 192, 256, 192)),
    WIDTHS[0],
    Width(name="between", neurons=(192, 192, 128, 64), has_own_output=True),
    *WIDTHS[1:],
)
MIXED_PATHS = (
    NarrowPath(name="almost", width="almost"),
    *PLAN.paths,
    NarrowPath(name="between", width="between"),
)


def width_plan_for(source: ModelSource, **fields: Any) -> WidthPlan:
    return msgspec.structs.replace(PLAN, **{"source_sha256": source.sha256(), **fields})


def random_width_tensors(
    architecture: Architecture, widths: tuple[Width, ...] = WIDTHS, *, rank: int | None = None
) -> Tensors:
    """Random as the tiny models are; no order is the model's own. With `rank`, W_down of the other widths differs from
    the widest's by as much, and the narrowest's not at all."""
    random = np.random.default_rng(23)
    tensors: Tensors = {}
    for layer in range(architecture.num_layers):
        tensors[f"order.{layer}"] = random.permutation(architecture.intermediate_size).astype(np.int16)
        for width in widths:
            shape = (architecture.hidden_size, width.neurons[layer])
            down = random.normal(0, 0.2, shape).astype(np.float32)
            if rank is not None and width is not widths[0]:
                left, right = down[:, :rank], random.normal(0, 1, (rank, shape[1])).astype(np.float32)
                widest = tensors[f"{widths[0].name}.layers.{layer}.down"][:, : shape[1]]
                down = widest + left @ right if width is not widths[-1] else widest.copy()
            tensors[f"{width.name}.layers.{layer}.down"] = down
            if width.has_own_output:
                shape = (architecture.hidden_size, architecture.q_size)
                tensors[f"{width.name}.layers.{layer}.output"] = random.normal(0, 0.2, shape).astype(np.float16)
    return tensors


def write_tiny_widths(file: Path, source: ModelSource, *, rank: int | None = None, **fields: Any) -> Path:
    """Write the file; returns it."""
    plan = width_plan_for(source, **fields)
    write_width_file(file, plan, random_width_tensors(source.architecture, plan.own_widths, rank=rank))
    return file
