"""A server without keys on this machine answers to names of this machine: a page elsewhere can borrow its address."""

import dataclasses
import socket
from collections.abc import Iterator

import pytest

from models.errors import ConfigError, Forbidden
from server.access.hosts import name_of, require_known_host
from server.settings.config import KeysConfig, ServerConfig
from server.settings.reading import load_config
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server

OWN = [
    "localhost",
    "LocalHost:8000",
    "localhost.",
    "box.localhost:1",
    "127.0.0.1",
    "127.8.9.10:80",
    "[::1]",
    "[::1]:80",
]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil-localhost",
    "127.0.0.1.evil.example",
    "192.0.2.1",
    "0.0.0.0",
    "[::2]",
    "[localhost",
    "localhost:80:80",
    "user@localhost",
    "evil.example, localhost",
    "",
    ".",
    "loc\u00e0lhost",
]


@pytest.mark.parametrize("host", OWN)
def test_names_of_this_machine_are_answered(host: str) -> None:
    require_known_host(ServerConfig(), 0, "/v1/models", host)


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(host: str) -> None:
    with pytest.raises(Forbidden, match="allowed_hosts"):
        require_known_host(ServerConfig(), 0, "/v1/models", host)


@pytest.mark.parametrize("config", [ServerConfig(host="::1"), ServerConfig(host="localhost", allow_no_keys=True)])
def test_other_names_are_refused_on_every_loopback_address(config: ServerConfig) -> None:
    with pytest.raises(Forbidden, match=r"evil\.example"):
        require_known_host(config, 0, "/nothing", "evil.example")


def test_other_names_may_use_servers_with_keys_or_beyond_this_machine() -> None:
    require_known_host(ServerConfig(), 1, "/v1/models", "evil.example")
    require_known_host(ServerConfig(host="0.0.0.0", allow_no_keys=True), 0, "/v1/models", "evil.example")
    require_known_host(ServerConfig(), 0, "/v1/models", None)


def test_allowed_hosts_are_answered_on_any_port() -> None:
    config = ServerConfig(allowed_hosts=("LLM.example", "[2001:db8::1]", "192.0.2.1"))
    for host in ("llm.example", "LLM.Example.:443", "[2001:DB8::1]:80", "192.0.2.1:1"):
        require_known_host(config, 0, "/v1/models", host)
    for host in ("other.example", "a.llm.example", "llm.example.org"):
        with pytest.raises(Forbidden):
            require_known_host(config, 0, "/v1/models", host)


def test_name_of_a_long_host_is_found_in_no_time() -> None:
    assert name_of("[" * 60_000) == name_of("a:" * 30_000) == ""


@pytest.mark.parametrize("wrong", ["llm.example:80", "http://llm.example", "*", "a b", "[::1]:80"])
def test_allowed_host_that_is_no_name_is_a_clear_error(wrong: str) -> None:
    assert load_config({"allowed_hosts": "a.example,[::1]"}, {}, None).allowed_hosts == ("a.example", "[::1]")
    with pytest.raises(ConfigError, match=r"--allowed-hosts = .*without a port"):
        load_config({"allowed_hosts": wrong}, {}, None)


# Over HTTP.


@pytest.fixture(scope="module")
def served(student: TinyStudent) -> Iterator[Served]:
    config = ServerConfig(allowed_hosts=("llm.example",))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as running:
        yield running


def ask(served: Served, path: str, host: str) -> int:
    return served.http.get(path, headers={"host": host}).status_code


@pytest.mark.parametrize("path", ["/health", "/health/", "/readyz", "/startup", "/metrics"])
def test_probes_answer_to_every_name(served: Served, path: str) -> None:
    assert ask(served, path, "evil.example") == 200


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/openapi.json"])
def test_everything_else_answers_to_known_names(served: Served, path: str) -> None:
    assert {ask(served, path, host) for host in (*OWN, "llm.example")} == {200}
    assert {ask(served, path, host) for host in ("evil.example", "192.0.2.1:80")} == {403}


@pytest.mark.parametrize("path", ["/nothing", "/admin/students", "/debug/state", "/healthy/", "/metrics/x"])
def test_what_does_not_exist_is_refused_too(served: Served, path: str) -> None:
    assert ask(served, path, "evil.example") == 403


def test_refusal_says_what_to_do_and_reaches_no_engine(served: Served) -> None:
    body = {"model": "auto", "prompt": "hello"}
    response = served.post("/v1/completions", body, headers={"host": "evil.example"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (403, "permission_denied")
    assert "evil.example" in error["message"]
    assert "--allowed-hosts" in error["message"]
    assert served.engine.submitted == []


def test_http_1_0_without_a_host_is_answered(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_server_with_keys_answers_to_every_name(student: TinyStudent) -> None:
    config = ServerConfig(keys=KeysConfig(sha256=("a" * 64,)))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        assert ask(served, "/v1/models", "evil.example") == 401


def test_allowed_hosts_count_from_a_reload_on(student: TinyStudent) -> None:
    with run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig()) as served:
        assert ask(served, "/v1/models", "llm.example") == 403
        served.context.live.config = dataclasses.replace(served.context.config, allowed_hosts=("llm.example",))
        assert ask(served, "/v1/models", "llm.example") == 200
