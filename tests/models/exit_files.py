"""A tiny exits file for the 4-layer models of `tests/conftest.py`: three exits, two of them behind one module."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.architecture import Architecture
from models.building.exits import ExitPlan, PlannedExit, PlannedModule, write_exits
from models.sources.source import ModelSource, expected_shapes
from models.student.manifest import DepthRule, StudentPath

Tensors = dict[str, npt.NDArray[np.float32]]

PLAN = ExitPlan(
    source_sha256="",
    modules=(
        PlannedModule(name="knowledge", num_layers=1),
        PlannedModule(name="reasoning", num_layers=2),
        PlannedModule(name="adapter", num_layers=1),
    ),
    exits=(
        PlannedExit(name="math_exit", after="knowledge", num_blocks=2, has_map=True, copied_from=(2, 3)),
        PlannedExit(name="fact_exit", after="knowledge", has_map=True, tasks=("fact",)),
        PlannedExit(name="legal_exit", after="reasoning", num_blocks=1, copied_from=(3,), tasks=("legal",)),
    ),
    paths=(
        StudentPath(name="math", modules=("knowledge",), exit="math_exit"),
        StudentPath(name="fact", modules=("knowledge",), exit="fact_exit"),
        # The first path's exit again: an order by modules alone would separate the two.
        StudentPath(name="riddle", modules=("knowledge",), exit="math_exit"),
        StudentPath(name="legal", modules=("knowledge", "reasoning"), exit="legal_exit"),
    ),
    tasks={"math": "math", "fact": "fact", "legal": "legal"},
    depth_rules=(DepthRule(max_prompt_tokens=64, path="fact"), DepthRule(max_prompt_tokens=None, path="legal")),
    training={"tokens": 12},
)


def plan_for(source: ModelSource, **fields: Any) -> ExitPlan:
    return msgspec.structs.replace(PLAN, source_sha256=source.sha256(), **fields)


def random_tensors(architecture: Architecture) -> Tensors:
    """Random as the tiny models are; the maps are near no rotation and no scaling, and their biases are large."""
    random = np.random.default_rng(11)
    hidden = architecture.hidden_size
    tensors = {}
    for exit in PLAN.exits:
        if exit.has_map:
            tensors[f"{exit.name}.map.weight"] = random.normal(0, 0.2, (hidden, hidden)) + np.eye(hidden)
            tensors[f"{exit.name}.map.bias"] = random.normal(0, 0.5, hidden)
        shapes = expected_shapes(msgspec.structs.replace(architecture, num_layers=exit.num_blocks))
        for name, shape in shapes.items():
            if name.startswith("model.layers."):
                values = random.normal(0, 0.2, shape) + ("norm" in name)
                tensors[f"{exit.name}.{name.removeprefix('model.')}"] = values
    return {name: values.astype(np.float32) for name, values in tensors.items()}


def write_tiny_exits(file: Path, source: ModelSource, **fields: Any) -> Path:
    write_exits(file, plan_for(source, **fields), random_tensors(source.architecture))
    return file
