"""API keys: where they come from, who may use the server, and how much."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from engines.scripted import Line
from models.errors import ConfigError, Forbidden
from router.decision import Priority
from server.access.keys import Key, Keyring, check_exposure, describe_entry, load_keys, make_secret, priority_of
from server.access.rate_limit import KeyLimits
from server.settings.config import AdminConfig, KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server, until

WEB, BATCH, SMALL, ADMIN = "fk-web", "fk-batch", "fk-small", "fk-admin"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


FILE = f"""
[[key]]
name = "web"
sha256 = "{digest(WEB).upper()}"
tenant = "acme"
max_priority = "high"

[[key]]
name = "batch"
sha256 = "{digest(BATCH)}"
tenant = "acme"
requests_per_minute = 2

[[key]]
name = "small"
sha256 = "{digest(SMALL)}"
tokens_per_minute = 400
max_concurrent = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(FILE)
    return file


@pytest.fixture
def config(file: Path) -> ServerConfig:
    return ServerConfig(keys=KeysConfig(file=file), admin=AdminConfig(key_sha256=digest(ADMIN)))


@pytest.fixture
def served(student: TinyStudent, config: ServerConfig) -> Iterator[Served]:
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as running:
        yield running


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(served: Served, key: str, prompt: str = "hello", **fields: Any) -> httpx.Response:
    return served.chat(prompt, headers=auth(key), **fields)


# The keys themselves.


def test_key_file_may_begin_with_a_byte_order_mark(file: Path) -> None:
    plain = load_keys(KeysConfig(file=file))
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load_keys(KeysConfig(file=file)) == plain


def test_keys_come_from_file_and_settings_with_their_limits(file: Path) -> None:
    other = digest("other")
    config = KeysConfig(
        file=file, sha256=(other.upper(),), requests_per_minute=7, tokens_per_minute=8, max_concurrent=9
    )
    keys = {key.name: key for key in load_keys(config)}
    assert set(keys) == {"web", "batch", "small", f"key-{other[:8]}"}
    assert (keys["web"].tenant, keys["batch"].tenant, keys["small"].tenant) == ("acme", "acme", "small")
    assert keys["web"].sha256 == digest(WEB)
    assert keys["batch"].limits == KeyLimits(requests_per_minute=2, tokens_per_minute=8, max_concurrent=9)
    assert (keys["web"].max_priority, keys["small"].max_priority) == (Priority.HIGH, Priority.NORMAL)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[[key]]\nname = 'x'", "sha256"),
        (f"[[key]]\nsha256 = '{digest('x')}'", "name"),
        ("[[key]]\nname = 'x'\nsha256 = 'fk-the-key-itself'", "sha256"),
        (f"[[key]]\nname = 'x y'\nsha256 = '{digest('x')}'", "name"),
        (f"[[key]]\nname = 'x'\nsha256 = '{digest('x')}'\nrequest_per_minute = 1", "request_per_minute"),
        (f"[[key]]\nname = 'x'\nsha256 = '{digest('x')}'\nmax_concurrent = 0", "max_concurrent"),
        (f"[[key]]\nname = 'x'\nsha256 = '{digest('x')}'\nmax_priority = 'highest'", "max_priority"),
        (f"[[key]]\nname = 'x'\nsha256 = '{digest('x')}'\n" * 2, "same name"),
        ("[keys]\n", "[[key]]"),
        ("", "fenhe keys make"),
        ("key = ", "not TOML"),
        (None, "cannot be read"),
    ],
)
def test_key_file_with_a_mistake_is_named_and_shows_no_key(tmp_path: Path, text: str | None, part: str) -> None:
    file = tmp_path / "keys.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_keys(KeysConfig(file=file))
    message = caught.value.message
    assert "keys.toml" in message or "two API keys" in message
    assert part in message
    assert "fk-the-key-itself" not in message
    assert digest("x") not in message


def test_keyring_finds_by_the_key_alone() -> None:
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=1, max_concurrent=1)
    ring = Keyring([Key(name=name, sha256=digest(name), tenant=name, limits=limits) for name in "abc"])
    found = ring.find("bearer  b ")
    assert found is not None
    assert found.name == "b"
    for wrong in ("", "Bearer", "Bearer d", "Basic b", "b", f"Bearer {digest('b')}", "Bearer é\udcff"):
        assert ring.find(wrong) is None, wrong


@pytest.mark.parametrize(
    ("authorization", "api_key", "name"),
    [
        ("", "b", "b"),
        ("", " b ", "b"),
        ("Bearer b", "", "b"),
        ("Bearer a", "b", "a"),
        ("Bearer sk-of-another-server", "b", "b"),
        ("Bearer a", "sk-of-another-server", "a"),
        ("", "Bearer b", None),
        ("Bearer d", "d", None),
        ("", "", None),
    ],
)
def test_key_may_come_in_either_header(authorization: str, api_key: str, name: str | None) -> None:
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=1, max_concurrent=1)
    ring = Keyring([Key(name=one, sha256=digest(one), tenant=one, limits=limits) for one in "abc"])
    found = ring.find(authorization, api_key)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "x-api-key: KEY"),
        ({"x-api-key": "nobody"}, "x-api-key: KEY"),
        ({"authorization": "Bearer nobody"}, "Bearer KEY"),
    ],
)
def test_refusal_names_the_header_at_fault(student: TinyStudent, headers: dict[str, str], named: str) -> None:
    config = ServerConfig(keys=KeysConfig(sha256=(digest("b"),)))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        refused = served.http.get("/v1/models", headers=headers)
        assert (refused.status_code, named in refused.json()["error"]["message"]) == (401, True)
        assert served.http.get("/v1/models", headers={"x-api-key": "b"}).status_code == 200


