"""The manifest of a student folder: which modules, exits and paths it has, and which files hold them.

Owns the JSON form and its consistency rules. It opens no weights and knows no engine.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from models.architecture import Architecture
from models.errors import ConfigError
from models.file_writing import write_whole
from models.sampling import RecommendedSampling

FORMAT_VERSION = 3
MANIFEST_NAME = "manifest.json"
_HEADS = ("head", "cheap_head")
"""The stages that a student has besides its modules and exits (`models/student/folder.py`)."""

WIDTH_BLOCK = 64
"""Widths are multiples of this many neurons: what an AVX-512 register holds at int8, and two blocks of int4."""
MAX_WIDTHS = 7
"""How many a student may have: the inputs of a native operator are limited (`engines/native/source/kernels.h`)."""

HeadKind = Literal["exact", "cheap"]
Verdict = Literal["passed", "failed", "undecided"]

NAME_RULE = "letters, digits, `.`, `_`, `-`, `+` and inner spaces, beginning with a letter or digit"
# Names go into HTTP headers, URLs, model ids (`student:path`) and file names. `+` and inner spaces are harmless there,
# and a student is named after the folder it was built from unless it is given another name.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+ -]*[A-Za-z0-9._+-])?")


def is_plain_name(name: str) -> bool:
    """Whether a student, module, exit or path may have this name: see `NAME_RULE`."""
    return _NAME.fullmatch(name) is not None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every manifest record: immutable, and an unknown key is an error."""


class Module(Record, frozen=True, kw_only=True):
    """A contiguous group of layers, `first_layer` inclusive."""

    name: str
    first_layer: int
    num_layers: int


class Exit(Record, frozen=True, kw_only=True):
    """What turns the hidden state after module `after` into the head's input.

    A linear map where there is one, `num_blocks` layers, then the final norm.
    """

    name: str
    after: str
    num_blocks: int = 0
    is_trained: bool = False
    has_map: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is the norm alone; behind the last module that is the model's own end."""
        return not self.num_blocks and not self.has_map


class Width(Record, frozen=True, kw_only=True):
    """How many of each layer's feed-forward neurons a narrow path runs: the first `neurons` in the layer's own order.

    They have an output matrix of their own (W_down), and with `has_own_output` attention has one too (W_o); all else
    is shared with the whole width.
    """

    name: str
    neurons: tuple[int, ...]
    has_own_output: bool = False


