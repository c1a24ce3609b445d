"""A model made of another one: what a subclass does not change is the other one's."""

from pathlib import Path

from models.architecture import Architecture
from models.checksums import sha256_of
from models.sampling import RecommendedSampling
from models.sources.source import ModelSource
from models.tokenizer import Tokenizer


class DerivedSource:
    """The part of a `ModelSource` that its base answers. Subclasses have `tensor_names`, `shape` and `read`.

    `files` are the base's and those that the subclass reads besides.
    """

    def __init__(self, base: ModelSource, architecture: Architecture, *files: Path) -> None:
        self._base = base
        self._files = files
        self.architecture = architecture

    @property
    def name(self) -> str:
        return self._base.name

    @property
    def licence(self) -> str:
        return self._base.licence

    @property
    def sampling(self) -> RecommendedSampling | None:
        return self._base.sampling

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self._base.files, *self._files)

    def sha256(self) -> str:
        return sha256_of(self.files) if self._files else self._base.sha256()

    def tokenizer(self) -> Tokenizer:
        return self._base.tokenizer()
