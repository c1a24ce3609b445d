"""The attacks below the application: the server of this repository withstands them, and one that does not is blamed."""

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest.chaos import framing
from loadtest.chaos.attack import Attack, Target
from loadtest.chaos.bodies import observed, post_all
from loadtest.chaos.framing import ACCENTED_KEY, FRAMING
from loadtest.chaos.limits import bodies_of
from loadtest.chaos.trial import attempt
from loadtest.served import ADMIN_KEY, TENANT_KEYS
from loadtest.watcher import Watcher
from server.settings.config import AdminConfig, KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, make_engine, make_student, open_scripted, run_server


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A real server on a scripted engine, with keys."""
    digests = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (*TENANT_KEYS, ACCENTED_KEY))
    admin = AdminConfig(key_sha256=hashlib.sha256(ADMIN_KEY.encode()).hexdigest())
    config = dataclasses.replace(ServerConfig(), keys=KeysConfig(sha256=digests), admin=admin)
    student = make_student(tmp_path_factory.mktemp("student"))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        yield Target(url=served.url)


class Careless(BaseHTTPRequestHandler):
    """Takes anything from anybody, and reads no body."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"{}" + self.path.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def careless() -> Iterator[Target]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Target(url=f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "FLOOD_BYTES", 20_000_000)


WITHSTOOD = [attack for attack in FRAMING if attack.name != "13 MB of pipelined requests"]
MISSED = [attack for attack in WITHSTOOD if attack.name not in {"half-closed requests", "endless trailers"}]
"""What the careless server gets wrong every time."""


@pytest.mark.parametrize("attack", WITHSTOOD, ids=lambda attack: attack.name)
def test_server_withstands(attack: Attack, target: Target) -> None:
    assert attack.problems(attempt(attack, target)) == []


@pytest.mark.parametrize("attack", MISSED, ids=lambda attack: attack.name)
def test_careless_server_is_blamed(attack: Attack, careless: Target) -> None:
    assert attack.problems(attempt(attack, careless))


def test_server_that_is_gone_is_blamed() -> None:
    for attack in FRAMING:
        assert attack.problems(attempt(attack, Target(url="http://127.0.0.1:9")))


def test_bodies_are_of_the_size_that_was_asked_for(target: Target) -> None:
    for name, (path, body) in bodies_of(3000).items():
        assert 1500 < len(str(body)) < 4500, name
        seen = observed(post_all(target, [(path, body)]))
        assert "no answer" not in seen.outcomes, name
        assert "500" not in seen.outcomes, name


def test_watcher_sees_probes_and_streams(target: Target) -> None:
    watcher = Watcher(target.url, target.key)
    try:
        seen = watcher.take()
        while seen["num_probes"] < 3 or seen["num_gaps"] < 3:
            more = watcher.take()
            seen = {name: seen[name] + more[name] for name in ("num_probes", "num_gaps", "failures")}
        assert seen["failures"] == []
    finally:
        watcher.close()


def test_watcher_tells_what_is_not_answered(careless: Target) -> None:
    watcher = Watcher(careless.url.rpartition(":")[0] + ":9")
    try:
        failures: list[str] = []
        while not failures:
            failures = watcher.take()["failures"]
        assert "ConnectionRefused" in failures[0]
    finally:
        watcher.close()
