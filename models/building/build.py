"""`fenhe build`: from a GGUF file or Hugging Face folder to a student folder.

Builds beside the target and renames at the end, so that a folder is either a whole student or not there.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from models.building.blocks import check_blocks, write_embedding_rows
from models.building.exits import Exits, read_exits
from models.building.head_file import HeadFile, read_head_file
from models.building.progress import Progress, Show, num_reads, watched
from models.building.recommended_sampling import recommended_sampling
from models.building.source_content import check_unchanged, states_of
from models.building.width_file import WidthFile, read_width_file
from models.checksums import sha256_of
from models.errors import ConfigError
from models.file_writing import naming
from models.graphs.cheap_head import write_cheap_head
from models.graphs.decoder_graph import LayerWriter, write_head, write_stage
from models.graphs.onnx_graph import GraphWriter, TensorSpec, WeightsFile
from models.graphs.precisions import DEFAULT_PRECISIONS, PRECISIONS, unknown_precisions
from models.graphs.rotate import RotatedSource
from models.sources.source import ModelSource, check_complete, open_source
from models.student.cut import default_modules, parse_modules, plain_layout
from models.student.folder import CHEAP_HEAD, HEAD, ROWS_SUFFIX
from models.student.manifest import (
    FORMAT_VERSION,
    Exit,
    FileEntry,
    Layout,
    Manifest,
    Measured,
    Module,
    Variant,
    find_problems,
    write_manifest,
)

logger = logging.getLogger(__name__)

FINAL_NORM = "model.norm.weight"
EMBEDDING_NAME = "embedding.npy"
ROTATED_EMBEDDING_NAME = "embedding.rotated.npy"
BLOCKS_EMBEDDING_NAME = f"embedding{ROWS_SUFFIX}"
EMBEDDING = "model.embed_tokens.weight"

WriteGraph = Callable[[GraphWriter, LayerWriter, ModelSource], tuple[list[TensorSpec], list[TensorSpec]]]


def build_student(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    modules: str | None = None,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    exits: Path | None = None,
    head: Path | None = None,
    widths: Path | None = None,
    measured: Measured | None = None,
    show: Show | None = None,
) -> Manifest:
    """Cut a GGUF file or Hugging Face folder into modules and write the student folder `out`.

    With an `exits` file the cut, exits, paths, tasks and depth rules are what it says; a `head` file adds the cheap
    head, a `widths` file narrow paths. `measured` figures go into the manifest when they are of a student with the same
    exits, head and widths. `show` is told how far it is.

    Raises: ConfigError (unsupported model, wrong cut, exits, head or widths of another model, `out` in the way),
    WeightsError (damaged weights, a source that changes meanwhile, a head or widths file that does not fit).
    """
    _check_options(out, modules, precisions, exits)
    before = states_of(source) if source.exists() else {}  # else `open_source` says so
    model = open_source(source)
    check_complete(model)
    check_blocks(model, precisions, has_widths=widths is not None)
    trained = None if exits is None else read_exits(exits)
    if trained is not None:
        trained.check(model)
    cheap = None if head is None else read_head_file(head)
    if cheap is not None:
        cheap.check(model)
    layout = _layout(model, modules, trained)
    narrow = None if widths is None else read_width_file(widths)
    if narrow is not None:
        narrow.check(model, layout, reads_matrices=False)
        layout = narrow.plan.layout(layout)
    started_s = time.monotonic()
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            build = _Build(
                model=model if show is None else _shown(model, precisions, show),
                folder=partial,
                layout=layout,
                exits=trained,
                head=cheap,
                widths=narrow,
                precisions=tuple(precisions),
            )
            manifest = build.run(name or model.name, measured)
            check_unchanged(source, before)
            partial.chmod(0o755)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    logger.info("student built name=%s folder=%s seconds=%.1f", manifest.name, out, time.monotonic() - started_s)
    return manifest


def _check_options(out: Path, modules: str | None, precisions: Sequence[str], exits: Path | None) -> None:
    if out.exists():
        raise ConfigError(f"{out} is in the way; remove it or choose another --out")
    problem = unknown_precisions(precisions) if precisions else "no precision given"
    if problem is not None:
        raise ConfigError(f"--precision: {problem}")
    if exits is not None and modules is not None:
        raise ConfigError(f"--modules: the exits in {exits} say where to cut; leave --modules or --exits out")


def _shown(model: ModelSource, precisions: Sequence[str], show: Show) -> ModelSource:
    tables = {_embedding_name(precision) for precision in precisions}
    total = num_reads(model, num_graphs=len(precisions), num_tables=len(tables))
    return watched(model, Progress(model.architecture, total, show))


def _layout(model: ModelSource, modules: str | None, exits: Exits | None) -> Layout:
    if exits is not None:
        return exits.plan.layout()
    num_layers = model.architecture.num_layers
    return plain_layout(default_modules(num_layers) if modules is None else parse_modules(modules, num_layers))


@dataclass(slots=True, kw_only=True, frozen=True)
class _Stage:
    """What to write for a module, an exit or the head, and the weights it is written from, in both bases."""

    write: WriteGraph
    source: ModelSource
    rotated: ModelSource


@dataclass(slots=True, kw_only=True)
class _Build:
    """One run of the builder. `digests` has the SHA-256 of files that were hashed while they were written."""

    model: ModelSource
    folder: Path
    layout: Layout
    exits: Exits | None
    head: HeadFile | None
    widths: WidthFile | None
    precisions: tuple[str, ...]
    digests: dict[str, str] = field(default_factory=dict)
    weight_bytes: dict[str, int] = field(default_factory=dict)
    rotated: RotatedSource = field(init=False)

    def __post_init__(self) -> None:
        self.rotated = RotatedSource(self.model)

    def run(self, name: str, measured: Measured | None) -> Manifest:
        self.model.tokenizer().save(self.folder)
        for table in {_embedding_name(precision) for precision in self.precisions}:
            self._write_embedding(table)
        for part, stage in self._stages().items():
            precisions = [precision for precision in self.precisions if _has(part, precision)]
            for weights, group in groupby(sorted(precisions, key=_weights_of), key=_weights_of):
                self._write(part, weights, list(group), stage)
        manifest = self._manifest(name, measured)
        if problems := find_problems(manifest):
            raise ConfigError(f"{name} cannot be built so: {'; '.join(problems)}")
        write_manifest(self.folder, manifest)
        return manifest

    def _write_embedding(self, table: str) -> None:
        if table == BLOCKS_EMBEDDING_NAME:
            write_embedding_rows(self.model, self.folder / table)
            return
        source = self.rotated if table == ROTATED_EMBEDDING_NAME else self.model
        np.save(self.folder / table, source.read(EMBEDDING))

    def _stages(self) -> dict[str, _Stage]:
        """Every module, every exit, and the head."""
        stages: dict[str, _Stage] = {}
        for module in self.layout.modules:
            stages[module.name] = self._module(module)
        for exit in self.layout.exits:
            stages[exit.name] = self._exit(exit)
        stages[HEAD] = self._own(write_head)
        if self.head is not None:
            source = self.head.source_for(self.model)
            write = partial(write_cheap_head, candidates=self.head.candidates)
            stages[CHEAP_HEAD] = _Stage(write=write, source=source, rotated=RotatedSource(source))
        return stages

    def _module(self, module: Module) -> _Stage:
        layers = range(module.first_layer, module.first_layer + module.num_layers)
        is_last = self._is_last(module)
        if self.widths is None:
            return self._own(partial(write_stage, layers=layers, final_norm=None, is_last=is_last))
        source = self.widths.source_for(self.model)
        widths = {layer: self.widths.layer_widths(layer) for layer in layers}
        write = partial(write_stage, layers=layers, final_norm=None, is_last=is_last, widths=widths)
        return _Stage(write=write, source=source, rotated=RotatedSource(source))

    def _is_last(self, module: Module) -> bool:
        """Whether no path goes from the module to another one, or to blocks of an exit."""
        plain = {exit.name for exit in self.layout.exits if not exit.num_blocks}
        through = [path for path in self.layout.paths if module.name in path.modules]
        return all(path.modules[-1] == module.name and path.exit in plain for path in through)

    def _own(self, write: WriteGraph) -> _Stage:
        return _Stage(write=write, source=self.model, rotated=self.rotated)

    def _exit(self, exit: Exit) -> _Stage:
        if exit.is_plain:
            return self._own(partial(write_stage, layers=range(0), final_norm=FINAL_NORM))
        assert self.exits is not None
        source = self.exits.source_for(exit.name, self.model)
        layers = range(exit.num_blocks)
        write = partial(write_stage, layers=layers, final_norm=FINAL_NORM, has_map=exit.has_map, is_last=True)
        return _Stage(write=write, source=source, rotated=RotatedSource(source))

    def _write(self, name: str, weights: str, precisions: list[str], stage: _Stage) -> None:
        """Write one stage in all precisions that read the same weights file."""
        file = WeightsFile(self.folder / f"{name}.{weights}.weights")
        for precision in precisions:
            graph = GraphWriter(file)
            source = stage.rotated if PRECISIONS[precision].is_rotated else stage.source
            inputs, outputs = stage.write(graph, PRECISIONS[precision].writer, source)
            graph.save(self.folder / _graph_name(name, precision), inputs, outputs)
        self.digests[file.path.name] = file.close()
        for precision in precisions:
            self.weight_bytes[precision] = self.weight_bytes.get(precision, 0) + file.size_bytes

    def _manifest(self, name: str, measured: Measured | None) -> Manifest:
        source_sha256 = self.model.sha256()
        exits_sha256 = "" if self.exits is None else self.exits.sha256
        widths_sha256 = "" if self.widths is None else self.widths.sha256
        head_sha256 = "" if self.head is None else self.head.sha256
        if measured is None or measured.exits_sha256 != exits_sha256:
            measured = Measured(exits_sha256=exits_sha256)
        measured = measured.of_paths(self.layout.paths, widths_sha256)
        return Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            source=" ".join(file.name for file in self.model.files),
            source_sha256=source_sha256,
            licence=self.model.licence,
            architecture=self.model.architecture,
            modules=self.layout.modules,
            exits=self.layout.exits,
            paths=self.layout.paths,
            tasks=self.layout.tasks,
            depth_rules=self.layout.depth_rules,
            variants=tuple(self._variant(precision) for precision in self.precisions),
            files=tuple(self._entry(file) for file in sorted(self.folder.iterdir())),
            quality=measured.quality,
            retention=measured.retention,
            figures=measured.figures_with(head_sha256),
            exits_sha256=exits_sha256,
            sampling=recommended_sampling(self.model, source_sha256),
            cheap_head=None if self.head is None else self.head.record(),
            widths=self.layout.widths,
            widths_sha256=widths_sha256,
        )

    def _variant(self, precision: str) -> Variant:
        names = [module.name for module in self.layout.modules] + [exit.name for exit in self.layout.exits]
        return Variant(
            name=precision,
            stages={stage: _graph_name(stage, precision) for stage in names},
            head=_graph_name(HEAD, precision),
            embedding=_embedding_name(precision),
            weight_bytes=self.weight_bytes[precision],
            cheap_head=_graph_name(CHEAP_HEAD, precision) if self._has_cheap_head(precision) else None,
        )

    def _has_cheap_head(self, precision: str) -> bool:
        return self.head is not None and _has(CHEAP_HEAD, precision)

    def _entry(self, file: Path) -> FileEntry:
        digest = self.digests.get(file.name) or sha256_of([file])
        return FileEntry(name=file.name, size_bytes=file.stat().st_size, sha256=digest)


def _has(stage: str, precision: str) -> bool:
    """Whether a stage is written in a precision: the cheap head needs int8 columns and native operators."""
    return stage != CHEAP_HEAD or PRECISIONS[precision].has_cheap_head


def _weights_of(precision: str) -> str:
    return PRECISIONS[precision].weights


def _embedding_name(precision: str) -> str:
    if PRECISIONS[precision].keeps_blocks:
        return BLOCKS_EMBEDDING_NAME
    return ROTATED_EMBEDDING_NAME if PRECISIONS[precision].is_rotated else EMBEDDING_NAME


def _graph_name(stage: str, precision: str) -> str:
    return f"{stage}.{precision}.onnx"
