"""A model that is no student is opened as one, built at the precision that will be served, and outlives its file."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.config import EngineConfig
from engines.sequence import GenerationRequest, SamplingParams
from models.building.cached_student import StudentCache
from models.errors import ConfigError
from models.sources.source import open_source
from models.student.manifest import read_manifest
from server.settings.config import StudentConfig
from server.students import built_student
from server.students.built_student import default_precisions, find_built, precisions_to_build
from server.students.open_student import Opened, make_opener

WAIT_S = 120.0


@pytest.fixture
def cache(tmp_path: Path) -> StudentCache:
    return StudentCache(folder=tmp_path / "cache", report=lambda line: None)


@pytest.fixture
def file(tiny_source: Any, tiny_gguf: Any) -> Path:
    found: Path = tiny_gguf(tiny_source("llama"), quantisation="Q4_0")
    return found


@pytest.mark.parametrize(
    ("kind", "has_native", "auto", "adaptive"),
    [
        ("Q4_0", True, ["gguf-native"], ["gguf-native"]),
        ("Q4_0", False, ["w8a8"], ["w8a8"]),
        ("Q5_1", True, ["w8a8-native"], ["w8a8-native", "w8a8"]),
        ("F16", False, ["w8a8"], ["w8a8"]),
        (None, True, ["w8a8-native"], ["w8a8-native", "w8a8"]),
    ],
)
def test_what_is_built_is_what_will_be_served(
    tiny_source: Any, tiny_gguf: Any, kind: str | None, has_native: bool, auto: list[str], adaptive: list[str]
) -> None:
    folder = tiny_source("llama")
    model = open_source(folder if kind is None else tiny_gguf(folder, quantisation=kind))
    assert list(precisions_to_build(model, has_native=has_native, is_auto=True)) == auto
    assert list(precisions_to_build(model, has_native=has_native, is_auto=False)) == adaptive


@pytest.mark.parametrize(
    ("precision", "kind", "built"), [("fp32", "onnx", "fp32"), ("auto", "vllm", "fp32"), ("auto", "onnx", "w8a8")]
)
def test_precision_of_the_settings_is_built(
    cache: StudentCache, file: Path, precision: str, kind: Any, built: str
) -> None:
    """Without a folder for native operators there are none."""
    folder = find_built(cache, file, EngineConfig(precision=precision), kind)
    assert [one.name for one in read_manifest(folder).variants] == [built]


def test_precision_that_does_not_exist_is_refused(cache: StudentCache, file: Path) -> None:
    with pytest.raises(ConfigError, match="no int3; there are fp32"):
        find_built(cache, file, EngineConfig(precision="int3"), "onnx")


@pytest.mark.parametrize(
    ("precision", "has_native", "wanted"),
    [
        ("auto", True, ["w8a8-native"]),
        ("auto", False, ["w8a8"]),
        ("adaptive", True, ["w8a8-native", "w8a8"]),
        ("adaptive", False, ["w8a8"]),
        ("fp32", True, ["fp32"]),
    ],
)
def test_default_student_is_wanted_at_what_will_be_served(
    precision: str, has_native: bool, wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built_student, "library_path", lambda folder: tmp_path if has_native else None)
    assert list(default_precisions(EngineConfig(precision=precision, native_folder=tmp_path))) == wanted


def test_operators_are_not_compiled_for_what_is_no_model(
    cache: StudentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built_student, "library_path", lambda folder: pytest.fail("compiled"))
    with pytest.raises(ConfigError, match="does not exist; give a student folder"):
        find_built(cache, tmp_path / "nothing", EngineConfig(native_folder=tmp_path), "onnx")


@pytest.fixture
def answer() -> Iterator[Callable[[Opened], tuple[int, ...]]]:
    """Start an engine once, and let it answer greedily."""
    started: list[Opened] = []
    tokens: dict[str, list[int]] = {}
    ended = threading.Event()

    def listen(events: Any) -> None:
        for event in events:
            tokens.setdefault(event.sequence_id, []).extend(event.token_ids)
            if event.finish is not None:
                ended.set()

    def answer(opened: Opened) -> tuple[int, ...]:
        if opened not in started:
            opened.engine.start(listen)
            started.append(opened)
        ended.clear()
        id = f"r{len(tokens)}"
        sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        opened.engine.submit(GenerationRequest(id=id, prompt_token_ids=(5, 6), path="full", sampling=sampling))
        assert ended.wait(WAIT_S)
        return tuple(tokens[id])

    yield answer
    for opened in started:
        opened.engine.stop(0.0)


@pytest.mark.parametrize("precision", ["auto", "gguf-native"])
def test_answers_stay_what_they_are_whatever_happens_to_the_file(
    cache: StudentCache,
    file: Path,
    native_library: Path,
    answer: Callable[[Opened], tuple[int, ...]],
    precision: str,
) -> None:
    engine = EngineConfig(precision=precision, max_running=2, native_folder=native_library.parent)
    opened = make_opener(engine, cache=cache)(StudentConfig(folder=file))
    assert opened.name == file.stem
    first = answer(opened)
    os.truncate(file, 100)
    assert answer(opened) == first
    file.write_bytes(b"something else entirely")
    assert answer(opened) == first
    file.unlink()
    assert answer(opened) == first
    assert len(first) == 8


def test_model_takes_the_name_of_its_settings(cache: StudentCache, file: Path) -> None:
    opener = make_opener(EngineConfig(), cache=cache)
    assert opener(StudentConfig(folder=file, name="mine")).name == "mine"
    copy = file.with_name("renamed.gguf")
    file.rename(copy)
    assert opener(StudentConfig(folder=copy)).name == "renamed"


def test_model_without_a_chat_template_is_served_with_a_warning(
    cache: StudentCache, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opener = make_opener(EngineConfig(), cache=cache)
    opener(StudentConfig(folder=file))
    assert "no chat template" not in caplog.text
    content = file.read_bytes()
    assert b"tokenizer.chat_template" in content
    file.write_bytes(content.replace(b"tokenizer.chat_template", b"tokenizer.chat_tEmplate"))
    assert opener(StudentConfig(folder=file)).student.tokenizer.chat_template is None
    assert "no chat template student=" in caplog.text


def test_model_is_refused_where_there_is_no_cache(file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{file} is not a student folder"):
        make_opener(EngineConfig())(StudentConfig(folder=file))
