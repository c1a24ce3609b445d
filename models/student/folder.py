"""A student folder, opened: its manifest, tokenizer and files. Loads no weights."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError, WeightsError
from models.graphs.precisions import PRECISIONS
from models.student.manifest import HeadKind, Manifest, Variant, read_manifest
from models.student.row_table import EmbeddingTable, RowTable
from models.student.verification import FileVerifier
from models.tokenizer import TEMPLATE_NAME, TOKENIZER_FILES, Tokenizer

ROWS_SUFFIX = ".rows"
"""Of tables that `RowTable` reads."""
HEAD = "head"
CHEAP_HEAD = "cheap_head"
HEAD_STAGES: dict[HeadKind, str] = {"exact": HEAD, "cheap": CHEAP_HEAD}


@dataclass(slots=True, kw_only=True, frozen=True)
class Student:
    """An opened folder; an engine loads `whole_graph` and `embedding`. `is_verified`: every file that is loaded was
    compared with its checksum first."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    is_verified: bool = True
    _verifier: FileVerifier = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_verifier", FileVerifier(self.folder, self.manifest.files))

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Student":
        """Read the manifest and tokenizer, and check that every file is there in full.

        Raises: ConfigError (no student folder, wrong manifest, tokens that the model lacks), WeightsError (a file is
        missing or cut short, the tokenizer is damaged).
        """
        manifest = read_manifest(folder)
        for entry in manifest.files:
            file = folder / entry.name
            if not file.is_file():
                raise WeightsError(f"{file} is missing; build the student again with `fenhe build`")
            if file.stat().st_size != entry.size_bytes:
                raise WeightsError(
                    f"{file} has {file.stat().st_size} bytes instead of {entry.size_bytes}; build the student again"
                )
        if verify:
            names = [name for name in TOKENIZER_FILES if name != TEMPLATE_NAME or (folder / name).exists()]
            FileVerifier(folder, manifest.files).verify(names)
        tokenizer = Tokenizer.load(folder)
        tokenizer.check_fits(manifest.architecture.vocab_size, folder)
        return cls(folder=folder, manifest=manifest, tokenizer=tokenizer, is_verified=verify)

    def verify(self, *, anew: bool = False) -> None:
        """Compare every file with its SHA-256, also those that no precision here would load. Files that are known to
        be whole are read again only `anew`.

        Raises: WeightsError that names the first file that differs.
        """
        self._verifier.verify(anew=anew)

    def whole_graph(self, variant: str, stage: str) -> Path:
        """`graph`, after a look at its bytes and those of its weights.

        Raises: ConfigError as `graph` does, WeightsError that names a damaged file.
        """
        graph = self.graph(variant, stage)
        if self.is_verified:
            self._verifier.verify([graph.relative_to(self.folder).as_posix()])
            self._verifier.verify(self._named_in(graph))
        return graph

    def _named_in(self, graph: Path) -> list[str]:
        """The files whose names a graph has in it: all that it reads its weights from."""
        content = graph.read_bytes()
        return [entry.name for entry in self.manifest.files if Path(entry.name).name.encode() in content]

    def graph(self, variant: str, stage: str) -> Path:
        """The graph file of a module, an exit, `head` or `cheap_head`.

        Raises: ConfigError for a precision that was not built, or that has no cheap head.
        """
        graphs = self._variant(variant)
        if stage == CHEAP_HEAD and graphs.cheap_head is None:
            raise ConfigError(
                f"student {self.manifest.name!r} has no cheap head at precision {variant!r}; build it with "
                "`fenhe build --head`"
            )
        heads = {HEAD: graphs.head, CHEAP_HEAD: graphs.cheap_head}
        return self.folder / (heads.get(stage) or graphs.stages[stage])

    def packed_weights(self, variant: str, stage: str) -> tuple[Path, int] | None:
        """The file of a stage's packed matrices and how large it is, after a look at its bytes; None at precisions that
        have none.

        Raises: ConfigError for a precision that was not built, WeightsError that names a damaged file.
        """
        self._variant(variant)
        precision = PRECISIONS.get(variant)
        if precision is None or not precision.keeps_blocks:
            return None
        name = f"{stage}.{precision.weights}.weights"
        if self.is_verified:
            self._verifier.verify([name])
        sizes = {entry.name: entry.size_bytes for entry in self.manifest.files}
        if name not in sizes:
            raise WeightsError(f"{self.folder / name} is not in the manifest; build the student again")
        return self.folder / name, sizes[name]

    def embedding_table(self, variant: str) -> EmbeddingTable:
        """Rows by token id, read from the file or mapped. Shapes: [vocab, hidden_size].

        Raises: as `embedding`.
        """
        name = self._variant(variant).embedding
        if not name.endswith(ROWS_SUFFIX):
            return self.embedding(variant)
        if self.is_verified:
            self._verifier.verify([name])
        return RowTable(self.folder / name)

    def embedding(self, variant: str) -> npt.NDArray[np.float32]:
        """The embedding table where it is in fp32, mapped rather than read. Shapes: [vocab, hidden_size].

        Raises: ConfigError for a precision that was not built, WeightsError for a damaged file.
        """
        name = self._variant(variant).embedding
        if self.is_verified:
            self._verifier.verify([name])
        table: npt.NDArray[np.float32] = np.load(self.folder / name, mmap_mode="r")
        return table

    def _variant(self, variant: str) -> Variant:
        try:
            return self.manifest.variant(variant)
        except KeyError:
            known = ", ".join(v.name for v in self.manifest.variants)
            raise ConfigError(
                f"student {self.manifest.name!r} has no precision {variant!r}, only {known}; "
                "build it with `fenhe build --precision`"
            ) from None
