"""Trained exits in one file: what they were trained for, behind which modules, and their weights.

A safetensors file in fp16. Its metadata key `fenhe` holds the `ExitPlan`; `{exit}.map.weight` and `{exit}.map.bias`
are an exit's linear map, `{exit}.layers.{i}.*` its decoder layers under their Hugging Face names.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from models.architecture import Architecture
from models.building.planned_file import PlanKind, read_planned, tensor_problems
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.file_writing import replacing
from models.graphs.rotate import MAP_BIAS, MAP_WEIGHT
from models.sources.derived_source import DerivedSource
from models.sources.safetensors_file import SafetensorsFile
from models.sources.source import ModelSource, expected_shapes
from models.student.cut import FULL_PATH, TASKS, full_path, own_end, stacked
from models.student.manifest import DepthRule, Exit, Layout, Record, StudentPath, layout_problems

FORMAT_VERSION = 1
METADATA_KEY = "fenhe"
REMEDY = "export the exits again with `fenhe distill`"

Array = npt.NDArray[np.float32]
Count = Annotated[int, Meta(ge=0)]


class PlannedModule(Record, frozen=True, kw_only=True):
    name: str
    num_layers: Annotated[int, Meta(ge=1)]


class PlannedExit(Record, frozen=True, kw_only=True):
    """A trained exit behind module `after`: its map, then its blocks, then the model's own final norm.

    `copied_from` are the layers its blocks were before training, `tasks` what it was trained for.
    """

    name: str
    after: str
    num_blocks: Count = 0
    has_map: bool = False
    copied_from: tuple[Count, ...] = ()
    tasks: tuple[str, ...] = ()


class ExitPlan(Record, frozen=True, kw_only=True):
    """What an exits file holds besides its weights.

    `source_sha256` is of the model that the exits were trained for. The model's own end and the full path need not be
    named; a task without a path takes the full one. `training` is whatever the model card should say.
    """

    format_version: int = FORMAT_VERSION
    source_sha256: str
    modules: tuple[PlannedModule, ...]
    exits: tuple[PlannedExit, ...]
    paths: tuple[StudentPath, ...]
    tasks: dict[str, str] = msgspec.field(default_factory=dict)
    depth_rules: tuple[DepthRule, ...] = ()
    training: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        return sum(module.num_layers for module in self.modules)

    def layout(self) -> Layout:
        """The plan as a student's manifest has it, with the model's own end and the full path."""
        modules = stacked((module.name, module.num_layers) for module in self.modules)
        full = full_path(modules)
        trained = (
            Exit(name=exit.name, after=exit.after, num_blocks=exit.num_blocks, has_map=exit.has_map, is_trained=True)
            for exit in self.exits
        )
        return Layout(
            modules=modules,
            exits=(*trained, own_end(modules)),
            paths=(*(path for path in self.paths if path != full), full),
            tasks=dict.fromkeys(TASKS, FULL_PATH) | self.tasks,
            depth_rules=self.depth_rules,
        )


def write_exits(file: Path, plan: ExitPlan, tensors: Mapping[str, npt.NDArray[np.floating[Any]]]) -> None:
    """Write an exits file atomically, in fp16; the same plan and tensors give the same bytes.

    Shapes: those of an exit's source, under the names in the file: `NAME.map.weight` [hidden, hidden] and so on.
    Raises: ConfigError for a plan that contradicts itself, WeightsError for values beyond the range of fp16.
    """
    from safetensors.numpy import save

    _refuse(file, find_problems(plan))
    halves = {}
    for name in sorted(tensors):
        with np.errstate(over="ignore"):
            halves[name] = np.ascontiguousarray(tensors[name], np.float16)
        if not np.isfinite(halves[name]).all():
            raise WeightsError(
                f"{file}: tensor {name} is not finite in fp16; train again from the last good checkpoint, "
                "with a lower learning rate"
            )
    text = msgspec.json.encode(plan, order="deterministic").decode()
    with replacing(file) as partial, partial.open("wb") as stream:
        stream.write(save(halves, metadata={METADATA_KEY: text}))
        stream.flush()
        os.fsync(stream.fileno())


EXITS = PlanKind(
    key=METADATA_KEY,
    plan=ExitPlan,
    format_version=FORMAT_VERSION,
    name="an exits file",
    missing="give the exits file that `fenhe distill` wrote",
    remedy=REMEDY,
)


def read_exits(file: Path) -> "Exits":
    """Open an exits file; its tensors stay on disk until a student is built from them.

    Raises: ConfigError (no exits file, contradictory plan), WeightsError (damaged or cut short).
    """
    stored, plan = read_planned(file, EXITS)
    _refuse(file, find_problems(plan))
    return Exits(file=file, plan=plan, stored=stored)


def find_problems(plan: ExitPlan) -> list[str]:
    """Everything inconsistent in a plan, as sentences; empty when it is sound."""
    if plan.format_version != FORMAT_VERSION:
        return [f"format_version {plan.format_version} is not {FORMAT_VERSION}"]
    if not plan.modules:
        return ["it names no modules"]
    problems = layout_problems(plan.layout())
    places = {module.name for module in plan.modules[:-1]}
    for exit in plan.exits:
        if exit.after not in places:
            problems.append(f"exit {exit.name!r} must stand behind a module before the last, not {exit.after!r}")
        if not exit.num_blocks and not exit.has_map:
            problems.append(f"exit {exit.name!r} has neither a map nor blocks")
    return problems


def _refuse(file: Path, problems: list[str]) -> None:
    if problems:
        raise ConfigError(f"{file}: {'; '.join(problems)}; {REMEDY}")


@dataclass(kw_only=True, frozen=True)
class Exits:
    """An exits file, opened."""

    file: Path
    plan: ExitPlan
    stored: SafetensorsFile

    @cached_property
    def sha256(self) -> str:
        return sha256_of([self.file])

    def check(self, base: ModelSource) -> None:
        """Check the file against the model that a student is to be built from. Reads every tensor, one at a time.

        Raises: ConfigError (trained for another model or another depth), WeightsError (missing, misshapen or unknown
        tensors, named together; one that is not finite).
        """
        if self.plan.source_sha256 != base.sha256():
            raise ConfigError(
                f"{self.file}: the exits were trained for a model with SHA-256 {self.plan.source_sha256[:12]}..., and "
                f"{base.name} ({base.files[0]}) has {base.sha256()[:12]}...; build from that model, "
                "or train exits for this one with `fenhe distill`"
            )
        num_layers = base.architecture.num_layers
        if self.plan.num_layers != num_layers:
            raise ConfigError(
                f"{self.file}: its modules have {self.plan.num_layers} layers, the model has {num_layers}; {REMEDY}"
            )
        expected: dict[str, tuple[int, ...]] = {}
        for exit in self.plan.exits:
            expected |= {_stored(exit, name): shape for name, shape in _shapes(exit, base.architecture).items()}
        self._check_tensors(expected)
        if unknown := sorted(self.stored.tensors.keys() - expected.keys()):
            raise WeightsError(f"{self.file} has tensors of no exit: {', '.join(unknown)}; {REMEDY}")
        for name in expected:
            self.read(name)

    def source_for(self, exit_name: str, base: ModelSource) -> "ExitSource":
        """An exit's map and blocks as a model of its own, with the embedding, final norm and head of `base`.

        Raises: ConfigError for a name that no exit has, WeightsError for missing or misshapen tensors.
        """
        exit = next((exit for exit in self.plan.exits if exit.name == exit_name), None)
        if exit is None:
            known = ", ".join(exit.name for exit in self.plan.exits) or "none"
            raise ConfigError(f"{self.file} has no exit {exit_name!r}, only {known}; name one of those")
        shapes = _shapes(exit, base.architecture)
        self._check_tensors({_stored(exit, name): shape for name, shape in shapes.items()})
        return ExitSource(self, exit, base)

    def read(self, name: str) -> Array:
        """A tensor under its name in the file. Shapes: as stored; matrices are [out, in].

        Raises: WeightsError for numbers that are not finite.
        """
        values = self.stored.read(name)
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{self.file}: tensor {name} is not finite: training diverged, or the file is damaged; {REMEDY}"
            )
        return values

    def _check_tensors(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        if problems := tensor_problems(self.stored, expected, may_have_others=True):
            raise WeightsError(f"{self.file} does not hold what its plan says: {'; '.join(problems)}; {REMEDY}")


class ExitSource(DerivedSource):
    """A `ModelSource` whose layers are an exit's blocks, and whose other tensors are those of the base model."""

    def __init__(self, exits: Exits, exit: PlannedExit, base: ModelSource) -> None:
        super().__init__(base, msgspec.structs.replace(base.architecture, num_layers=exit.num_blocks), exits.file)
        self._exits = exits
        self._exit = exit
        self._own = _shapes(exit, base.architecture)

    @property
    def name(self) -> str:
        return f"{self._base.name} {self._exit.name}"

    def tensor_names(self) -> frozenset[str]:
        shared = (name for name in self._base.tensor_names() if not name.startswith("model.layers."))
        return frozenset((*shared, *self._own))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._own[name] if name in self._own else self._base.shape(self._shared(name))

    def read(self, name: str) -> Array:
        """Shapes: as in the base model; the map is [hidden, hidden], its bias [hidden]."""
        if name in self._own:
            return self._exits.read(_stored(self._exit, name))
        return self._base.read(self._shared(name))

    def _shared(self, name: str) -> str:
        """The name, unless it is of a layer: a layer of the base would be mistaken for a block of the exit."""
        if name.startswith("model.layers."):
            raise WeightsError(f"{self._exits.file}: exit {self._exit.name!r} has no tensor {name}; {REMEDY}")
        return name


def _shapes(exit: PlannedExit, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """An exit's own tensors under the names of its source."""
    blocks = expected_shapes(msgspec.structs.replace(architecture, num_layers=exit.num_blocks))
    shapes = {name: shape for name, shape in blocks.items() if name.startswith("model.layers.")}
    if exit.has_map:
        hidden = architecture.hidden_size
        shapes |= {MAP_WEIGHT: (hidden, hidden), MAP_BIAS: (hidden,)}
    return shapes


def _stored(exit: PlannedExit, name: str) -> str:
    """The name in the file of a tensor of an exit's source."""
    return f"{exit.name}.{name.removeprefix('model.')}"
