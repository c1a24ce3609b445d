"""The command `llm`, `/v1/chat/completions`."""

import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.programs.openai_chat import Person
from tests.clients.programs.program import WEATHER, Result, Target, get_weather, run

FUNCTION = inspect.getsource(get_weather).replace("return WEATHER", f"return {WEATHER!r}")
DEFAULTS = ("-o", "temperature", "0", "-o", "max_tokens", "200")


def settings_for(to: Target, model: str, folder: str) -> dict[str, str]:
    """A folder of settings with one model of another server, as the command's manual describes it."""
    options = {"supports_schema": True, "supports_tools": True, "api_key_name": "suite"}
    entry = {"model_id": "suite", "model_name": model, "api_base": to.base_url, **options}
    Path(folder, "extra-openai-models.yaml").write_text(json.dumps([entry]))
    return os.environ | {"LLM_USER_PATH": folder}


def llm(
    to: Target, *arguments: str, folder: str | None = None, model: str | None = None, key: str | None = None
) -> Any:
    with tempfile.TemporaryDirectory() as own:
        command = [sys.executable, "-m", "llm", "prompt", "-m", "suite", "--key", key or to.key, *DEFAULTS, *arguments]
        environ = settings_for(to, model or to.model, folder or own)
        return subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )


def said(done: Any) -> str:
    assert done.returncode == 0, done.stderr
    text: str = done.stdout
    return text.strip()


def chat(to: Target) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        text = said(llm(to, "--no-stream", to.prompts["chat"], folder=folder))
        more = said(llm(to, "--no-stream", "--continue", to.prompts["more"], folder=folder))
    return {"text": text, "finish": None, "usage": None, "more": more}


def start(to: Target, folder: str, prompt: str) -> Any:
    command = [sys.executable, "-u", "-m", "llm", "prompt", "-m", "suite", "--key", to.key, "-o", "temperature", "0"]
    environ = settings_for(to, to.model, folder)
    return subprocess.Popen([*command, prompt], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def stream(to: Target) -> Result:
    with tempfile.TemporaryDirectory() as folder, start(to, folder, to.prompts["chat"]) as process:
        pieces = []
        while piece := os.read(process.stdout.fileno(), 65536):
            pieces.append(piece.decode())
    whole = said(llm(to, "--no-stream", to.prompts["chat"]))
    pieces[-1] = pieces[-1].rstrip("\n")  # the command's own
    return {"pieces": pieces, "finish": None, "usage": None, "whole": whole}


def tools(to: Target) -> Result:
    """Its loop, whole and as a stream; what it calls is told on stderr."""
    runs = [
        llm(to, "--functions", FUNCTION, "--tools-debug", *how, to.prompts["weather"]) for how in (["--no-stream"], [])
    ]
    calls = [calls_told(done.stderr) for done in runs]
    return {"calls": calls, "texts": [said(done) for done in runs]}


def calls_told(text: str) -> list[Any]:
    lines = [line for line in text.splitlines() if line.startswith("Tool call: ")]
    names = [line.removeprefix("Tool call: ").partition("(")[0] for line in lines]
    arguments = [line.partition("(")[2].rpartition(")")[0] for line in lines]
    return [[name, json.loads(one.replace("'", '"'))] for name, one in zip(names, arguments, strict=True)]


def structured(to: Target) -> Result:
    done = llm(to, "--no-stream", "--schema", json.dumps(Person.model_json_schema()), to.prompts["person"])
    return {"values": [json.loads(said(done))]}


def errors(to: Target) -> Result:
    def failing(prompt: str, **options: Any) -> Result:
        done = llm(to, prompt, **options)
        assert done.returncode != 0
        return {"type": "exit", "status": None, "message": done.stderr}

    return {
        "unknown_model": failing("hello", model="no-such-model"),
        "wrong_key": failing("hello", key="wrong"),
        "overloaded": failing(to.prompts["busy"]),
        "broken": failing(to.prompts["broken"]),
    }


def cancel(to: Target) -> Result:
    """Ctrl-C, the only way that a command has."""
    with tempfile.TemporaryDirectory() as folder, start(to, folder, to.prompts["endless"]) as process:
        pieces = [os.read(process.stdout.fileno(), 65536).decode() for _ in range(2)]
        process.send_signal(signal.SIGINT)
    return {"pieces": pieces}


if __name__ == "__main__":
    capabilities = {"chat": chat, "stream": stream, "tools": tools, "structured": structured}
    run(capabilities | {"errors": errors, "cancel": cancel}, "llm")
