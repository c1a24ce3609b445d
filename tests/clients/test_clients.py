"""Real clients against a running server: each cell of docs/clients.md is one test. `make test-clients`."""

import re
from functools import partial

import httpx
import pytest

from tests.clients.clients import CLIENTS, KNOWN_FAILURES, Client
from tests.clients.conftest import KEY, StartProgram
from tests.clients.judges import JUDGES
from tests.clients.prompts import PROMPTS
from tests.clients.table import Results
from tests.server.conftest import until

pytestmark = [pytest.mark.clients]

CELLS = [(client, capability) for client in CLIENTS for capability in client.capabilities]
SENSIBLE = ("chat", "stream", "structured", "load")
"""Capabilities that the default student answers; the others depend on what exactly is said, or when."""


def cell_id(cell: object) -> str:
    return cell.program if isinstance(cell, Client) else str(cell)


@pytest.mark.parametrize(("client", "capability"), CELLS, ids=cell_id)
def test_client_works(
    client: Client,
    capability: str,
    results: Results,
    start_program: StartProgram,
    request: pytest.FixtureRequest,
) -> None:
    if client.is_optional and not client.is_installed:
        pytest.skip(f"{client.name} is large and not installed: `make test-clients ALL=1`")
    if (client.program, capability) in KNOWN_FAILURES:
        why = KNOWN_FAILURES[client.program, capability]
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))
    is_scripted = client.needs_script or not (client.is_optional or capability in SENSIBLE)
    url = request.getfixturevalue("scripted_url" if is_scripted else "default_url")
    model = "scripted" if is_scripted else "auto"
    target = {"url": url, "key": KEY, "model": model, "prompts": PROMPTS}
    if client.is_optional:
        target["tokenizer"] = str(request.getfixturevalue("tokenizer"))
    num_aborted = aborted(url)
    with results.cell(client, capability):
        program = start_program(client)
        results.versions[client.program] = program.versions
        result = program.do(capability, **target)
        JUDGES[capability](result)
        if capability == "cancel":
            assert until(partial(has_more_aborted, url, num_aborted)), "the server still generates"


def aborted(url: str) -> int:
    """Sequences that ended because nobody wanted them any more."""
    text = httpx.get(f"{url}/metrics").text
    return sum(int(float(number)) for number in re.findall(r'finished_reason="abort"\S* (\S+)', text))


def has_more_aborted(url: str, number: int) -> bool:
    return aborted(url) > number
