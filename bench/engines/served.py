"""fenhe over HTTP: this process is the client, and `fenhe serve` runs as its child on a free loopback port."""

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from bench.command import installed_command, installed_version
from bench.engines.sse_client import StreamedAnswer, http_request, read_answer, run_job
from bench.protocol import Generate, Generated, Occupied, Occupy, Setup, Started, StartUp, Task
from bench.subject import Measure, SubjectAbsent
from models.student.manifest import Manifest, read_manifest

LOAD_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.01
LOAD_POLL_S = 0.02
NUM_SLOTS = 32
FP32_BYTES = 4
KV_MARGIN = 1.1


class FenheServe:
    """One server at a time: kept between jobs, a new one for start-up and for memory."""

    def open(self, setup: Setup) -> str:
        if setup.student is None:
            raise SubjectAbsent("fenhe serve needs a student folder: give --student DIR")
        self._setup = setup
        self._manifest = read_manifest(Path(setup.student))
        self._server: Server | None = None
        return installed_version()

    @property
    def measures(self) -> Mapping[type[Task], Measure]:
        return {Generate: self.generate, StartUp: self.start_up, Occupy: self.occupy}

    def close(self) -> None:
        if getattr(self, "_server", None) is not None:
            self._stop()

    def generate(self, task: Generate) -> Generated:
        if self._server is None:
            self._server = Server.start(self._setup, {})
            self._server.wait_until_loaded()
        requests = [self._request(self._server.port, prompt, task.num_tokens, task.path) for prompt in task.prompts]
        started = time.perf_counter()
        answers = self._run(self._server.port, requests)
        if any(answer.num_cached_tokens for answer in answers):
            raise RuntimeError("prompt tokens came from the prefix cache")
        return Generated(
            num_prompt_tokens=sum(len(prompt) for prompt in task.prompts),
            num_tokens=sum(answer.num_tokens for answer in answers),
            first_s=min(answer.first_token_s for answer in answers) - started,
            total_s=max(answer.last_s for answer in answers) - started,
        )

    def start_up(self, task: StartUp) -> Started:
        self._stop()
        self._server = server = Server.start(self._setup, {})
        listening = server.wait_until_listening()
        shallow = min(self._manifest.paths, key=lambda path: len(path.modules)).name
        request = self._request(server.port, task.prompt, 1, shallow)
        with ThreadPoolExecutor(max_workers=1) as beside:
            loaded = beside.submit(server.wait_until_loaded)
            answer = self._run(server.port, [request])[0]
            loaded_s = loaded.result()
        self._stop()
        return Started(
            listening_s=listening - server.started_s,
            first_token_s=answer.first_token_s - server.started_s,
            all_loaded_s=loaded_s - server.started_s,
        )

    def occupy(self, task: Occupy) -> Occupied:
        self._stop()
        kv_bytes = kv_bytes_for(self._manifest, len(task.prompts), task.num_tokens)
        self._server = server = Server.start(self._setup, {"FENHE_ENGINE__KV_BYTES": str(kv_bytes)})
        server.wait_until_loaded()
        idle = server.memory_mib("VmRSS")
        requests = [self._request(server.port, prompt, task.num_tokens - len(prompt), None) for prompt in task.prompts]
        rss = self._largest_rss_during(server, requests)
        peak = server.memory_mib("VmHWM")
        self._stop()
        return Occupied(rss_mib=rss, peak_rss_mib=peak, idle_rss_mib=idle)

    def _largest_rss_during(self, server: "Server", requests: list[bytes]) -> float:
        async def watch() -> float:
            job = asyncio.ensure_future(run_job(server.port, requests))
            largest = 0.0
            while not job.done():
                largest = max(largest, server.memory_mib("VmRSS"))
                await asyncio.wait([job], timeout=0.1)
            for pieces in job.result():
                read_answer(pieces)
            return largest

        return asyncio.run(watch())

    def _run(self, port: int, requests: list[bytes]) -> list[StreamedAnswer]:
        return [read_answer(pieces) for pieces in asyncio.run(run_job(port, requests))]

    def _request(self, port: int, prompt: Sequence[int], num_tokens: int, path: str | None) -> bytes:
        body: dict[str, Any] = {
            "model": f"{self._manifest.name}:{path or self._manifest.full_path.name}",
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return http_request(port, "/v1/completions", body)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


@dataclass(slots=True, kw_only=True)
class Server:
    """A `fenhe serve` process. `started_s` is on the `time.perf_counter` clock, taken before the process exists."""

    process: subprocess.Popen[bytes]
    port: int
    started_s: float
    log: IO[bytes]

    @classmethod
    def start(cls, setup: Setup, settings: Mapping[str, str]) -> "Server":
        assert setup.student is not None
        port = free_port()
        environ = {
            **os.environ,
            "FENHE_ENGINE__NUM_THREADS": str(setup.num_threads),
            "FENHE_ENGINE__MAX_RUNNING": str(NUM_SLOTS),
            "FENHE_ENGINE__PRECISION": setup.precision,
            **settings,
        }
        command = [installed_command(), "serve", "--student", setup.student, "--port", str(port)]
        log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        return cls(process=process, port=port, started_s=started, log=log)

    def wait_until_listening(self) -> float:
        """When the port first took a connection."""
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
            except ConnectionRefusedError:
                self._check_alive()
                time.sleep(POLL_S)
            else:
                return time.perf_counter()

    def wait_until_loaded(self) -> float:
        """When /startup first said that every path can be served."""
        self.wait_until_listening()
        while not self._is_loaded():
            self._check_alive()
            time.sleep(LOAD_POLL_S)
        return time.perf_counter()

    def memory_mib(self, field: str) -> float:
        """A field of /proc/PID/status, such as VmRSS."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"the server's process has no {field}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _is_loaded(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            connection.request("GET", "/startup")
            progress = msgspec.json.decode(connection.getresponse().read())
        finally:
            connection.close()
        return all(path["is_servable"] for path in progress["paths"])

    def _check_alive(self) -> None:
        is_late = time.perf_counter() - self.started_s > LOAD_TIMEOUT_S
        if self.process.poll() is None and not is_late:
            return
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip()[-600:]
        state = f"not up after {LOAD_TIMEOUT_S:g} s" if is_late else f"exit code {self.process.returncode}"
        raise RuntimeError(f"fenhe serve: {state}: {said}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kv_bytes_for(manifest: Manifest, num_slots: int, num_tokens: int) -> int:
    """Room for every slot's KV on the full path, at the widest element the engine uses."""
    layers = manifest.num_layers_on(manifest.full_path)
    per_token = 2 * layers * manifest.architecture.kv_size * FP32_BYTES
    return int(per_token * num_slots * num_tokens * KV_MARGIN)
