"""guidellm, its backend `openai_http`."""

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


def benchmarked(to: Target, model: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
        command += ["--backend", f"kind=openai_http,target={to.url},model={model},api_key={to.key}"]
        command += ["--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={NUM_REQUESTS}"]
        command += ["--tokenizer", f"kind=hf_auto,model={to.tokenizer}"]
        command += ["--data", f"kind=synthetic_text,prompt_tokens=20,output_tokens={NUM_TOKENS}"]
        command += ["--output", f"kind=json,path={report}"]
        environ = os.environ | {"HF_HOME": folder}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280, check=False)
        assert report.exists(), (done.stdout + done.stderr)[-3000:]
        return json.loads(report.read_text())["benchmarks"][0]


def load(to: Target) -> Result:
    requests = benchmarked(to, to.model)["requests"]
    return {
        "expected": NUM_REQUESTS,
        "succeeded": len(requests["successful"]),
        "failed": requests["errored"],
        "tokens": [one["output_metrics"]["text_tokens"] for one in requests["successful"]],
    }


def errors(to: Target) -> Result:
    requests = benchmarked(to, "no-such-model")["requests"]
    assert not requests["successful"]
    return {"counted": [one["info"]["error"] for one in requests["errored"]]}


if __name__ == "__main__":
    run({"load": load, "errors": errors}, "guidellm")
