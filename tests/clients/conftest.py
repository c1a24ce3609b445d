"""Servers, clients' programs, and the results of the cells, which become docs/clients.md."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest.served import ServedProcess, installed_command, keyed
from models.building.default_student import DEFAULT_MODEL
from tests.clients.clients import ENVIRONMENTS, ROOT, Client
from tests.clients.program_process import ProgramProcess
from tests.clients.table import Results, report

KEY = "clients-suite"
SETTINGS = keyed(KEY) | {"FENHE_CACHE__ENABLED": "false"}
"""Without the cache, from which a stream comes in one piece."""


@pytest.fixture(scope="session")
def scripted_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the students `scripted` and `random`."""
    log = tmp_path_factory.mktemp("scripted") / "log"
    environ = os.environ | SETTINGS
    command = [sys.executable, "-m", "tests.clients.scripted_server"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True)
        with process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, log.read_text()
            yield url
            process.terminate()


@pytest.fixture(scope="session")
def default_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`fenhe serve` with the default student."""
    server = ServedProcess(SETTINGS, tmp_path_factory.mktemp("default") / "log")
    try:
        yield server.wait_for_url(600)
    finally:
        server.stop()


@pytest.fixture(scope="session")
def tokenizer(default_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default student's tokenizer in a folder that other tools load."""
    folder = tmp_path_factory.mktemp("export") / "tokenizer"
    command = [installed_command(), "export", DEFAULT_MODEL, "--format", "hf", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


StartProgram = Callable[[Client], ProgramProcess]


@pytest.fixture(scope="session")
def start_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProgram]:
    """One process per client, started when the first of its cells is tried."""
    running: dict[str, ProgramProcess] = {}
    folder = tmp_path_factory.mktemp("programs")
    environ = client_environ(folder)

    def start(client: Client) -> ProgramProcess:
        if client.program not in running:
            running[client.program] = ProgramProcess(client.command(), environ, folder / f"{client.program}.log")
        return running[client.program]

    yield start
    for process in running.values():
        process.stop()


def client_environ(home: Path) -> dict[str, str]:
    """No key, address or telemetry of the user's own reaches a client."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    kept["PATH"] = f"{ENVIRONMENTS / 'sdk' / 'bin'}:{kept['PATH']}"
    quiet = {"DO_NOT_TRACK": "1", "OPENAI_AGENTS_DISABLE_TRACING": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return kept | quiet | {"HOME": str(home), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    found = Results()
    yield found
    report(found)
