"""Students from their settings: all mistakes at once, and a classifier that may be absent."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.config import EngineConfig
from models.building.build import build_student
from models.errors import ConfigError, WeightsError
from router.conversation import Conversation
from router.router import Router
from server.settings.config import RouterConfig, StudentConfig
from server.students.open_student import Opened, load_classifier, make_opener, open_all
from tests.server.conftest import make_engine, make_student, open_scripted


def open_fake(config: StudentConfig) -> Opened:
    if config.folder == Path("broken"):
        raise WeightsError("a file is missing")
    if config.folder == Path("wrong"):
        raise ConfigError("no student folder")
    name = config.name or "own"
    return open_scripted(make_student(Path("/nowhere"), name), make_engine({}, student=name), config.tasks)


def test_open_all_keeps_the_order() -> None:
    opened = open_all([StudentConfig(name="b", tasks=("math",)), StudentConfig()], open_fake)
    assert [(student.name, student.tasks) for student in opened] == [("b", frozenset({"math"})), ("own", frozenset())]


def test_open_all_tells_everything_at_once() -> None:
    folders = [StudentConfig(folder=Path(name)) for name in ("broken", "wrong")]
    with pytest.raises(ConfigError) as caught:
        open_all([*folders, StudentConfig(), StudentConfig()], open_fake)
    for part in ("a file is missing", "no student folder", "two students are called 'own'"):
        assert part in caught.value.message


def test_opener_names_what_is_no_student(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fenhe build"):
        make_opener(EngineConfig())(StudentConfig(folder=tmp_path))
    with pytest.raises(ConfigError, match="folder"):
        make_opener(EngineConfig())(StudentConfig())


def test_vllm_that_is_not_installed_is_named_with_the_fix(
    tiny_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    config = StudentConfig(folder=tmp_path / "student", engine="vllm")
    with pytest.raises(ConfigError, match="needs vLLM, which is not installed: `make serve-vllm`"):
        make_opener(EngineConfig())(config)


def test_classifier_that_is_off_is_not_read(tmp_path: Path) -> None:
    assert load_classifier(RouterConfig(enabled=False, classifier=tmp_path / "nothing")) is None


def test_shipped_classifier_that_cannot_be_read_fails_on_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("router.classifier.classify.SHIPPED", tmp_path / "nothing")
    router = Router(load_classifier(RouterConfig()), RouterConfig())
    assert [router.classify(Conversation(last="x")) for _ in range(3)] == [None] * 3
    assert router.num_faults == 3
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_start_says_which_classifier_or_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load_classifier(RouterConfig())
        load_classifier(RouterConfig(enabled=False))
    assert re.search(r"classifier loaded file=.*safetensors trained_on=[0-9a-f]{12}$", caplog.messages[0])
    assert caplog.messages[1] == "router off"
