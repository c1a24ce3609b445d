"""The official Python clients against a server without a model: the part of the suite that `make test` has time for."""

import sys
from functools import partial

import pytest

from tests.clients.clients import CLIENTS, Client
from tests.clients.conftest import KEY, client_environ
from tests.clients.judges import JUDGES
from tests.clients.program_process import ProgramProcess
from tests.clients.prompts import PROMPTS
from tests.clients.test_clients import aborted, has_more_aborted
from tests.server.conftest import until

QUICK = [client for client in CLIENTS if client.name in ("openai (Python)", "anthropic (Python)")]
MODELS = {"structured": "random"}
"""A student that says anything a grammar allows; the others need sense."""


@pytest.mark.parametrize("client", QUICK, ids=lambda client: client.program)
def test_official_client_works(client: Client, scripted_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", f"tests.clients.programs.{client.program}"]
    program = ProgramProcess(command, client_environ(folder), folder / "log")
    try:
        for capability in client.capabilities:
            num_aborted = aborted(scripted_url)
            target = {"url": scripted_url, "key": KEY, "model": MODELS.get(capability, "scripted"), "prompts": PROMPTS}
            JUDGES[capability](program.do(capability, **target))
            if capability == "cancel":
                assert until(partial(has_more_aborted, scripted_url, num_aborted)), "the server still generates"
    finally:
        program.stop()
