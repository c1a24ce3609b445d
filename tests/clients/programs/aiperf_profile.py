"""aiperf, its endpoint type `chat`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.programs.program import Result, Target, run

NUM_REQUESTS = 4
NUM_TOKENS = 16


def profiled(to: Target, model: str) -> Any:
    """What it wrote down; None where it found no request to report on."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--model": model, "--url": to.url, "--endpoint-type": "chat", "--api-key": to.key,
            "--tokenizer": to.tokenizer, "--request-count": NUM_REQUESTS, "--concurrency": 2,
            "--synthetic-input-tokens-mean": 20, "--output-tokens-mean": NUM_TOKENS, "--artifact-dir": folder,
            "--extra-inputs": json.dumps({"ignore_eos": True, "temperature": 0}), "--ui": "none",
        }  # fmt: skip
        command = ["aiperf", "profile", "--streaming", "--use-server-token-count"]
        command += [str(part) for pair in options.items() for part in pair]
        command[0] = str(Path(sys.executable).with_name("aiperf"))
        environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}  # it breaks folders
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280, check=False)
        written = list(Path(folder).rglob("profile_export_aiperf.json"))
        assert written or model != to.model, (done.stdout + done.stderr)[-3000:]
        return json.loads(written[0].read_text()) if written else None


def load(to: Target) -> Result:
    found = profiled(to, to.model)
    return {
        "expected": NUM_REQUESTS,
        "succeeded": int(found["request_count"]["avg"]),
        "failed": found["error_summary"],
        "tokens": [found["output_sequence_length"]["avg"]],
    }


def errors(to: Target) -> Result:
    found = profiled(to, "no-such-model")
    counted = [] if found is None else found["error_summary"]
    return {"counted": counted or ["no request to report on"]}


if __name__ == "__main__":
    run({"load": load, "errors": errors}, "aiperf")
