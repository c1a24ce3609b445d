"""A real vLLM, and students that it serves, with a torch reference that says what each path answers."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.config import EngineConfig
from engines.sequence import Finish, GenerationRequest, SamplingParams
from models.building.build import build_student
from models.building.default_student import PACKAGED
from models.building.width_file import read_width_file
from models.reference import ReferenceDecoder
from models.sources.fetch import cache_folder
from models.sources.source import ModelSource, open_source
from models.student.folder import Student

Float = npt.NDArray[np.float32]

WARNINGS = pytest.mark.filterwarnings("ignore")
"""vLLM and what it imports warn of much that is not ours."""
START_S = 600.0
"""Three processes import torch and vLLM one after the other; on a busy machine that takes minutes."""


@dataclass
class Reference:
    """What paths answer, in plain torch."""

    source: ModelSource
    student: Student
    changed: Mapping[str, Mapping[str, Float]] = field(default_factory=dict)
    _decoders: dict[str, ReferenceDecoder] = field(default_factory=dict)

    def logits(self, path: str, ids: Sequence[int]) -> Float:
        """Of every position. Shapes: returns [T, V]."""
        named = self.student.manifest.path(path)
        if named.width not in self._decoders:
            self._decoders[named.width] = ReferenceDecoder(self.source, self.changed.get(named.width, {}))
        decoder = self._decoders[named.width]
        hidden = decoder.layers(decoder.embed(ids), 0, self.student.manifest.num_layers_on(named))
        return np.asarray(decoder.logits(hidden))


@dataclass
class Served:
    """A running engine. Ids are given out here."""

    student: Student
    reference: Reference
    engine: Any
    listener: Any
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def submit(self, path: str, prompt: Sequence[int], **sampling: Any) -> str:
        id = f"r{next(self.numbers)}"
        options = {name: sampling.pop(name) for name in ("cache_salt", "needs_exact_head") if name in sampling}
        params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, **sampling})
        request = GenerationRequest(id=id, prompt_token_ids=tuple(prompt), path=path, sampling=params, **options)
        self.engine.submit(request)
        return id

    def finish(self, id: str) -> Finish:
        finish: Finish = self.listener.finish(id, START_S)
        return finish

    def tokens(self, id: str) -> list[int]:
        self.finish(id)
        found: list[int] = self.listener.tokens(id)
        return found

    def answer(self, path: str, prompt: Sequence[int], **sampling: Any) -> list[int]:
        return self.tokens(self.submit(path, prompt, **sampling))

    def steps(self) -> list[Mapping[str, Any]]:
        """What the model ran lately. For a quiet engine: two threads must not talk to the process at once."""
        found: list[Mapping[str, Any]] = self.engine._process.steps()
        return found


StartEngine = Callable[..., Served]


@pytest.fixture(scope="session")
def default_fp32() -> Student:
    """The default student in fp32, with its widths and its cheap head, built into the cache once for each file of
    widths."""
    import hashlib
    import os

    from models.sources.fetch import pull

    cache = cache_folder(os.environ)
    digest = hashlib.sha256((PACKAGED / "smollm2-135m.widths.safetensors").read_bytes()).hexdigest()
    folder = cache / "students" / f"smollm2-135m-vllm-{digest[:12]}"
    if not (folder / "manifest.json").exists():
        build_student(
            pull("smollm2-135m", cache, show_progress=False),
            folder,
            name="smollm2-135m",
            precisions=("fp32", "w8a8-native"),
            widths=PACKAGED / "smollm2-135m.widths.safetensors",
            head=PACKAGED / "smollm2-135m.head.safetensors",
        )
    return Student.open(folder)


@pytest.fixture(scope="session")
def default_reference(default_fp32: Student) -> Reference:
    import os

    from models.sources.fetch import pull

    source = open_source(pull("smollm2-135m", cache_folder(os.environ), show_progress=False))
    widths = read_width_file(PACKAGED / "smollm2-135m.widths.safetensors")
    changed = {width.name: widths.narrow_tensors(source, width.name) for width in default_fp32.manifest.widths}
    return Reference(source=source, student=default_fp32, changed=changed)


def serve(student: Student, reference: Reference, listener: Any, options: Mapping[str, Any], **settings: Any) -> Served:
    from engines.vllm.build import build_vllm_engine

    config = EngineConfig(**{"max_context_tokens": 512, "kv_bytes": 256 << 20, "head": "exact", **settings})
    engine = build_vllm_engine(student, config, {"enforce_eager": True, **options})
    engine.start(listener.publish)
    return Served(student=student, reference=reference, engine=engine, listener=listener)


@pytest.fixture(scope="module")
def served_default(default_fp32: Student, default_reference: Reference, module_listener: Any) -> Iterator[Served]:
    """The default student behind an engine whose exact head answers, unless a request says otherwise."""
    served = serve(default_fp32, default_reference, module_listener, {}, head="auto")
    yield served
    served.engine.stop(0)


@pytest.fixture(scope="module")
def module_listener() -> Any:
    from tests.engines.conftest import Listener

    return Listener()


@pytest.fixture
def start_engine(make_listener: Any) -> Iterator[StartEngine]:
    started: list[Served] = []

    def start(student: Student, reference: Reference, options: Mapping[str, Any] | None = None, **settings: Any) -> Any:
        started.append(serve(student, reference, make_listener(), options or {}, **settings))
        return started[-1]

    yield start
    for served in started:
        served.engine.stop(0)
