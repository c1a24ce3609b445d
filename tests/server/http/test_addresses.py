"""Methods and spellings of addresses that no route names: HEAD, OPTIONS, slashes."""

import hashlib
import json
from collections.abc import Iterator

import pytest

from server.http.addresses import plain_path
from server.settings.config import AdminConfig, KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server
from tests.server.http.test_connection_limits import connect, read_all

GETS = (
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/no",
    "/health",
    "/readyz",
    "/startup",
    "/version",
    "/metrics",
    "/openapi.json",
    "/debug/state",
    "/admin/students",
    "/v2/nothing",
)


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(served: Served, path: str) -> None:
    got, head = served.http.get(path), served.http.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    if path not in ("/metrics", "/v2/nothing"):  # numbers that go on; an error that names the method
        assert head.headers["content-length"] == got.headers["content-length"]


def test_connection_goes_on_after_head(served: Served) -> None:
    with connect(served) as connection:
        for method in (b"HEAD", b"HEAD", b"GET"):
            connection.sendall(b"%s /health HTTP/1.1\r\nhost: x\r\n\r\n" % method)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n") == (method == b"HEAD")


@pytest.mark.parametrize("path", ["/health", "/" + "x" * 9000])
def test_what_is_refused_before_it_is_routed_has_no_body_for_head(served: Served, path: str) -> None:
    with connect(served) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n".encode())
        answer = read_all(connection)
        assert answer.split()[1] in (b"400", b"414")
        assert answer.endswith(b"\r\n\r\n")


ALLOWED = {
    "/v1/chat/completions": "OPTIONS, POST",
    "/v1/embeddings": "OPTIONS, POST",
    "/v1/models": "GET, HEAD, OPTIONS",
    "/v1/models/tiny": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
    "/admin/students": "GET, HEAD, OPTIONS, POST",
    "/admin/students/tiny": "DELETE, OPTIONS",
    "/health/": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", ALLOWED)
def test_options_names_the_methods(served: Served, path: str) -> None:
    response = served.http.options(path)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["allow"] == ALLOWED[path]


def test_options_of_the_server_names_every_method(served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head = read_all(connection)
        assert head.startswith(b"HTTP/1.1 204 ")
        assert b"\r\nallow: DELETE, GET, HEAD, OPTIONS, POST\r\n" in head


def test_options_of_no_address_is_404(served: Served) -> None:
    assert served.http.options("/v2/nothing").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/admin/students"),
        ("HEAD", "/v1/chat/completions"),
        ("TRACE", "/v1/models"),
        ("GET", "/admin/students/tiny"),
    ],
)
def test_wrong_method_is_told_all_that_are_right(served: Served, method: str, path: str) -> None:
    response = served.http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == ALLOWED[path]


@pytest.fixture(scope="module")
def keyed(student: TinyStudent) -> Iterator[Served]:
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in ("fk-key", "admin")]
    config = ServerConfig(keys=KeysConfig(sha256=(digests[0],)), admin=AdminConfig(key_sha256=digests[1]))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as running:
        yield running


def test_options_needs_no_key_and_nothing_else_goes_without(keyed: Served) -> None:
    assert keyed.http.options("/v1/models").status_code == 204
    for method in ("GET", "HEAD", "PUT"):
        assert keyed.http.request(method, "/v1/models").status_code == 401


@pytest.mark.parametrize("path", ["/v1//models", "//v1/models", "/v1/models/", "//admin//students/", "/debug//state"])
def test_spelling_of_an_address_opens_no_door(keyed: Served, path: str) -> None:
    with connect(keyed) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert read_all(connection).split()[1] == b"401"


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1//chat/completions", "/v1/chat/completions//"])
def test_slashes_that_stand_for_nothing_change_no_answer(served: Served, path: str) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    response = served.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello, world!"


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models/tiny/", "/health/", "/openapi.json/", "/v1/nothing/"])
def test_slash_at_the_end_answers_like_the_address_without_it(served: Served, path: str) -> None:
    one, other = served.http.get(path), served.http.get(path.rstrip("/"))
    assert (one.status_code, one.headers["content-type"]) == (other.status_code, other.headers["content-type"])
    if one.status_code == 200:
        assert one.content == other.content


@pytest.mark.parametrize(
    ("path", "plain"), [("/", "/"), ("//", "/"), ("*", "*"), ("/a//b///c/", "/a/b/c"), ("/a", "/a")]
)
def test_plain_path(path: str, plain: str) -> None:
    assert plain_path(path) == plain
