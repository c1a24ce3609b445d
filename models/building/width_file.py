"""The widths of a model in one file: each layer's order of neurons, and the matrices that belong to a width alone.

A safetensors file. Its metadata key `fenhe` holds the `WidthPlan`. `order.{layer}` [intermediate] is a permutation of
the layer's neurons, of which a width has the first ones; `{width}.layers.{layer}.down` [hidden, neurons] is the
matrix that a width multiplies them with, columns in that order; `{width}.layers.{layer}.output` [hidden, q_size] is
its output matrix of attention, where the plan says that it has one. Each may have a compact form instead
(`models/building/width_encoding.py`): int8, or a difference from the widest width's, or, for `output` of the widest
that has one alone, from the model's own. A mixed width has no matrices of its own: each of its layers takes those of
another width, or the model's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from models.architecture import Architecture
from models.building.planned_file import PlanKind, read_planned, tensor_problems
from models.building.width_encoding import decode_difference, decode_int8, num_groups
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.file_writing import write_whole
from models.graphs.widths import LayerWidths, own_down, own_output
from models.sources.derived_source import DerivedSource
from models.sources.safetensors_file import SafetensorsFile
from models.sources.source import ModelSource
from models.student.manifest import DepthRule, Layout, Record, StudentPath, Width, layout_problems, width_problems

FORMAT_VERSION = 1
METADATA_KEY = "fenhe"
REMEDY = "export the widths again for this model"

Array = npt.NDArray[np.float32]
Part = Literal["down", "output"]


class NarrowPath(Record, frozen=True, kw_only=True):
    """A path at a width: all modules and the model's own end, unless it says otherwise."""

    name: str
    width: str
    modules: tuple[str, ...] | None = None
    exit: str | None = None


class WidthPlan(Record, frozen=True, kw_only=True):
    """What a widths file holds besides its weights.

    `source_sha256` is of the model that the widths were made for. `widths` are listed widest first. Tasks and prompt
    lengths take the paths that they would take without the file, unless `tasks` or `depth_rules` say otherwise.
    `mixed` names for each layer of a mixed width the width whose matrices it takes; `""` is the whole one.
    `training` is whatever the model card should say.
    """

    format_version: int = FORMAT_VERSION
    source_sha256: str
    widths: tuple[Width, ...]
    paths: tuple[NarrowPath, ...]
    tasks: dict[str, str] = msgspec.field(default_factory=dict)
    depth_rules: tuple[DepthRule, ...] | None = None
    mixed: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    training: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def own_widths(self) -> tuple[Width, ...]:
        """The widths that have matrices of their own in the file, widest first."""
        return tuple(width for width in self.widths if width.name not in self.mixed)

    def width_at(self, width: Width, layer: int) -> Width | None:
        """The width whose matrices a layer of `width` takes; None: the model's own."""
        if width.name not in self.mixed:
            return width
        name = self.mixed[width.name][layer]
        return next((one for one in self.own_widths if one.name == name), None)

    def mixing_problems(self, architecture: Architecture) -> list[str]:
        """What is wrong with mixed widths, as sentences; empty when they are sound."""
        widths = {width.name: width for width in self.widths}
        own = {width.name: width for width in self.own_widths}
        found = [f"there is no width {name!r} to mix" for name in self.mixed if name not in widths]
        if self.widths and not own:
            found.append("every width is mixed, and there is none to mix them of")
        for name, layers in self.mixed.items():
            if len(layers) != architecture.num_layers:
                found.append(f"mixed width {name!r} names {len(layers)} layers of {architecture.num_layers}")
            elif unknown := sorted(set(layers) - {"", *own}):
                named = ", ".join(map(repr, unknown))
                found.append(f"mixed width {name!r} takes layers of {named}, which has no matrices of its own here")
            elif name in widths:
                found += _mix_problems(widths[name], [own.get(one) for one in layers], architecture)
        return found

    def layout(self, base: Layout) -> Layout:
        """A student's layout with these widths and paths; the full path stays the last one.

        Exits that nobody trained, and the paths that leave by them, are dropped unless a narrow path names them:
        they are for experiments with depth, and answer with noise.
        """
        full = base.full_path
        every = tuple(module.name for module in base.modules)
        narrow = tuple(
            StudentPath(
                name=path.name,
                modules=every if path.modules is None else path.modules,
                exit=full.exit if path.exit is None else path.exit,
                width=path.width,
            )
            for path in self.paths
        )
        named = {path.exit for path in narrow}
        exits = tuple(exit for exit in base.exits if exit.is_trained or exit.name in named)
        kept = {exit.name for exit in exits}
        others = tuple(path for path in base.paths if path != full and path.exit in kept)
        return msgspec.structs.replace(
            base,
            exits=exits,
            paths=(*others, *narrow, full),
            tasks=base.tasks | self.tasks,
            depth_rules=base.depth_rules if self.depth_rules is None else self.depth_rules,
            widths=self.widths,
        )


