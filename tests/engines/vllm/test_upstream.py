"""A real `vllm serve` as the upstream of a remote student."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.engines.served import free_port
from models.building.default_student import find_student
from models.student.hugging_face_folder import export_hugging_face
from server.settings.config import ServerConfig
from tests.engines.vllm.conftest import START_S, WARNINGS
from tests.server.conftest import run_server, until
from tests.server.generation.same_answers import compare
from tests.server.upstreams import remote

pytestmark = [pytest.mark.vllm, WARNINGS, pytest.mark.timeout(2 * START_S)]

SERVER = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--enforce-eager"]
SMALL = ["--max-model-len", "1024", "--load-format", "dummy", "--served-model-name", "smol"]
SMALL += ["--kv-cache-memory-bytes", str(256 << 20)]  # else vLLM wants nearly all of the machine's memory to be free


@contextlib.contextmanager
def vllm_serve(model: Path, port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Weights are drawn, the same each time: what passes through is asked, not what it says."""
    with log.open("wb") as file:
        command = [*SERVER, *SMALL, "--model", str(model), "--port", str(port)]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its engine's processes outlive one that is killed
            process.wait(60)


def wait_until_up(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        assert process.poll() is None, log.read_text(errors="replace")[-8000:]
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/models").status_code == 200:
                return
        time.sleep(1.0)
    raise AssertionError(f"not up after {START_S:g} s: {log.read_text(errors='replace')[-8000:]}")


def test_vllm_serve_says_the_same_through_a_remote_student(tmp_path: Path) -> None:
    model, log, port = tmp_path / "model", tmp_path / "log", free_port()
    export_hugging_face(find_student(os.environ, print), model)
    url = f"http://127.0.0.1:{port}/v1"
    with vllm_serve(model, port, log) as process:
        wait_until_up(process, url, log)
        opened = remote(url, model="smol")
        with run_server([opened], ServerConfig()) as far, httpx.Client(base_url=url, timeout=300) as direct:
            through = httpx.Client(base_url=f"{far.url}/v1", timeout=300)
            with through:
                assert list(compare(direct, "smol", through, "far")) == []
            process.send_signal(signal.SIGSTOP)
            try:
                assert until(lambda: far.http.get("/readyz").status_code == 503, 30)
            finally:
                process.send_signal(signal.SIGCONT)
            assert until(lambda: far.http.get("/readyz").status_code == 200, 30)
            process.kill()
            assert until(lambda: far.chat("hello").status_code == 503, 30)
