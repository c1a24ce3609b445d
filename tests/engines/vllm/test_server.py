"""`fenhe serve` with a student behind vLLM, asked by the official client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.student.folder import Student
from tests.engines.vllm.conftest import START_S, WARNINGS

pytestmark = [pytest.mark.vllm, WARNINGS, pytest.mark.timeout(1800)]

PATHS = ("full", "wide", "medium", "narrow")
CONFIG = """
[[student]]
folder = "{folder}"
engine = "vllm"

[student.vllm]
enforce_eager = true

[engine]
max_context_tokens = 512
kv_bytes = 268435456

[cache]
enabled = false
"""


class Server:
    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port = process, port

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "the server ended"
        try:
            self.get("/readyz")
        except OSError:
            return False
        return True

    def until_ready(self) -> None:
        deadline_s = time.monotonic() + START_S
        while not self.is_ready():
            assert time.monotonic() < deadline_s
            time.sleep(0.5)


@pytest.fixture(scope="module")
def server(default_fp32: Student, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "fenhe.toml").write_text(CONFIG.format(folder=default_fp32.folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("fenhe")), "serve", "--config", str(folder / "fenhe.toml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, text=True)
    started = Server(process, port)
    try:
        started.until_ready()
        yield started
    finally:
        process.kill()
        process.wait()
        print((folder / "log").read_text()[-4000:])


@pytest.fixture
def client(server: Server) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", timeout=300, max_retries=0)


ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}


@pytest.mark.parametrize("path", PATHS)
def test_each_path_answers_whole_and_streamed(client: Any, path: str) -> None:
    ask = {**ASK, "model": f"smollm2-135m:{path}", "max_tokens": 16}
    whole = client.chat.completions.create(**ask)
    assert whole.usage.completion_tokens == 16 or whole.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert (
        "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == whole.choices[0].message.content
    )
    assert whole.choices[0].message.content


def test_structured_output_and_logprobs_reach_the_client(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(**ASK, model="smollm2-135m", response_format=form, max_tokens=40)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")
    answer = client.chat.completions.create(
        **ASK, model="smollm2-135m:wide", logprobs=True, top_logprobs=3, max_tokens=4, n=2
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert all(len(one.top_logprobs) == 3 for one in choice.logprobs.content)


def test_refusals_name_what_is_refused(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match=r"temperature 0\.001 is below what vLLM takes"):
        client.chat.completions.create(**{**ASK, "temperature": 0.001}, model="smollm2-135m")
    with pytest.raises(openai.NotFoundError, match="smollm2-135m:other"):
        client.chat.completions.create(**ASK, model="smollm2-135m:other")


def test_metrics_tell_what_ran(server: Server, client: Any) -> None:
    client.chat.completions.create(**ASK, model="smollm2-135m:narrow", max_tokens=2)
    time.sleep(1.5)
    text = server.get("/metrics")
    rows = [line for line in text.splitlines() if "stage" in line and "knowledge" in line and not line.startswith("#")]
    assert rows
    assert any(float(line.rsplit(" ", 1)[1]) > 0 for line in rows)


def refused(client: Any) -> Any:
    """Ask; the error, if it was one."""
    import openai

    try:
        client.chat.completions.create(**ASK, model="smollm2-135m", max_tokens=64)
    except openai.APIStatusError as error:
        return error
    return None


def test_a_killed_engine_is_a_503_and_comes_back(server: Server, client: Any) -> None:
    import psutil  # where vLLM is, so is this

    family = psutil.Process(server.process.pid).children(recursive=True)
    (worker, *_) = [one for one in family if "Worker" in " ".join(one.cmdline())] or family[-1:]
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)
    refusal = None
    deadline_s = time.monotonic() + 60
    while refusal is None:
        refusal = refused(client)
        assert time.monotonic() < deadline_s
    assert refusal.status_code == 503
    assert int(refusal.response.headers["retry-after"]) > 0
    server.until_ready()
    assert client.chat.completions.create(**ASK, model="smollm2-135m", max_tokens=2).choices[0].message.content


def test_sigterm_lets_requests_finish(server: Server, client: Any) -> None:
    stream = client.chat.completions.create(**ASK, model="smollm2-135m:narrow", max_tokens=48, stream=True)
    first = next(iter(stream))
    assert first.choices
    server.process.send_signal(signal.SIGTERM)
    reasons = [one.choices[0].finish_reason for one in stream if one.choices]
    assert reasons[-1] in ("stop", "length")
    assert server.process.wait(120) == 0