def _mix_problems(mixed: Width, layers: Sequence[Width | None], architecture: Architecture) -> list[str]:
    """`layers` are the widths that each layer takes, None the whole one."""
    sizes = [architecture.intermediate_size if one is None else one.neurons[layer] for layer, one in enumerate(layers)]
    found = [
        f"mixed width {mixed.name!r} has {said} neurons in layer {layer}, and what it takes there has {size}"
        for layer, (said, size) in enumerate(zip(mixed.neurons, sizes, strict=False))
        if said != size
    ]
    if any(one is not None and one.has_own_output for one in layers) and not mixed.has_own_output:
        found.append(f"mixed width {mixed.name!r} takes output matrices of attention, and must say so")
    return found


def write_width_file(file: Path, plan: WidthPlan, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a widths file; the same plan and tensors give the same bytes. fp16 stays fp16.

    Shapes: `order.{layer}` [intermediate], `{width}.layers.{layer}.down` [hidden, neurons],
    `{width}.layers.{layer}.output` [hidden, q_size].
    """
    from safetensors.numpy import save

    text = msgspec.json.encode(plan, order="deterministic").decode()
    stored = {name: np.ascontiguousarray(tensors[name], _stored_type(tensors[name])) for name in sorted(tensors)}
    write_whole(file, save(stored, metadata={METADATA_KEY: text}))


def _stored_type(values: npt.NDArray[Any]) -> type[np.generic]:
    if not np.issubdtype(values.dtype, np.integer):
        return np.float16 if values.dtype == np.float16 else np.float32
    if values.dtype == np.int8:
        return np.int8
    return np.int16 if values.max(initial=0) <= np.iinfo(np.int16).max else np.int32


WIDTH_FILE = PlanKind(
    key=METADATA_KEY,
    plan=WidthPlan,
    format_version=FORMAT_VERSION,
    name="a file of widths",
    missing="give a file of widths",
    remedy=REMEDY,
)


def read_width_file(file: Path) -> "WidthFile":
    """Open a widths file; its tensors stay on disk until a student is built from them.

    Raises: ConfigError (no widths file), WeightsError (damaged or cut short).
    """
    stored, plan = read_planned(file, WIDTH_FILE)
    return WidthFile(file=file, plan=plan, stored=stored)


@dataclass(kw_only=True, frozen=True)
class WidthFile:
    """A widths file, opened."""

    file: Path
    plan: WidthPlan
    stored: SafetensorsFile

    @cached_property
    def sha256(self) -> str:
        return sha256_of([self.file])

    def check(self, model: ModelSource, base: Layout, *, reads_matrices: bool = True) -> None:
        """Check the file against the model and the layout that a student is to be built from. Reads every tensor, one
        at a time; a build, which reads the matrices anyway and finds the same in them, may leave those out.

        Raises: ConfigError (made for another model, widths that do not fit it, paths that do not fit the layout),
        WeightsError (missing, misshapen or unknown tensors, an order that is none, numbers that are not finite).
        """
        if self.plan.source_sha256 != model.sha256():
            raise ConfigError(
                f"{self.file}: the widths were made for a model with SHA-256 {self.plan.source_sha256[:12]}..., and "
                f"{model.name} ({model.files[0]}) has {model.sha256()[:12]}...; build from that model, or {REMEDY}"
            )
        problems = width_problems(self.plan.widths, model.architecture)
        if not self.plan.widths:
            problems.append("it has no widths")
        problems = problems or self.plan.mixing_problems(model.architecture)
        problems += layout_problems(self.plan.layout(base))
        problems += [f"path {path.name!r} names no width" for path in self.plan.paths if not path.width]
        if problems:
            raise ConfigError(f"{self.file} does not fit {model.name}: {'; '.join(problems)}; {REMEDY}")
        self._check_tensors(_shapes(self.plan.own_widths, model.architecture))
        for layer in range(model.architecture.num_layers):
            self.order(layer)
            for width in self.plan.own_widths if reads_matrices else ():
                self.read(model, width, layer, "down")
                if width.has_own_output:
                    self.read(model, width, layer, "output")

    def order(self, layer: int) -> npt.NDArray[np.int64]:
        """Which neuron stands at each place of a layer's order. Shapes: [intermediate].

        Raises: WeightsError when it is no permutation.
        """
        order = self.stored.read_integers(_order_name(layer))
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            raise WeightsError(
                f"{self.file}: tensor {_order_name(layer)} must have every neuron from 0 to {len(order) - 1} once; "
                f"{REMEDY}"
            )
        return order

    def read(self, model: ModelSource, width: Width, layer: int, part: Part) -> Array:
        """One of a width's own matrices, or the one that a mixed width takes. Shapes: `down` [hidden, neurons],
        `output` [hidden, q_size].

        Raises: WeightsError for numbers that are not finite.
        """
        taken = self.plan.width_at(width, layer)
        if taken is None or (part == "output" and not taken.has_own_output):
            return self._whole(model, layer, part)
        name = _matrix_name(taken.name, layer, part)
        if name in self.stored.tensors:
            values = self.stored.read(name)
        elif f"{name}.int8" in self.stored.tensors:
            values = decode_int8(self.stored.read_integers(f"{name}.int8"), self.stored.read(f"{name}.scales"))
        else:
            values = self._read_difference(name, self._base(model, taken, layer, part))
        if not np.isfinite(values).all():
            raise WeightsError(f"{self.file}: tensor {name} is not finite; {REMEDY}")
        return values

    def _read_difference(self, name: str, base: Array) -> Array:
        left, right = (self.stored.read_integers(f"{name}.{side}") for side in ("left", "right"))
        left_scales, right_scales = (self.stored.read(f"{name}.{side}_scales") for side in ("left", "right"))
        return decode_difference(left, left_scales, right, right_scales, base)

    def _base(self, model: ModelSource, width: Width, layer: int, part: Part) -> Array:
        """What a difference is added to. Shapes: [hidden, at least its columns]."""
        widest = self.plan.own_widths[0]
        if part == "down" or (width != widest and widest.has_own_output):
            return self.read(model, widest, layer, part)
        return self._whole(model, layer, part)

    def _whole(self, model: ModelSource, layer: int, part: Part) -> Array:
        """The model's own matrix, W_down with its columns in the layer's order."""
        prefix = f"model.layers.{layer}"
        if part == "output":
            return model.read(f"{prefix}.self_attn.o_proj.weight")
        return model.read(f"{prefix}.{_DOWN}")[:, self.order(layer)]

    def layer_widths(self, layer: int) -> LayerWidths:
        """A layer's widths, as its graph needs them."""
        order, widths = self.order(layer), self.plan.widths
        return LayerWidths(
            neurons=(len(order), *(width.neurons[layer] for width in widths)),
            has_own_output=(False, *(width.has_own_output for width in widths)),
            order=order,
        )

    def source_for(self, base: ModelSource) -> "WidthSource":
        """The model with its neurons in the layers' orders, and the widths' own matrices beside its own."""
        return WidthSource(self, base)

    def narrow_tensors(self, base: ModelSource, name: str) -> dict[str, Array]:
        """What a width computes as tensors of a model: those of `base` that it replaces, under their names.

        Shapes: as in the model, with the width's neurons in place of all.
        Raises: KeyError for a name that no width has.
        """
        width = {width.name: width for width in self.plan.widths}[name]
        tensors: dict[str, Array] = {}
        for layer in range(base.architecture.num_layers):
            prefix, kept = f"model.layers.{layer}", self.order(layer)[: width.neurons[layer]]
            tensors |= {f"{prefix}.{part}": base.read(f"{prefix}.{part}")[kept] for part in _GATE_UP}
            tensors[f"{prefix}.{_DOWN}"] = self.read(base, width, layer, "down")
            if width.has_own_output:
                tensors[f"{prefix}.self_attn.o_proj.weight"] = self.read(base, width, layer, "output")
        return tensors

    def _check_tensors(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """`expected` has the shape of every order and every matrix; a matrix may be stored in any form."""
        stored: dict[str, tuple[int, ...]] = {}
        for name, shape in expected.items():
            stored |= {name: shape} if name.startswith("order.") else self._stored_form(name, shape)
        if problems := tensor_problems(self.stored, stored):
            raise WeightsError(f"{self.file} does not hold what its plan says: {'; '.join(problems)}; {REMEDY}")

    def _stored_form(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The tensors that a matrix is stored as, and their shapes."""
        tensors, (rows, columns) = self.stored.tensors, shape
        if f"{name}.int8" in tensors:
            return {f"{name}.int8": shape, f"{name}.scales": (rows, num_groups(columns))}
        is_base = name == _matrix_name(self.plan.own_widths[0].name, int(name.split(".")[-2]), "down")
        if f"{name}.left" not in tensors or is_base:
            return {name: shape}
        (rank,) = tensors[f"{name}.left"].shape[1:] or (0,)
        return {
            f"{name}.left": (rows, rank),
            f"{name}.left_scales": (rank,),
            f"{name}.right": (rank, columns),
            f"{name}.right_scales": (rank,),
        }


class WidthSource(DerivedSource):
    """A `ModelSource` of the same model with its neurons in the layers' orders, and the matrices of every width."""

    def __init__(self, widths: WidthFile, base: ModelSource) -> None:
        super().__init__(base, base.architecture, widths.file)
        self._widths = widths
        self._own: dict[str, tuple[Width, int, Part]] = {}
        for entry, width in enumerate(widths.plan.widths, start=1):
            for layer in range(base.architecture.num_layers):
                self._own[own_down(layer, entry)] = (width, layer, "down")
                if width.has_own_output:
                    self._own[own_output(layer, entry)] = (width, layer, "output")

    def tensor_names(self) -> frozenset[str]:
        return self._base.tensor_names() | self._own.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._own:
            return self._base.shape(name)
        width, layer, part = self._own[name]
        return _matrix_shape(width, layer, part, self.architecture)

    def read(self, name: str) -> Array:
        """Shapes: as in the base model; `own_down` [hidden, neurons], `own_output` [hidden, q_size]."""
        if name in self._own:
            return self._widths.read(self._base, *self._own[name])
        values = self._base.read(name)
        found = _NEURONS.fullmatch(name)
        if found is None:
            return values
        order = self._widths.order(int(found[1]))
        return values[:, order] if found[2] == _DOWN else values[order]


_DOWN = "mlp.down_proj.weight"
_GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_NEURONS = re.compile(rf"model\.layers\.(\d+)\.({'|'.join(map(re.escape, (*_GATE_UP, _DOWN)))})")


def _shapes(widths: tuple[Width, ...], architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor of a file that has these widths."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(architecture.num_layers):
        shapes[_order_name(layer)] = (architecture.intermediate_size,)
        for width in widths:
            parts: tuple[Part, ...] = ("down", "output") if width.has_own_output else ("down",)
            for part in parts:
                shapes[_matrix_name(width.name, layer, part)] = _matrix_shape(width, layer, part, architecture)
    return shapes


def _matrix_shape(width: Width, layer: int, part: Part, architecture: Architecture) -> tuple[int, int]:
    return architecture.hidden_size, width.neurons[layer] if part == "down" else architecture.q_size


def _order_name(layer: int) -> str:
    return f"order.{layer}"


def _matrix_name(width: str, layer: int, part: Part) -> str:
    return f"{width}.layers.{layer}.{part}"
