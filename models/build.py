"""`fenhe build`: from a model somebody else made to a student folder.

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
from tqdm import tqdm

from models.checksums import sha256_of
from models.cut import FULL_PATH, TASKS, default_modules, exits_of, parse_modules, paths_of
from models.decoder_graph import LayerWriter, write_head, write_stage
from models.errors import ConfigError
from models.manifest import (
    FORMAT_VERSION,
    DepthRule,
    FileEntry,
    Manifest,
    Module,
    Variant,
    write_manifest,
)
from models.onnx_graph import GraphWriter, TensorSpec, WeightsFile
from models.precisions import DEFAULT_PRECISIONS, PRECISIONS
from models.rotate import RotatedSource
from models.source import ModelSource, check_complete, open_source
from models.student import HEAD

logger = logging.getLogger(__name__)

FINAL_NORM = "model.norm.weight"
EMBEDDING_NAME = "embedding.npy"
ROTATED_EMBEDDING_NAME = "embedding.rotated.npy"

WriteGraph = Callable[[GraphWriter, LayerWriter, ModelSource], tuple[list[TensorSpec], list[TensorSpec]]]


def build_student(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    modules: str | None = None,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    show_progress: bool = False,
) -> Manifest:
    """Cut a GGUF file or Hugging Face folder into modules and write the student folder `out`.

    Raises: ConfigError (unsupported model, wrong cut, `out` in the way), WeightsError (damaged weights).
    """
    if out.exists():
        raise ConfigError(f"{out} is in the way; remove it or choose another --out")
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown or not precisions:
        raise ConfigError(
            f"--precision: no {', '.join(unknown) or 'precision given'}; there are {', '.join(PRECISIONS)}"
        )
    model = open_source(source)
    check_complete(model)
    num_layers = model.architecture.num_layers
    cut = default_modules(num_layers) if modules is None else parse_modules(modules, num_layers)
    started_s = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        build = _Build(model=model, folder=partial, cut=cut, precisions=tuple(precisions))
        manifest = build.run(name or model.name, show_progress)
        partial.chmod(0o755)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    logger.info("student built name=%s folder=%s seconds=%.1f", manifest.name, out, time.monotonic() - started_s)
    return manifest


@dataclass(slots=True, kw_only=True)
class _Build:
    """One run of the builder. `digests` has the SHA-256 of files that were hashed while they were written."""

    model: ModelSource
    folder: Path
    cut: tuple[Module, ...]
    precisions: tuple[str, ...]
    digests: dict[str, str] = field(default_factory=dict)
    weight_bytes: dict[str, int] = field(default_factory=dict)
    rotated: RotatedSource = field(init=False)

    def __post_init__(self) -> None:
        self.rotated = RotatedSource(self.model)

    def run(self, name: str, show_progress: bool) -> Manifest:
        self.model.tokenizer().save(self.folder)
        for table in {_embedding_name(precision) for precision in self.precisions}:
            source = self.rotated if table == ROTATED_EMBEDDING_NAME else self.model
            np.save(self.folder / table, source.read("model.embed_tokens.weight"))
        for stage, write in tqdm(self._stages().items(), desc="building", unit="graph", disable=not show_progress):
            for weights, group in groupby(sorted(self.precisions, key=_weights_of), key=_weights_of):
                self._write(stage, weights, list(group), write)
        manifest = self._manifest(name)
        write_manifest(self.folder, manifest)
        return manifest

    def _stages(self) -> dict[str, WriteGraph]:
        """What to write for every module, every exit, and the head."""
        stages: dict[str, WriteGraph] = {}
        for module in self.cut:
            layers = range(module.first_layer, module.first_layer + module.num_layers)
            stages[module.name] = partial(write_stage, layers=layers, final_norm=None)
        for exit in exits_of(self.cut):
            stages[exit.name] = partial(write_stage, layers=range(0), final_norm=FINAL_NORM)
        stages[HEAD] = write_head
        return stages

    def _write(self, stage: str, weights: str, precisions: list[str], write: WriteGraph) -> None:
        """Write one stage in all precisions that read the same weights file."""
        file = WeightsFile(self.folder / f"{stage}.{weights}.weights")
        for precision in precisions:
            graph = GraphWriter(file)
            source = self.rotated if PRECISIONS[precision].is_rotated else self.model
            inputs, outputs = write(graph, PRECISIONS[precision].writer, source)
            graph.save(self.folder / _graph_name(stage, precision), inputs, outputs)
        self.digests[file.path.name] = file.close()
        self.weight_bytes[weights] = self.weight_bytes.get(weights, 0) + file.size_bytes

    def _manifest(self, name: str) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            source=" ".join(file.name for file in self.model.files),
            source_sha256=self.model.sha256(),
            licence=self.model.licence,
            architecture=self.model.architecture,
            modules=self.cut,
            exits=exits_of(self.cut),
            paths=paths_of(self.cut),
            # Untrained exits answer noise, so every task and length goes to full depth until distillation.
            tasks=dict.fromkeys(TASKS, FULL_PATH),
            depth_rules=(DepthRule(max_prompt_tokens=None, path=FULL_PATH),),
            variants=tuple(self._variant(precision) for precision in self.precisions),
            files=tuple(self._entry(file) for file in sorted(self.folder.iterdir())),
        )

    def _variant(self, precision: str) -> Variant:
        stages = [stage for stage in self._stages() if stage != HEAD]
        return Variant(
            name=precision,
            stages={stage: _graph_name(stage, precision) for stage in stages},
            head=_graph_name(HEAD, precision),
            embedding=_embedding_name(precision),
            weight_bytes=self.weight_bytes[_weights_of(precision)],
        )

    def _entry(self, file: Path) -> FileEntry:
        digest = self.digests.get(file.name) or sha256_of([file])
        return FileEntry(name=file.name, size_bytes=file.stat().st_size, sha256=digest)


def _weights_of(precision: str) -> str:
    return PRECISIONS[precision].weights


def _embedding_name(precision: str) -> str:
    return ROTATED_EMBEDDING_NAME if PRECISIONS[precision].is_rotated else EMBEDDING_NAME


def _graph_name(stage: str, precision: str) -> str:
    return f"{stage}.{precision}.onnx"
