"""A student folder, opened: its manifest, tokenizer and files. Loads no weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.student.manifest import HeadKind, Manifest, read_manifest
from models.tokenizer import Tokenizer

HEAD = "head"
CHEAP_HEAD = "cheap_head"
HEAD_STAGES: dict[HeadKind, str] = {"exact": HEAD, "cheap": CHEAP_HEAD}


@dataclass(slots=True, kw_only=True, frozen=True)
class Student:
    """An opened folder; `graph` and `embedding` name the files that an engine loads."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path) -> "Student":
        """Read the manifest and tokenizer, and check that every file is there in full.

        Raises: ConfigError (no student folder, wrong manifest), WeightsError (a file is missing or cut short).
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
        return cls(folder=folder, manifest=manifest, tokenizer=Tokenizer.load(folder))

    def verify(self) -> None:
        """Compare every file with its SHA-256; reads them all.

        Raises: WeightsError that names the first file that differs.
        """
        for entry in self.manifest.files:
            if sha256_of([self.folder / entry.name]) != entry.sha256:
                raise WeightsError(f"{self.folder / entry.name} is damaged; build the student again")

    def graph(self, variant: str, stage: str) -> Path:
        """The graph file of a module, an exit, `head` or `cheap_head`.

        Raises: ConfigError for a precision that was not built, or that has no cheap head.
        """
        try:
            graphs = self.manifest.variant(variant)
        except KeyError:
            known = ", ".join(v.name for v in self.manifest.variants)
            raise ConfigError(
                f"student {self.manifest.name!r} has no precision {variant!r}, only {known}; "
                "build it with `fenhe build --precision`"
            ) from None
        if stage == CHEAP_HEAD and graphs.cheap_head is None:
            raise ConfigError(
                f"student {self.manifest.name!r} has no cheap head at precision {variant!r}; build it with "
                "`fenhe build --head`"
            )
        heads = {HEAD: graphs.head, CHEAP_HEAD: graphs.cheap_head}
        return self.folder / (heads.get(stage) or graphs.stages[stage])

    def embedding(self, variant: str) -> npt.NDArray[np.float32]:
        """The embedding table, mapped rather than read. Shapes: [vocab, hidden_size]."""
        table: npt.NDArray[np.float32] = np.load(self.folder / self.manifest.variant(variant).embedding, mmap_mode="r")
        return table
