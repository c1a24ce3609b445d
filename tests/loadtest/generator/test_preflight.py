"""What is wrong with a target is told by name, before a run."""

import pytest

from loadtest.generator.preflight import TargetError, check_target
from tests.loadtest.fake_server import BUSY, CUT, EMPTY, ERROR, NO_STREAM, SILENT, FakeServer, running

BODY = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "stream": True}


@pytest.mark.parametrize(
    ("manner", "told"),
    [
        (BUSY, r"answers 429; it refuses .* wait 7 s"),
        (NO_STREAM, r"sends no stream \(SSE\) but application/json"),
        (SILENT, r"is too slow: no answer of two tokens within 0\.5 s"),
        (CUT, r"broke the connection"),
        (ERROR, r"sends an error in its stream: .*broken"),
        (EMPTY, r"no content in its stream"),
    ],
)
def test_bad_target_is_told_by_name(manner: str, told: str) -> None:
    with running(FakeServer(manner=manner)) as server, pytest.raises(TargetError, match=told):
        check_target(server.url, BODY, {}, patience_s=0.5)


def test_good_target_is_asked_for_two_tokens_with_its_key() -> None:
    with running(FakeServer()) as server:
        check_target(server.url, BODY, {"authorization": "Bearer k"}, patience_s=5)
    assert server.bodies == [{**BODY, "max_tokens": 2}]
    assert server.headers[0]["authorization"] == "Bearer k"


def test_dead_target_and_bad_address_are_told() -> None:
    with pytest.raises(TargetError, match="is dead, nothing listens there"):
        check_target("http://127.0.0.1:9", BODY, {})
