"""A student as the server holds it, and which student and path a model id stands for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from engines.contract import EngineStatus
from engines.remote.student import RemoteStudent
from models.errors import Unavailable, UnknownModel
from models.student.manifest import MANIFEST_NAME, Manifest
from models.text_guard import TextGuard
from router.decision import StudentState
from router.pool import AUTO, Member
from server.students.admission_gate import StudentAdmission
from server.students.event_bridge import Bridge
from server.students.grammars import Grammars
from server.telemetry.metrics import StudentMetrics

RETRY_AFTER_S = 5.0


class Template(Protocol):
    """What the server uses of `models.chat_template.ChatTemplate`."""

    @property
    def writes_tools(self) -> bool: ...

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str: ...


class Tokenizer(Protocol):
    """What the server uses of `models.tokenizer.Tokenizer`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def chat_template(self) -> Template | None: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def is_special(self, token_id: int, /) -> bool: ...

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]: ...

    @property
    def guard(self) -> TextGuard: ...

    def encode_guarded(self, text: str, /) -> list[int]: ...

    def least_tokens(self, text: str, /) -> int: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...

    def token_name(self, token_id: int, /) -> str: ...


class Student(Protocol):
    """What the server uses of `models.student.folder.Student`."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def is_verified(self) -> bool: ...


@dataclass(slots=True, kw_only=True, eq=False)
class ServedStudent(Member):
    """A member of the pool with what brings its engine's events to clients. `version` is the server's own."""

    student: Student
    bridge: Bridge
    admission: StudentAdmission
    grammars: Grammars
    metrics: StudentMetrics
    version: str
    max_configured_tokens: int | None
    _status: EngineStatus | None = field(default=None, init=False)
    _digest: str | None = field(default=None, init=False)

    def status(self) -> EngineStatus:
        """What its engine says, with requests that wait for admission counted as waiting."""
        status = self.engine.status()
        return replace(status, num_waiting=status.num_waiting + self.admission.turns.queued.num_sequences)

    def state(self) -> StudentState:
        state = Member.state(self)  # not super(): a dataclass with slots is made twice, and super() knows the first
        return replace(state, num_waiting=state.num_waiting + self.admission.turns.queued.num_sequences)

    @property
    def fixed(self) -> EngineStatus:
        """The engine's first status, kept for what never changes: variant, KV, head and KV bound."""
        if self._status is None:
            self._status = self.engine.status()
        return self._status

    @property
    def remote(self) -> RemoteStudent | None:
        """The student, if its answers come from upstreams."""
        return self.student if isinstance(self.student, RemoteStudent) else None

    @property
    def manifest(self) -> Manifest:
        return self.student.manifest

    @property
    def tokenizer(self) -> Tokenizer:
        return self.student.tokenizer

    @property
    def max_context_tokens(self) -> int:
        """The longest prompt and answer together: the student's, the configured one, or what KV has room for."""
        bounds = (
            self.manifest.architecture.max_context_tokens,
            self.max_configured_tokens,
            self.fixed.kv_capacity_tokens,
        )
        return min(bound for bound in bounds if bound is not None)

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: changes when the version, the student, its precision, that of its KV or its
        head does."""
        status = self.fixed
        of_engine = f"{status.variant} {status.kv_precision} {status.head}"
        seed = f"{self.version} {self.manifest.name} {self.manifest.source_sha256} {of_engine}"
        return f"fp_{hashlib.sha256(seed.encode()).hexdigest()[:10]}"

    @property
    def digest(self) -> str:
        """Changes with anything that answers depend on, their head apart: files, cut, trained exits, precision,
        that of KV, version.

        Of a verified student the checksums in the manifest are those of what it has loaded. One that is not may answer
        from other files than its manifest says, so it has a digest of its own.
        """
        if self._digest is None:
            verified = b"verified" if self.student.is_verified else b"not verified"
            words = (self.fixed.variant, self.fixed.kv_precision, self.version)
            facts = [msgspec.json.encode(self.manifest), *(word.encode() for word in words), verified]
            self._digest = hashlib.sha256(b"\0".join(facts)).hexdigest()
        return self._digest

    @property
    def created(self) -> int:
        """When the student was built, in Unix seconds; a remote one, when it was opened."""
        if self.remote is not None:
            return self.remote.created
        file = self.student.folder / MANIFEST_NAME
        return int(file.stat().st_mtime) if file.exists() else 0


@dataclass(slots=True, kw_only=True, frozen=True)
class NamedModel:
    """A model id and what it fixes: nothing (`auto`), a student, or a student's path."""

    id: str
    student: str | None = None
    path: str | None = None


def named_models(students: Sequence[ServedStudent]) -> list[NamedModel]:
    """Every id `GET /v1/models` lists: `auto`, each student's name, and one per path."""
    models = [NamedModel(id=AUTO)] if students else []
    for student in students:
        models.append(NamedModel(id=student.name, student=student.name))
        models += [
            NamedModel(id=f"{student.name}:{path.name}", student=student.name, path=path.name)
            for path in student.manifest.paths
        ]
    return models


def find_model(students: Sequence[ServedStudent], name: str) -> NamedModel:
    """The model a request names. Raises: UnknownModel."""
    if name == AUTO:
        return NamedModel(id=AUTO)
    owner, colon, path = name.partition(":")
    for student in students:
        if student.name != owner:
            continue
        if not colon:
            return NamedModel(id=name, student=owner)
        if any(path == other.name for other in student.manifest.paths):
            return NamedModel(id=name, student=owner, path=path)
    listed = ", ".join(f"`{model.id}`" for model in named_models(students)) or "none"
    raise UnknownModel(f"the model `{name[:200]}` does not exist; this server has {listed}", param="model")


def find_student(students: Sequence[ServedStudent], name: str) -> ServedStudent:
    """The student of a model id, where only its tokenizer is asked for; `auto` is the first one.

    Raises: UnknownModel; Unavailable for `auto` when there is no student.
    """
    model = find_model(students, name)
    for student in students:
        if model.student in (None, student.name):
            return student
    raise Unavailable("this server has no student now", retry_after_s=RETRY_AFTER_S)
