"""The console's page and what it reads: who gets it, with which headers, and what it never says."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from models.errors import EngineUnhealthy
from server.access.keys import PAGE_FILES
from server.api.console_page import BUILT, POLICY, read_page
from server.settings.config import ConsoleConfig, KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, make_engine, make_student, open_scripted, run_server, until

Serve = Callable[..., Served]

KEY = "open sesame"
SHA256 = hashlib.sha256(KEY.encode()).hexdigest()
SECRET = "the-owl-flies-at-noon"
FILES = [address for address in read_page() if address.startswith(PAGE_FILES)]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def begin(config: ServerConfig | None = None) -> Served:
            student = open_scripted(make_student(tmp_path), make_engine(SCRIPT))
            return stack.enter_context(run_server([student], config or ServerConfig()))

        yield begin


def test_page_is_there_with_its_policy(serve: Serve) -> None:
    page = serve().http.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-cache"
    assert page.content == (BUILT / "index.html").read_bytes()


def test_policy_allows_nothing_that_stands_in_the_page() -> None:
    assert "default-src 'none'" in POLICY
    assert "frame-ancestors 'none'" in POLICY
    assert "unsafe" not in POLICY
    text = (BUILT / "index.html").read_text()
    assert "style=" not in text
    assert text.count("<script") == text.count('<script type="module" crossorigin src="/console/assets/')


@pytest.mark.parametrize("address", FILES)
def test_files_are_kept_for_ever_by_their_content(serve: Serve, address: str) -> None:
    served = serve()
    first = served.http.get(address)
    assert first.is_success
    assert "immutable" in first.headers["cache-control"]
    again = served.http.get(address, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("address", ["/", *FILES[:1]])
def test_head_has_the_headers_of_get(serve: Serve, address: str) -> None:
    served = serve()
    got, head = served.http.get(address), served.http.head(address)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-type", "content-length", "cache-control", "content-security-policy"):
        assert head.headers[name] == got.headers[name]


def test_files_are_zipped_for_who_can_read_it(serve: Serve) -> None:
    served = serve()
    script = next(address for address in FILES if address.endswith(".js"))
    plain = served.http.get(script, headers={"accept-encoding": "identity"})
    zipped = served.http.get(script, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.content == plain.content
    assert int(zipped.headers["content-length"]) < int(plain.headers["content-length"])


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2f..%2fpyproject.toml", "%2e%2e/index.html", "index.html"])
def test_other_files_are_not_there(serve: Serve, name: str) -> None:
    assert serve().http.get(f"{PAGE_FILES}{name}").status_code == 404


@pytest.mark.parametrize(
    ("enabled", "host", "has_keys", "is_there"),
    [
        ("auto", "127.0.0.1", False, True),
        ("auto", "0.0.0.0", False, False),
        ("auto", "0.0.0.0", True, True),
        ("on", "0.0.0.0", False, True),
        ("off", "127.0.0.1", False, False),
        ("off", "0.0.0.0", True, False),
    ],
)
def test_page_is_there_for_this_machine_or_with_keys(
    serve: Serve, enabled: str, host: str, has_keys: bool, is_there: bool
) -> None:
    keys = KeysConfig(sha256=(SHA256,) if has_keys else ())
    console = ConsoleConfig(enabled=enabled)  # type: ignore[arg-type]
    served = serve(ServerConfig(host=host, allow_no_keys=True, keys=keys, console=console))
    auth = {"authorization": f"Bearer {KEY}"}
    found = [served.http.get(path, headers=auth).status_code for path in ("/", "/console/state", "/console/facts")]
    assert found == [200 if is_there else 404] * 3


def test_with_keys_the_page_is_open_and_what_it_reads_is_not(serve: Serve) -> None:
    served = serve(ServerConfig(keys=KeysConfig(sha256=(SHA256,))))
    assert served.http.get("/").status_code == 200
    assert served.http.get(FILES[0]).status_code == 200
    for path in ("/console/state", "/console/facts"):
        assert served.http.get(path).status_code == 401
        assert served.http.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_page_elsewhere_cannot_name_itself_this_machine(serve: Serve) -> None:
    assert serve().http.get("/", headers={"host": "evil.example"}).status_code == 403


@contextlib.contextmanager
def streaming(served: Served, id: str) -> Iterator[None]:
    body = {"model": "tiny:full", "prompt": f"slow {SECRET}", "stream": True, "max_tokens": 200, "temperature": 1}
    headers = {"content-type": "application/json", "x-request-id": id}
    with contextlib.closing(HTTPConnection(served.url.removeprefix("http://"), timeout=30)) as client:
        client.request("POST", "/v1/completions", json.dumps(body), headers)
        assert until(lambda: served.engine.status().num_running == 1)
        yield


def test_state_shows_rows_and_no_text_and_no_ids(serve: Serve) -> None:
    served = serve()
    with streaming(served, "id-of-mine"):
        assert until(lambda: served.http.get("/console/state").json()["students"][0]["rows"])
        reply = served.http.get("/console/state")
    (row,) = reply.json()["students"][0]["rows"]
    assert (row["path"], row["head"]) == ("full", "exact")
    assert row["max_completion_tokens"] == 200
    assert SECRET not in reply.text
    assert "id-of-mine" not in reply.text
    assert reply.headers["cache-control"] == "no-store"


def test_state_counts_what_was_routed_where(serve: Serve) -> None:
    served = serve()
    for _ in range(2):
        served.chat("long math")
    served.chat("long", model="tiny:full", fenhe={"task": "legal"})
    (student,) = served.http.get("/console/state").json()["students"]
    assert student["routed"] == [
        {"task": "legal", "path": "full", "head": "exact", "num_requests": 1},
        {"task": "math", "path": "shallow", "head": "exact", "num_requests": 2},
    ]
    served.context.metrics.forget_student("tiny")
    assert served.context.metrics.routes.counts == {}


def test_state_of_an_engine_that_does_not_answer_has_no_rows(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()

    def silent(limit_s: float) -> None:
        raise EngineUnhealthy("it does not answer")

    monkeypatch.setattr(served.engine, "sequences", silent)
    assert served.http.get("/console/state").json()["students"][0]["rows"] is None


def test_facts_have_what_each_path_lights(serve: Serve) -> None:
    (student,) = serve().http.get("/console/facts").json()["students"]
    shallow, full = student["paths"]
    assert (shallow["name"], full["name"]) == ("shallow", "full")
    assert shallow["lit"] == [1.0] * 3 + [0.0] * 7
    assert full["lit"] == [1.0] * 10
    assert full["compute_shares"] == {"exact": 1.0}
    assert shallow["compute_shares"]["exact"] < 1
    assert {one["task"]: one["accuracy"]["kept"] for one in shallow["figures"]} == {"math": 0.97, "fact": 0.85}


def test_page_that_was_not_built_is_empty(tmp_path: Path) -> None:
    assert read_page(tmp_path) == {}
