"""Codex CLI, `/v1/responses`. Each capability is a run of its command for programs, `codex exec`."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.clients.programs.openai_chat import Person
from tests.clients.programs.program import Result, Target, run

CODEX = Path(__file__).parents[1] / "node_modules" / ".bin" / "codex"
SETTINGS = """
model = {model}
model_provider = "suite"

[model_providers.suite]
name = "suite"
base_url = {base_url}
env_key = "SUITE_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
ALONE = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json")


def start(to: Target, folder: str, arguments: list[str], *, model: str | None = None, key: str | None = None) -> Any:
    """The prompt comes from stdin, as a long one must."""
    settings = SETTINGS.format(model=json.dumps(model or to.model), base_url=json.dumps(to.base_url))
    Path(folder, "config.toml").write_text(settings)
    environ = os.environ | {"CODEX_HOME": folder, "HOME": folder, "SUITE_KEY": key or to.key}
    command = [str(CODEX), "exec", *arguments, *ALONE, "-"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environ, text=True, start_new_session=True, **pipes)


def codex(to: Target, prompt: str, folder: str, *arguments: str, **options: Any) -> list[Any]:
    """The events of a run."""
    with start(to, folder, list(arguments), **options) as process:
        printed, errors = process.communicate(prompt, timeout=120)
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert events, errors
    return events


def items(events: list[Any], kind: str) -> list[Any]:
    return [event["item"] for event in events if event["type"] == "item.completed" and event["item"]["type"] == kind]


def said(events: list[Any]) -> str:
    messages = items(events, "agent_message")
    assert messages, events
    text: str = messages[-1]["text"]
    return text


def chat(to: Target) -> Result:
    """A run, and another that resumes it."""
    with tempfile.TemporaryDirectory() as folder:
        events = codex(to, to.prompts["chat"], folder)
        more = said(codex(to, to.prompts["more"], folder, "resume", "--last"))
    usage = next(event["usage"] for event in events if event["type"] == "turn.completed")
    return {
        "text": said(events),
        "finish": None,
        "usage": [usage["input_tokens"], usage["output_tokens"]],
        "more": more,
    }


def tools(to: Target) -> Result:
    """It runs the command that it is told to, and sends back what that printed."""
    with tempfile.TemporaryDirectory() as folder:
        events = codex(to, to.prompts["command"], folder)
    (command,) = items(events, "command_execution")
    assert command["exit_code"] == 0, command
    return {
        "calls": [[["get_weather", {"city": "Oslo"}]]] if command["aggregated_output"] else [],
        "texts": [said(events)],
    }


def structured(to: Target) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        schema = Path(folder, "schema.json")
        schema.write_text(json.dumps(Person.model_json_schema()))
        events = codex(to, to.prompts["person"], folder, "--output-schema", str(schema))
    return {"values": [json.loads(said(events))]}


def errors(to: Target) -> Result:
    def failing(prompt: str, **options: Any) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            events = codex(to, prompt, folder, **options)
        (failed,) = [event for event in events if event["type"] == "turn.failed"]
        return {"type": "turn.failed", "status": None, "message": failed["error"]["message"]}

    return {
        "unknown_model": failing("hello", model="no-such-model"),
        "wrong_key": failing("hello", key="wrong"),
        "overloaded": failing(to.prompts["busy"]),
        "too_long": failing(to.prompts["long"]),
        "broken": failing(to.prompts["broken"]),
    }


def wait_until_running(to: Target) -> None:
    """The command says that its turn began before it has sent anything; the server says what it runs."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        with urllib.request.urlopen(f"{to.base_url.removesuffix('/v1')}/metrics") as response:
            lines = response.read().decode().splitlines()
        if any(line.startswith("vllm:num_requests_running") and not line.endswith(" 0.0") for line in lines):
            return
        time.sleep(0.1)
    raise AssertionError("the request never ran")


def cancel(to: Target) -> Result:
    """Ctrl-C, the only way that a command has: as from a terminal to all its processes, for the first one is a wrapper;
    and again where it came before the command took notice."""
    with tempfile.TemporaryDirectory() as folder, start(to, folder, []) as process:
        process.stdin.write(to.prompts["endless"])
        process.stdin.close()
        started = next(line for line in process.stdout if "turn.started" in line)
        wait_until_running(to)
        while process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
    return {"pieces": [started]}


if __name__ == "__main__":
    capabilities = {"chat": chat, "tools": tools, "structured": structured, "errors": errors, "cancel": cancel}
    package = json.loads((CODEX.parents[1] / "@openai" / "codex" / "package.json").read_text())
    run(capabilities, **{package["name"]: package["version"]})