def test_key_of_nothing_opens_nothing() -> None:
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=1, max_concurrent=1)
    ring = Keyring([Key(name="a", sha256=digest(""), tenant="a", limits=limits)])
    assert ring.find("") is None
    assert ring.find("Bearer ") is None


def test_made_key_is_what_its_table_opens(tmp_path: Path) -> None:
    key = make_secret()
    assert len(key) > 40
    assert key != make_secret()
    file = tmp_path / "keys.toml"
    file.write_text(describe_entry("web", key))
    assert key not in file.read_text()
    assert Keyring(load_keys(KeysConfig(file=file))).find(f"Bearer {key}") is not None
    with pytest.raises(ConfigError, match="a b"):
        describe_entry("a b", key)


BEYOND_ASCII = ["fk-web-à", "fk-web-é", "à", "fk-web-Å", "fk-漢字", "fk-web-ą", "é b à"]
"""In UTF-8, `à` and `Å` end in bytes that are blanks of Latin-1."""


@pytest.mark.parametrize("key", BEYOND_ASCII)
@pytest.mark.parametrize("blanks", ["", " ", "\t "])
def test_key_beyond_ascii_is_what_its_table_opens(tmp_path: Path, key: str, blanks: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(describe_entry("web", key))
    ring = Keyring(load_keys(KeysConfig(file=file)))
    assert ring.find(f"Bearer {blanks}{key}{blanks}".encode().decode("latin-1")) is not None
    assert ring.find(f"Bearer {key[:-1]}".encode().decode("latin-1")) is None


@pytest.mark.parametrize("key", ["fk-web-à", "fk-web-é", "fk-web-\xa0"])
def test_key_beyond_ascii_may_come_in_latin_1(key: str) -> None:
    ring = Keyring(load_keys(KeysConfig(sha256=(digest(key),))))
    assert ring.find(f"Bearer {key}") is not None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
def test_server_without_keys_stays_on_its_machine(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--keys-file.*--allow-no-keys true"):
        check_exposure(ServerConfig(host=host), ())
    check_exposure(ServerConfig(host=host, allow_no_keys=True), ())
    check_exposure(ServerConfig(host=host), load_keys(KeysConfig(sha256=(digest("x"),))))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_exposure(ServerConfig(host=host), ())


@pytest.mark.parametrize(
    ("highest", "wished", "given"),
    [
        (Priority.NORMAL, None, Priority.NORMAL),
        (Priority.HIGH, None, Priority.NORMAL),
        (Priority.LOW, None, Priority.LOW),
        (Priority.LOW, Priority.LOW, Priority.LOW),
        (Priority.NORMAL, Priority.LOW, Priority.LOW),
        (Priority.HIGH, Priority.HIGH, Priority.HIGH),
    ],
)
def test_priority_is_the_wish_or_normal_as_far_as_the_key_goes(
    highest: Priority, wished: Priority | None, given: Priority
) -> None:
    key = dataclasses.replace(load_keys(KeysConfig(sha256=(digest("x"),)))[0], max_priority=highest)
    assert priority_of(key, wished) is given


def test_priority_above_the_key_is_refused() -> None:
    key = load_keys(KeysConfig(sha256=(digest("x"),)))[0]
    assert priority_of(None, Priority.HIGH) is Priority.HIGH
    assert priority_of(None, None) is Priority.NORMAL
    with pytest.raises(Forbidden):
        priority_of(key, Priority.HIGH)


# Over HTTP.


@pytest.mark.parametrize("path", ["/health", "/readyz", "/startup", "/metrics"])
def test_probes_and_metrics_are_open(served: Served, path: str) -> None:
    assert served.http.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/openapi.json", "/nothing", "/v1/models/auto"])
@pytest.mark.parametrize("key", [None, "fk-wrong", ADMIN])
def test_everything_else_needs_a_key(served: Served, path: str, key: str | None) -> None:
    response = served.http.get(path, headers={} if key is None else auth(key))
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_api_key"
    assert "fk-wrong" not in response.text


def test_metrics_may_be_closed(student: TinyStudent, file: Path) -> None:
    config = ServerConfig(keys=KeysConfig(file=file, metrics=True))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        assert served.http.get("/metrics").status_code == 401
        assert served.http.get("/metrics", headers=auth(WEB)).status_code == 200


def test_official_client_is_let_in_with_a_key_only(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        served.client.models.list()
    client = served.client.with_options(api_key=WEB)
    answer = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content == "Hello, world!"


@pytest.mark.parametrize("key", BEYOND_ASCII)
def test_key_beyond_ascii_works_over_http(student: TinyStudent, key: str) -> None:
    config = ServerConfig(keys=KeysConfig(sha256=(digest(key),)), admin=AdminConfig(key_sha256=digest(f"{key}à")))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:

        def status(path: str, key: bytes) -> int:
            return served.http.get(path, headers={b"authorization": b"Bearer " + key}).status_code

        assert status("/v1/models", key.encode()) == 200
        assert status("/admin/students", f"{key}à".encode()) == 200
        assert (status("/v1/models", key.encode()[:-1]), status("/admin/students", key.encode())) == (401, 403)


def test_refused_request_reaches_no_engine(served: Served) -> None:
    assert served.chat("hello").status_code == 401
    assert served.engine.submitted == []
    assert 'fenhe_key_refusals_total{code="invalid_api_key"} 1.0' in served.http.get("/metrics").text


def test_admin_has_its_own_key(served: Served) -> None:
    def status(key: str) -> int:
        return served.http.get("/admin/students", headers=auth(key)).status_code

    assert (status(ADMIN), status(WEB), status("fk-wrong")) == (200, 403, 401)
    body = served.http.get("/admin/students", headers=auth(WEB)).json()
    assert body["error"]["code"] == "permission_denied"


def test_priority_above_the_key_s_is_forbidden(served: Served) -> None:
    fields: dict[str, Any] = {"fenhe": {"priority": "high"}}
    assert ask(served, WEB, **fields).status_code == 200
    response = ask(served, SMALL, max_tokens=9, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (403, "fenhe.priority")
    with pytest.raises(openai.PermissionDeniedError):
        served.client.with_options(api_key=SMALL).chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "x"}], extra_body=fields
        )


def test_answers_tell_what_is_left(served: Served) -> None:
    response = ask(served, SMALL, max_tokens=40)
    assert response.headers["x-ratelimit-limit-tokens"] == "400"
    num_prompt = response.json()["usage"]["prompt_tokens"]
    assert int(response.headers["x-ratelimit-remaining-tokens"]) <= 400 - num_prompt
    assert response.headers["x-ratelimit-reset-requests"].endswith("ms")
    assert "x-ratelimit-limit-tokens" not in served.http.get("/health", headers=auth(SMALL)).headers


def test_requests_per_minute_are_refused_with_when_to_try_again(served: Served) -> None:
    assert [ask(served, BATCH).status_code for _ in range(3)] == [200, 200, 429]
    response = ask(served, BATCH)
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask(served, WEB).status_code == 200  # another key's limits are its own


def test_tokens_are_charged_by_promise_and_paid_by_use(served: Served) -> None:
    for _ in range(4):  # 4 x 200 promised, 4 x 40 used
        assert ask(served, SMALL, max_tokens=200).status_code == 200
    assert served.http.get("/v1/models", headers=auth(SMALL)).status_code == 200


def test_tokens_come_back_when_the_client_leaves(served: Served) -> None:
    body = {"model": "auto", "prompt": "slow", "stream": True, "max_tokens": 300}
    for _ in range(3):
        with served.http.stream("POST", "/v1/completions", json=body, headers=auth(SMALL)) as response:
            assert response.status_code == 200
        assert until(lambda: served.student.admission.turns.running.num_tokens == 0)


def test_more_tokens_than_the_key_may_ever_use_is_no_reason_to_retry(served: Served) -> None:
    response = ask(served, SMALL)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "request_exceeds_rate_limit")
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


