"""One line per request: what it says, what it never says, and how it looks."""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.scripted import Line
from models.errors import StepFailed
from server.settings.config import KeysConfig, ServerConfig
from server.telemetry.logs import JsonFormatter, set_up_logging
from tests.server.conftest import SCRIPT, Served, Start, TinyStudent, make_engine, open_scripted, run_server, until

SECRET = "the-owl-flies-at-noon"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """`lines(n)`: the fields of the next `n` finished requests, in order."""
    caplog.set_level(logging.INFO)

    def found() -> list[dict[str, Any]]:
        return [getattr(record, "fields") for record in caplog.records if record.name == "server.request_log"]  # noqa: B009

    def take(count: int) -> list[dict[str, Any]]:
        assert until(lambda: len(found()) >= count)
        return found()

    return take


def test_log_has_one_line_with_what_a_request_took(served: Served, lines: Any) -> None:
    response = served.post(
        "/v1/chat/completions",
        {"model": "auto", "messages": [{"role": "user", "content": "math cached"}], "max_tokens": 1},
        headers={"x-request-id": "abc"},
    )
    assert response.is_success
    (line,) = lines(1)
    told = {name: line[name] for name in ("id", "method", "route", "status", "student", "path", "task", "cache")}
    assert told == {
        "id": "abc",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "student": "tiny",
        "path": "shallow",
        "task": "math",
        "cache": response.headers["x-fenhe-cache"],
    }
    usage = response.json()["usage"]
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert (line["cached_tokens"], line["completion_tokens"]) == (7, 1)
    assert line["compute_share"] == usage["fenhe"]["compute_share"]
    assert 0 < line["compute_share"] < 1
    assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["total_ms"]
    assert "error" not in line


def test_log_of_a_stream_is_as_that_of_a_body(served: Served, lines: Any) -> None:
    for is_stream in (False, True):
        body = {"model": "auto", "prompt": "a stream", "stream": is_stream, "fenhe": {"cache": False}}
        assert served.post("/v1/completions", body).is_success
    first, second = lines(2)
    assert set(first) == set(second)
    assert first["completion_tokens"] == second["completion_tokens"] == 4


def test_log_of_a_kept_answer_has_no_times_of_an_engine(served: Served, lines: Any) -> None:
    body = {"model": "auto", "prompt": "kept", "temperature": 0}
    for _ in range(2):
        assert served.post("/v1/completions", body).is_success
    miss, hit = lines(2)
    assert (miss["cache"], hit["cache"]) == ("miss", "hit")
    assert "ttft_ms" in miss
    assert not {"ttft_ms", "queue_ms"} & set(hit)
    assert hit["completion_tokens"] == 4
    assert (miss["compute_share"], hit["compute_share"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        (
            "POST",
            "/v1/completions",
            {"model": "auto", "prompt": SECRET, "suffix": SECRET},
            400,
            "unsupported_parameter",
        ),
        ("POST", "/v1/completions", {"model": SECRET, "prompt": SECRET}, 404, "model_not_found"),
        ("POST", f"/v1/{SECRET}", {}, 404, "not_found"),
        ("GET", "/v1/completions", None, 405, "method_not_allowed"),
    ],
)
def test_log_names_the_error(
    served: Served, lines: Any, method: str, path: str, body: Any, status: int, error: str
) -> None:
    assert served.http.request(method, path, json=body).status_code == status
    (line,) = lines(1)
    assert (line["status"], line["error"]) == (status, error)


@pytest.fixture
def keyed(student: TinyStudent, tmp_path: Path) -> Iterator[Served]:
    """A server with one key, `a`, that may ask once a minute."""
    file = tmp_path / "keys.toml"
    file.write_text(f'[[key]]\nname = "a"\nsha256 = "{hashlib.sha256(b"a").hexdigest()}"\nrequests_per_minute = 1\n')
    config = ServerConfig(keys=KeysConfig(file=file, metrics=False))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as running:
        yield running


def test_log_and_metrics_know_the_route_of_what_is_refused_at_the_door(keyed: Served, lines: Any) -> None:
    mine = {"authorization": "Bearer a"}
    statuses = [
        keyed.chat("hello", headers={**mine, "x-fenhe-deadline-ms": "soon"}).status_code,
        keyed.chat("hello", headers=mine).status_code,
        keyed.chat("hello", headers=mine).status_code,
        keyed.chat("hello").status_code,
    ]
    assert statuses == [400, 200, 429, 401]
    keyed.http.get("/v1/models/tiny:full")
    keyed.http.get(f"/v1/{SECRET}")
    keyed.context.drain.is_draining = True
    assert keyed.chat("hello", headers=mine).status_code == 503
    keyed.context.drain.is_draining = False
    chat = "/v1/chat/completions"
    assert [line["route"] for line in lines(7)] == [*[chat] * 4, "/v1/models/{model:path}", "unmatched", chat]
    metrics = keyed.http.get("/metrics").text
    for status in (400, 429, 401, 503):
        assert f'fenhe_http_requests_total{{method="POST",route="{chat}",status="{status}"}} 1.0' in metrics


def test_log_names_the_error_that_ended_a_stream(start: Start, lines: Any) -> None:
    served = start({"kaput": Line(pieces=("one ", "two"), delay_s=0.02, error=StepFailed("broken"))})
    served.post("/v1/completions", {"model": "auto", "prompt": "kaput", "stream": True})
    (line,) = lines(1)
    assert (line["status"], line["error"]) == (200, "step_failed")


def test_log_holds_nothing_of_prompts_and_keys(served: Served, caplog: pytest.LogCaptureFixture, lines: Any) -> None:
    headers = {"authorization": f"Bearer {SECRET}"}
    for body in ({"prompt": SECRET}, {"prompt": SECRET, "stream": True}, {"prompt": SECRET, "best_of": 7}):
        served.post("/v1/completions", {"model": "auto", "user": SECRET, **body}, headers=headers)
    lines(3)
    formatter = JsonFormatter()
    assert SECRET not in caplog.text
    assert not any(SECRET in formatter.format(record) for record in caplog.records)


def test_log_of_probes_is_for_debugging(served: Served, lines: Any) -> None:
    served.http.get("/health")
    served.http.get("/v1/models")
    assert [line["route"] for line in lines(1)] == ["/v1/models"]


def record_of(message: str, *args: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("server.x", logging.WARNING, "x.py", 1, message, args, None)
    record.__dict__.update(extra)
    return record


def test_json_formatter_makes_one_object_a_line() -> None:
    line = JsonFormatter().format(record_of("two\nlines %s", "ö", fields={"id": "a"}, event=None))
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {"level": "warning", "logger": "server.x", "message": "two\nlines ö", "id": "a"}


def test_json_formatter_keeps_tracebacks() -> None:
    record = record_of("failed")
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(JsonFormatter().format(record))["traceback"]


@pytest.fixture
def _own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_own_handlers")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_set_up_logging_writes_the_wanted_format(capsys: pytest.CaptureFixture[str], log_format: Any) -> None:
    set_up_logging(ServerConfig(log_format=log_format))
    logging.getLogger("server.x").info("hello")
    written = capsys.readouterr().err
    assert written.startswith("{") == (log_format == "json")
    assert "hello" in written