class StudentPath(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The modules a request runs, in order, at which width, and the exit it leaves by; `width` "" is the whole one."""

    name: str
    modules: tuple[str, ...]
    exit: str
    width: str = ""


class DepthRule(Record, frozen=True, kw_only=True):
    """Prompts of at most `max_prompt_tokens` (None: any length) may take `path`; first match wins."""

    max_prompt_tokens: int | None
    path: str


class FileEntry(Record, frozen=True, kw_only=True):
    name: str
    size_bytes: int
    sha256: str


class Variant(Record, frozen=True, kw_only=True):
    """One precision of the graphs: the graph file of every module and exit, of the head, and the embedding table.

    `cheap_head` is the graph of the cheap head, in precisions that have one.
    """

    name: str
    stages: dict[str, str]
    head: str
    embedding: str
    weight_bytes: int
    cheap_head: str | None = None


class CheapHead(Record, frozen=True, kw_only=True):
    """A head that previews every token's logit from `rank` dimensions, and computes exactly those of `num_frequent`
    frequent tokens and of at most `num_candidates` others, the best by the preview; of `mean_candidates` on average,
    where that was measured.

    `sha256` is of the file it was built from.
    """

    rank: int
    num_frequent: int
    num_candidates: int
    mean_candidates: float | None = None
    sha256: str


class Quality(Record, frozen=True, kw_only=True):
    """A measured figure: cross-entropy (nats per token) of one path at one precision on a named text."""

    path: str
    variant: str
    cross_entropy: float
    text: str
    num_tokens: int


class Retention(Record, frozen=True, kw_only=True):
    """A measured figure: a path's score on a task over the full path's (1.0: equal), with its 95 % interval."""

    path: str
    task: str
    variant: str
    score: float
    low: float
    high: float


class PathFigures(Record, frozen=True, kw_only=True):
    """What a path with one head keeps of the full path with the exact head, on one task in one language at one
    precision (docs/evaluation.md).

    `None` where nothing was measured. Perplexity ratios are over the full path's, on the full path's own words, on
    human text of the task, and on plain text outside the chat template. `*_kept` are shares of the full path's score:
    `choice_kept` of what is above chance, `accuracy_kept` of the raw accuracy. `rescored_nats_ratio` and
    `repetition_ratio` compare the path's own answers with the full path's, both scored by the full path.
    `intervals` has the 95 % interval of a figure by its name, `rows` how many rows each was measured on.
    """

    path: str
    head: HeadKind
    task: str
    variant: str
    language: str
    perplexity_ratio_own: float | None = None
    perplexity_ratio_human: float | None = None
    perplexity_ratio_plain: float | None = None
    information_kept: float | None = None
    choice_kept: float | None = None
    accuracy_kept: float | None = None
    blimp_kept: float | None = None
    rescored_nats_ratio: float | None = None
    repetition_ratio: float | None = None
    kl: float | None = None
    agreement: float | None = None
    intervals: dict[str, tuple[float, float]] = {}
    rows: dict[str, int] = {}
    verdict_fidelity: Verdict = "undecided"
    verdict_field: Verdict = "undecided"


class Layout(Record, frozen=True, kw_only=True):
    """Where a student is cut, by which exits it can be left, and which task and prompt length takes which path."""

    modules: tuple[Module, ...]
    exits: tuple[Exit, ...]
    paths: tuple[StudentPath, ...]
    tasks: dict[str, str]
    depth_rules: tuple[DepthRule, ...]
    widths: tuple[Width, ...] = ()
    """Widest first. Each has the neurons of the next one too."""

    @property
    def full_path(self) -> StudentPath:
        """The path that runs every module at the whole width and leaves by the model's own end."""
        return next(path for path in self.paths if _is_full(path, self))


class Measured(Record, frozen=True, kw_only=True):
    """Figures of a student built with the exits file of this SHA-256 ("": with none)."""

    exits_sha256: str
    quality: tuple[Quality, ...] = ()
    retention: tuple[Retention, ...] = ()
    figures: tuple[PathFigures, ...] = ()
    cheap_head_sha256: str = ""
    """Of the head file it was measured with ("": none)."""
    widths_sha256: str = ""
    """Of the widths file it was measured with ("": none)."""

    def of_paths(self, paths: Iterable[StudentPath], widths_sha256: str) -> "Measured":
        """What holds for a student with these paths and widths: with other widths, only what is of the whole one."""
        if widths_sha256 == self.widths_sha256:
            return self
        whole = {path.name for path in paths if not path.width}
        return msgspec.structs.replace(
            self,
            quality=tuple(one for one in self.quality if one.path in whole),
            retention=tuple(one for one in self.retention if one.path in whole),
            figures=tuple(one for one in self.figures if one.path in whole),
        )

    def figures_with(self, cheap_head_sha256: str) -> tuple[PathFigures, ...]:
        """Those that hold for a student with this cheap head: those of the exact head, and of the very same one."""
        is_same = cheap_head_sha256 == self.cheap_head_sha256
        return tuple(one for one in self.figures if one.head == "exact" or is_same)


T = TypeVar("T", StudentPath, Exit, Module, Variant, Width)


class Manifest(Record, frozen=True, kw_only=True, dict=True):
    # `dict=True`: cached properties are stored in it.
    format_version: int
    name: str
    source: str
    source_sha256: str
    licence: str
    architecture: Architecture
    modules: tuple[Module, ...]
    exits: tuple[Exit, ...]
    paths: tuple[StudentPath, ...]
    tasks: dict[str, str]
    depth_rules: tuple[DepthRule, ...]
    variants: tuple[Variant, ...]
    files: tuple[FileEntry, ...] = ()
    quality: tuple[Quality, ...] = ()
    retention: tuple[Retention, ...] = ()
    figures: tuple[PathFigures, ...] = ()
    exits_sha256: str = ""
    """Of the file that the trained exits came from; empty when there was none."""
    cheap_head: CheapHead | None = None
    sampling: RecommendedSampling | None = None
    """How the model's authors recommend to sample from it, for requests that do not say."""
    widths: tuple[Width, ...] = ()
    """Widest first. Each has the neurons of the next one too."""
    widths_sha256: str = ""
    """Of the file that the widths came from; empty when there was none."""

    def path(self, name: str) -> StudentPath:
        """Raises: KeyError for a name no path has."""
        return _named(self.paths, name)

    def exit(self, name: str) -> Exit:
        """Raises: KeyError for a name no exit has."""
        return _named(self.exits, name)

    def module(self, name: str) -> Module:
        """Raises: KeyError for a name no module has."""
        return _named(self.modules, name)

    def variant(self, name: str) -> Variant:
        """Raises: KeyError for a name no variant has."""
        return _named(self.variants, name)

    def width_rank(self, width: str) -> int:
        """0 for the whole width (""), 1 for the widest of the others, and so on."""
        return ["", *(one.name for one in self.widths)].index(width)

    def neurons(self, path: StudentPath, layer: int) -> int:
        """How many feed-forward neurons a path runs in a layer of its modules. Exits have no widths."""
        return _named(self.widths, path.width).neurons[layer] if path.width else self.architecture.intermediate_size

    def heads_at(self, variant: str) -> tuple[HeadKind, ...]:
        """The heads of a precision, the exact one first."""
        has_cheap = any(one.name == variant and one.cheap_head is not None for one in self.variants)
        return ("exact", "cheap") if has_cheap else ("exact",)

    def find_retention(self, path: str, task: str, variant: str) -> Retention | None:
        """What was measured for a path on a task at one precision; None when nothing was."""
        for figure in self.retention:
            if figure.path == path and figure.task == task and figure.variant == variant:
                return figure
        return None

    def find_figures(self, path: str, head: HeadKind, task: str, variant: str, language: str) -> PathFigures | None:
        """What was measured for a path with a head on a task in a language at one precision; figures that name no
        language are for all of them."""
        found = self._figures_by_place.get((path, head, task, variant, language))
        return found or self._figures_by_place.get((path, head, task, variant, ""))

    @cached_property
    def _figures_by_place(self) -> dict[tuple[str, HeadKind, str, str, str], PathFigures]:
        return {(one.path, one.head, one.task, one.variant, one.language): one for one in self.figures}

    @cached_property
    def languages_by_variant(self) -> dict[str, frozenset[str]]:
        """The languages that figures name, by precision; no entry for a precision without figures."""
        return {
            variant: frozenset(one.language for one in self.figures if one.variant == variant) - {""}
            for variant in {one.variant for one in self.figures}
        }

    @property
    def full_path(self) -> StudentPath:
        """The path that runs every module at the whole width and leaves by the model's own end."""
        return self.layout.full_path

    @property
    def layout(self) -> Layout:
        return Layout(
            modules=self.modules,
            exits=self.exits,
            paths=self.paths,
            tasks=self.tasks,
            depth_rules=self.depth_rules,
            widths=self.widths,
        )

    def stages(self, path: StudentPath) -> tuple[str, ...]:
        """The graphs a path runs, in order: its modules, then its exit."""
        return (*path.modules, path.exit)

    def stage_order(self) -> tuple[str, ...]:
        """All modules and exits in running order: every exit right behind its module."""
        order: list[str] = []
        for module in self.modules:
            order += [module.name, *(exit.name for exit in self.exits if exit.after == module.name)]
        return tuple(order)

    def num_layers_in(self, stage: str) -> int:
        """Decoder layers, and so KV layers, in a module or exit."""
        for module in self.modules:
            if module.name == stage:
                return module.num_layers
        return self.exit(stage).num_blocks

    def num_layers_on(self, path: StudentPath) -> int:
        """Decoder layers that a token passes on a path, exit blocks included."""
        return sum(self.num_layers_in(stage) for stage in self.stages(path))

    def multiply_adds_on(self, path: StudentPath) -> int:
        """Multiply-adds of one token in the matrices of a path's decoder layers, exit blocks included."""
        return self._multiply_adds[path.name]

    @cached_property
    def _multiply_adds(self) -> dict[str, int]:
        """By path: every request asks, and a hundred layers take a while to add up."""
        return {path.name: self._layers_multiply_adds(path) for path in self.paths}

    def _layers_multiply_adds(self, path: StudentPath) -> int:
        blocks = self.exit(path.exit).num_blocks * self.architecture.layer_multiply_adds()
        return blocks + sum(
            self.architecture.layer_multiply_adds(self.neurons(path, layer))
            for module in map(self.module, path.modules)
            for layer in range(module.first_layer, module.first_layer + module.num_layers)
        )

    @cached_property
    def paths_by_depth(self) -> tuple[StudentPath, ...]:
        """Shallowest first, in the manifest's order between equals; the full path is last in any case.

        The deeper of two paths is the one whose layers compute more: because it has more, or wider ones.
        """
        full = self.full_path
        return tuple(sorted(self.paths, key=lambda path: (path is full, self.multiply_adds_on(path))))

    @cached_property
    def multiply_adds_by_depth(self) -> tuple[int, ...]:
        """What the layers of each of `paths_by_depth` compute for a token."""
        return tuple(self.multiply_adds_on(path) for path in self.paths_by_depth)

    @cached_property
    def path_ranks(self) -> dict[str, int]:
        """Ranks of the paths by name, 0 the deepest: sorted by rank, the rows that run a module come first in a step.

        Paths of equal depth come widest first, so that their modules run once for all of them; among those of equal
        width those with the same exit are neighbours, so that the exit does.

        Raises: ConfigError when no order does that for all modules.
        """
        exits = [exit.name for exit in self.exits]
        ordered = sorted(
            self.paths,
            key=lambda path: (-len(path.modules), self.width_rank(path.width), exits.index(path.exit)),
        )
        for module in self.modules:
            needs = [module.name in path.modules for path in ordered]
            if needs != sorted(needs, reverse=True):
                raise ConfigError(
                    f"the paths of student {self.name!r} are not nested around module {module.name!r}: "
                    "rows on them cannot share a step"
                )
        return {path.name: rank for rank, path in enumerate(ordered)}


def _is_full(path: StudentPath, layout: Layout) -> bool:
    if path.width or path.modules != tuple(module.name for module in layout.modules):
        return False
    return any(exit.name == path.exit and exit.is_plain for exit in layout.exits)


def _named(items: tuple[T, ...], name: str) -> T:
    for item in items:
        if item.name == name:
            return item
    raise KeyError(name)


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises: ConfigError that names the file and says how to fix it.
    """
    file = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder} is not a student folder: no {MANIFEST_NAME}; make one with `fenhe build`"
        ) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}; build the student again with `fenhe build`") from error
    problems = find_problems(manifest)
    if problems:
        raise ConfigError(f"{file}: " + "; ".join(problems))
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest last and atomically: a folder without one is no student.

    Raises: OSError that names the file.
    """
    write_whole(folder / MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def find_problems(manifest: Manifest) -> list[str]:
    """Everything inconsistent in a manifest, as sentences; empty when it is sound."""
    problems = []
    if manifest.format_version != FORMAT_VERSION:
        problems.append(f"format_version {manifest.format_version} is not {FORMAT_VERSION}; build the student again")
    problems += layout_problems(manifest.layout)
    num_layers = sum(module.num_layers for module in manifest.modules)
    if num_layers != manifest.architecture.num_layers:
        problems.append(f"modules cover {num_layers} layers of {manifest.architecture.num_layers}")
    problems += width_problems(manifest.widths, manifest.architecture)
    problems += _variant_problems(manifest) + _head_problems(manifest)
    problems += _retention_problems(manifest) + _figures_problems(manifest)
    return problems


def layout_problems(layout: Layout) -> list[str]:
    """Everything inconsistent in a layout, as sentences; empty when it is sound."""
    return _module_problems(layout) + _path_problems(layout)


def width_problems(widths: tuple[Width, ...], architecture: Architecture) -> list[str]:
    """What is wrong with widths for a model of this architecture, as sentences; empty when they are sound."""
    names = [width.name for width in widths]
    problems = _twice(names) + _name_problems("width", names)
    if len(widths) > MAX_WIDTHS:
        problems.append(f"there are {len(widths)} widths, and a student can have {MAX_WIDTHS}")
    for width in widths:
        if len(width.neurons) != architecture.num_layers:
            problems.append(
                f"width {width.name!r} has neurons for {len(width.neurons)} layers of {architecture.num_layers}"
            )
        problems += [
            f"width {width.name!r} has {count} neurons in layer {layer}: that must be a multiple of {WIDTH_BLOCK}, and "
            f"at most the layer's {architecture.intermediate_size}"
            for layer, count in enumerate(width.neurons)
            if count % WIDTH_BLOCK or not 0 < count <= architecture.intermediate_size
        ]
    for wider, narrower in pairwise(widths):
        if any(more < less for more, less in zip(wider.neurons, narrower.neurons, strict=False)):
            problems.append(
                f"width {narrower.name!r} does not lie within {wider.name!r}: widths are listed widest first, and each "
                "has at least the neurons of the next one in every layer"
            )
    return problems


def _module_problems(layout: Layout) -> list[str]:
    problems = []
    next_layer = 0
    for module in layout.modules:
        if module.first_layer != next_layer or module.num_layers < 1:
            problems.append(f"module {module.name!r} must start at layer {next_layer} and have at least one layer")
        next_layer = module.first_layer + module.num_layers
    names = [module.name for module in layout.modules] + [exit.name for exit in layout.exits]
    problems += [
        f"a module or exit cannot be called {name!r}: the head is; choose another name"
        for name in _HEADS
        if name in names
    ]
    return problems + _twice(names) + _name_problems("module or exit", names)


def _twice(names: list[str]) -> list[str]:
    return [f"the name {name!r} is used twice" for name in sorted({n for n in names if names.count(n) > 1})]


def _name_problems(what: str, names: list[str]) -> list[str]:
    return [f"a {what} cannot be called {name!r}; use {NAME_RULE}" for name in names if not is_plain_name(name)]


def _path_problems(layout: Layout) -> list[str]:
    names = [path.name for path in layout.paths]
    problems = _name_problems("path", names) + _twice(names)
    modules = [module.name for module in layout.modules]
    exits = {exit.name: exit for exit in layout.exits}
    widths = {"", *(width.name for width in layout.widths)}
    paths = set(names)
    for path in layout.paths:
        if path.width not in widths:
            problems.append(f"path {path.name!r} has an unknown width {path.width!r}")
        if not path.modules or list(path.modules) != [name for name in modules if name in path.modules]:
            problems.append(f"path {path.name!r} must name modules in their order, each once")
        elif path.exit not in exits:
            problems.append(f"path {path.name!r} leaves by an unknown exit {path.exit!r}")
        elif exits[path.exit].after != path.modules[-1]:
            problems.append(f"path {path.name!r} ends at {path.modules[-1]!r} but its exit is elsewhere")
    if not any(_is_full(path, layout) for path in layout.paths):
        problems.append("no path runs every module and leaves by the model's own end")
    problems += [f"task {task!r} has no path {path!r}" for task, path in layout.tasks.items() if path not in paths]
    problems += [f"a depth rule names no path: {rule.path!r}" for rule in layout.depth_rules if rule.path not in paths]
    return problems


def _variant_problems(manifest: Manifest) -> list[str]:
    stages = {module.name for module in manifest.modules} | {exit.name for exit in manifest.exits}
    return [
        f"variant {variant.name!r} has no graph for {', '.join(sorted(stages - set(variant.stages)))}"
        for variant in manifest.variants
        if stages - set(variant.stages)
    ]


def _head_problems(manifest: Manifest) -> list[str]:
    head, hidden, vocab = manifest.cheap_head, manifest.architecture.hidden_size, manifest.architecture.vocab_size
    having = [variant.name for variant in manifest.variants if variant.cheap_head is not None]
    if head is None:
        return [f"variant {name!r} has a cheap head, but the student has none" for name in having]
    problems = []
    if not 0 < head.rank <= hidden:
        problems.append(f"the cheap head's rank {head.rank} must be from 1 to the hidden size, {hidden}")
    if head.num_frequent < 1 or head.num_candidates < 1 or head.num_frequent + head.num_candidates > vocab:
        problems.append(
            f"the cheap head's {head.num_frequent} frequent tokens and {head.num_candidates} candidates must be at "
            f"least 1 each and at most the vocabulary, {vocab}, together"
        )
    if head.mean_candidates is not None and not 0 <= head.mean_candidates <= head.num_candidates:
        problems.append(f"the cheap head's {head.mean_candidates:g} candidates on average must be 0 to its most")
    return [f"{problem}; build the student again with `fenhe build --head`" for problem in problems]


def _retention_problems(manifest: Manifest) -> list[str]:
    problems = []
    paths = {path.name for path in manifest.paths}
    seen = set()
    for figure in manifest.retention:
        key = (figure.path, figure.task, figure.variant)
        what = f"retention of path {figure.path!r} on {figure.task!r} at {figure.variant!r}"
        if figure.path not in paths:
            problems.append(f"{what}: there is no such path")
        if not figure.low <= figure.score <= figure.high:
            problems.append(f"{what}: {figure.score} is outside its interval {figure.low} to {figure.high}")
        if key in seen:
            problems.append(f"{what} is given twice")
        seen.add(key)
    return problems


def _figures_problems(manifest: Manifest) -> list[str]:
    problems = []
    paths = {path.name for path in manifest.paths}
    seen = set()
    for one in manifest.figures:
        key = (one.path, one.head, one.task, one.variant, one.language)
        what = f"figures of path {one.path!r} with the {one.head} head on {one.task!r} at {one.variant!r}"
        if one.path not in paths:
            problems.append(f"{what}: there is no such path")
        if key in seen:
            problems.append(f"{what} in language {one.language!r} are given twice")
        seen.add(key)
    return problems
