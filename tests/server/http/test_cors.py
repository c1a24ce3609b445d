"""Pages of other origins: none by default, those that are listed, and what they may read."""

import pytest

from server.settings.config import CorsConfig, KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server

PAGE = "https://page.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-fenhe-task",
}


def test_no_origin_is_let_in_by_default(served: Served) -> None:
    response = served.chat("hello", headers={"origin": PAGE})
    assert "access-control-allow-origin" not in response.headers
    preflight = served.http.options("/v1/chat/completions", headers=PREFLIGHT)
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", [PAGE, "*"])
def test_listed_origins_may_ask_and_read_headers_and_errors(student: TinyStudent, origin: str) -> None:
    config = ServerConfig(cors=CorsConfig(origins=(origin,)), keys=KeysConfig(sha256=("a" * 64,)))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        preflight = served.http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "x-fenhe-task" in preflight.headers["access-control-allow-headers"]
        refused = served.chat("hello", headers={"origin": PAGE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == origin
        exposed = refused.headers["access-control-expose-headers"]
        for name in ("x-request-id", "retry-after", "x-ratelimit-remaining-tokens"):
            assert name in exposed
        for name in ("path", "compute", "cache"):
            assert f"x-fenhe-{name}" in exposed
        assert "access-control-allow-credentials" not in refused.headers


def test_other_origins_stay_out(student: TinyStudent) -> None:
    config = ServerConfig(cors=CorsConfig(origins=("https://other.example",)))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        assert served.http.options("/v1/chat/completions", headers=PREFLIGHT).status_code == 400
        assert "access-control-allow-origin" not in served.chat("hello", headers={"origin": PAGE}).headers
