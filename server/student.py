"""What the server needs of a student: its manifest, its words, and which path a model id stands for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from models.errors import UnknownModel
from models.manifest import Manifest

AUTO = "auto"


class Template(Protocol):
    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str: ...


class Tokenizer(Protocol):
    """The seam to `models.tokenizer.Tokenizer`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def chat_template(self) -> Template | None: ...

    def encode(self, text: str, *, add_special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


class Student(Protocol):
    """The seam to `models.student.Student`."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(slots=True, kw_only=True, frozen=True)
class ServedModel:
    """A model id clients may name, and the path it runs. `id` is what answers carry."""

    id: str
    path: str


def served_models(manifest: Manifest) -> list[ServedModel]:
    """Every id `GET /v1/models` lists: `auto`, the student's name, and one per path."""
    full = manifest.full_path.name
    named = [ServedModel(id=AUTO, path=full), ServedModel(id=manifest.name, path=full)]
    return named + [ServedModel(id=f"{manifest.name}:{path.name}", path=path.name) for path in manifest.paths]


def find_model(manifest: Manifest, name: str) -> ServedModel:
    """The model a request names; `auto` answers under the student's own name.

    Raises: UnknownModel.
    """
    known = {model.id: model for model in served_models(manifest)}
    if name == AUTO:
        return known[manifest.name]
    if name not in known:
        listed = ", ".join(f"`{name}`" for name in known)
        raise UnknownModel(f"the model `{name[:200]}` does not exist; this server has {listed}", param="model")
    return known[name]
