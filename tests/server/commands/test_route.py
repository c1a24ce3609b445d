"""`fenhe route`: asking a server, deciding here, and what is printed."""

import json
from pathlib import Path

import msgspec
import pytest

from models.student.manifest import write_manifest
from router.decision import Reason
from server.commands import route
from server.commands.cli import main
from server.commands.route import idle_state, show
from server.wire.status import RouteReply, TargetReply
from tests.file_entries import entries_of
from tests.server.conftest import Served, WordClassifier, make_manifest, make_tokenizer

REPLY = RouteReply(
    student="tiny",
    path="shallow",
    head="cheap",
    task="math",
    language="en",
    confidence=0.9,
    reason=Reason.TASK,
    probabilities={"general": 0.1, "math": 0.9},
    num_prompt_tokens=12,
    fallbacks=[TargetReply(student="big", path="full", head="exact")],
    skipped={"ill": "it is unhealthy"},
    decision_us=81.4,
)


def test_route_asks_a_server(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "some math", "--url", served.url, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["task"], body["path"], body["reason"]) == ("math", "shallow", "task")
    assert main(["route", "hello", "--url", served.url, "--task", "math", "--quality", "full"]) == 0
    assert capsys.readouterr().out.startswith("not classified\nstudent tiny, path full, task math (wished_quality)\n")


def test_route_shows_scores_best_first_and_the_decision() -> None:
    assert show(REPLY, is_json=False).split("\n") == [
        "math       0.900  " + "#" * 27,
        "general    0.100  ###",
        "student tiny, path shallow, task math (task)",
        "cheap head, language en",
        "12 prompt tokens, decided in 81 us",
        "else: student big, path full",
        "passed over: student ill: it is unhealthy",
    ]


def test_route_json_is_the_answer_itself() -> None:
    assert msgspec.json.decode(show(REPLY, is_json=True), type=RouteReply) == REPLY


def make_folder(folder: Path) -> Path:
    make_tokenizer().save(folder)
    write_manifest(folder, msgspec.structs.replace(make_manifest(), files=entries_of(folder)))
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["some math"], ("math", "shallow", "task")),
        (["hello"], ("general", "full", "general")),
        (["hello", "--task", "math"], ("math", "shallow", "wished_task")),
        (["some math", "--quality", "full"], ("general", "full", "wished_quality")),
    ],
)
def test_route_decides_here(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: tuple[str, str, str],
) -> None:
    monkeypatch.setattr(route, "load_classifier", lambda config: WordClassifier())
    assert main(["route", *arguments, "--student", str(make_folder(tmp_path)), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["task"], body["path"], body["reason"]) == expected
    assert body["num_prompt_tokens"] == len(f"user\n{arguments[0]}\nassistant\n") + 3
    assert (body["probabilities"] is None) == (len(arguments) > 1)


def test_route_takes_the_measured_precision() -> None:
    assert idle_state(make_manifest()).variant == "scripted"


def test_route_without_a_server_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "x", "--url", "http://127.0.0.1:9"]) == 2
    assert "fenhe serve" in capsys.readouterr().err


def test_route_takes_a_server_or_a_student(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["route", "x", "--url", "http://x", "--student", "y"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