def test_requests_at_once_are_bounded_per_key(served: Served) -> None:
    body = {"model": "auto", "prompt": "slow", "stream": True, "max_tokens": 100}
    with served.http.stream("POST", "/v1/completions", json=body, headers=auth(SMALL)) as response:
        parts = response.iter_raw()
        next(parts)
        assert ask(served, SMALL, max_tokens=2).status_code == 429
        assert ask(served, WEB).status_code == 200
    assert until(lambda: ask(served, SMALL, max_tokens=2).status_code == 200)


def test_log_names_the_key_and_shows_none(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(served, WEB)
        ask(served, "fk-wrong")
        served.http.get("/admin/students", headers=auth(ADMIN))
    text = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "key=web " in text
    for secret in ("Bearer", "fk-", digest(WEB), digest(ADMIN)):
        assert secret not in text


def test_keys_may_be_replaced_while_requests_run(student: TinyStudent, config: ServerConfig) -> None:
    script = {**SCRIPT, "wait": Line(pieces=("a",) * 20, delay_s=0.02)}
    with run_server([open_scripted(student, make_engine(script))], config) as served:
        body = {"model": "auto", "prompt": "wait", "stream": True, "max_tokens": 20}
        with served.http.stream("POST", "/v1/completions", json=body, headers=auth(WEB)) as response:
            parts = response.iter_raw()
            next(parts)
            served.context.keyring.replace(load_keys(KeysConfig(sha256=(digest("new"),))))
            assert b"".join(parts).endswith(b"data: [DONE]\n\n")
        assert ask(served, WEB).status_code == 401
        assert ask(served, "new").status_code == 200
