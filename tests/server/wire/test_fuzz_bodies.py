"""Bodies nobody wrote by hand: each is answered, or refused in the API's shape, and never makes the server fail."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.generation.keywords import ANNOTATIONS, ASSERTIONS
from server.settings.config import AdminConfig, ServerConfig
from server.wire.message_errors import is_messages_path
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server
from tests.server.event_reader import read_events
from tests.server.fuzzing import GOOD, Reply, Wire, search

ADMIN = {"authorization": "Bearer admin"}
PATHS = st.sampled_from(sorted(GOOD))
ERROR_FIELDS = {"message", "type", "param", "code"}

TEXTS = st.text(max_size=20) | st.sampled_from(["auto", "tiny", "\0", "\u2028", "\ufeff", "💥", "e\u0301", "../../etc"])
NUMBERS = (
    st.integers()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 1e308, 5e-324, -0.0])
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


@pytest.fixture(scope="module")
def served(student: TinyStudent) -> Iterator[Served]:
    config = ServerConfig(admin=AdminConfig(key_sha256=hashlib.sha256(b"admin").hexdigest()))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as running:
        yield running


@pytest.fixture(scope="module")
def wire(served: Served) -> Iterator[Wire]:
    wire = Wire(served.url)
    yield wire
    wire.close()


def check(wire: Wire, path: str, body: bytes) -> Reply:
    """Send a body and hold the answer to what is promised about any answer."""
    reply = wire.post(path, body, ADMIN)
    kind = reply.headers["content-type"]
    assert reply.status < 500, (path, body, reply)
    if reply.status >= 400:
        assert kind == "application/json"
        assert set(reply.json()["error"]) == ({"type", "message"} if is_messages_path(path) else ERROR_FIELDS)
        assert reply.json()["error"]["message"]
    elif kind == "application/json":
        assert isinstance(reply.json(), dict)
    else:
        assert kind.startswith("text/event-stream")
        told = [event.data for event in read_events(reply.content)]
        assert all(isinstance(json.loads(data), dict) for data in told if data != "[DONE]")
    wire.check_usable()
    return reply


@st.composite
def mutated_bytes(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good body with bytes changed, taken out or put in."""
    path = draw(PATHS)
    body = bytearray(json.dumps(GOOD[path]).encode())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 8)))
        body[start:end] = draw(st.binary(max_size=8) | st.sampled_from([b"{", b"[", b'"', b"\\", b"null", b"1e999"]))
    return path, bytes(body)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a value."""
    yield place
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*place, key))


@st.composite
def mutated_json(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good body with one or two of its values, at any depth, replaced, taken out or given a neighbour."""
    path = draw(PATHS)
    body = json.loads(json.dumps(GOOD[path]))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(sorted(places(body), key=repr)[1:] or [()]))
        if not place:
            continue
        owner = body
        for key in place[:-1]:
            owner = owner[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                owner[place[-1]] = draw(VALUES)
            case "remove":
                del owner[place[-1]]
            case _ if isinstance(owner, dict):
                owner[draw(TEXTS)] = draw(VALUES)
            case _:
                owner.insert(0, draw(VALUES))
    return path, json.dumps(body).encode()


@search(150)
@given(path=PATHS, body=st.binary(max_size=200))
@example(path="/v1/completions", body=b"\xef\xbb\xbf{}")
@example(path="/v1/completions", body='{"model": "auto", "prompt": "x"}'.encode("utf-16"))
def test_any_bytes_are_answered(wire: Wire, path: str, body: bytes) -> None:
    check(wire, path, body)


@search(300)
@given(mutated_bytes())
def test_good_bodies_with_wrong_bytes_are_answered(wire: Wire, made: tuple[str, bytes]) -> None:
    check(wire, *made)


@search(400)
@given(mutated_json())
def test_good_bodies_with_wrong_values_are_answered(wire: Wire, made: tuple[str, bytes]) -> None:
    check(wire, *made)


@search(100)
@given(path=PATHS, body=VALUES)
def test_any_json_is_answered(wire: Wire, path: str, body: Any) -> None:
    check(wire, path, json.dumps(body).encode())


def with_field(path: str, field: str, text: str) -> bytes:
    """A good body with one more field, written literally, last."""
    return json.dumps(GOOD[path])[:-1].encode() + f', "{field}": {text}}}'.encode("utf-8", "surrogatepass")


HARD_NUMBERS = ["1e400", "-1e400", "1e-400", "9" * 5000, "-" + "9" * 5000, "0." + "0" * 5000 + "1", "1" + "0" * 400]
HARD_NUMBERS += ["NaN", "Infinity", "-Infinity", "-0", "00", "1.", ".5", "+1", "0x10", "1e", "1_000", "1e99999999999"]
FIELDS = ["max_tokens", "temperature", "seed", "n", "logit_bias", "tokens", "model", "top_k", "unknown"]


@pytest.mark.parametrize("number", HARD_NUMBERS, ids=lambda text: text[:12])
def test_hard_numbers_are_answered(wire: Wire, number: str) -> None:
    for path in GOOD:
        for field in FIELDS:
            reply = check(wire, path, with_field(path, field, number))
            assert reply.status in {200, 400, 404}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "presence_penalty", "min_p"])
def test_numbers_that_are_none_are_refused(wire: Wire, field: str, number: str) -> None:
    assert check(wire, "/v1/completions", with_field("/v1/completions", field, number)).status == 400


@pytest.mark.parametrize("path", sorted(set(GOOD) - {"/v1/embeddings"}))
@pytest.mark.parametrize("depth", [64, 65, 1000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_deep_bodies_are_refused(wire: Wire, path: str, depth: int, opening: str, closing: str) -> None:
    for text in (opening * depth + "1" + closing * depth, opening * depth):
        assert check(wire, path, with_field(path, "metadata", text)).status == 400


def test_deep_schema_is_refused_or_followed(wire: Wire) -> None:
    schema: Any = {"type": "integer"}
    for _ in range(28):
        schema = {"type": "object", "properties": {"a": schema}}
    named = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "response_format": named}
    assert check(wire, "/v1/chat/completions", json.dumps(body).encode()).status in {200, 400}


@pytest.mark.parametrize("path", sorted(GOOD))
def test_field_given_twice_is_answered(wire: Wire, path: str) -> None:
    for field in GOOD[path]:
        for text in (json.dumps(GOOD[path][field]), "null", "{}", "[]", '"x"'):
            check(wire, path, with_field(path, field, text))


LONE = ['"\\ud800"', '"\\udc00x"', '"\\ud800\\ud800"', '"a\\udfff"']


@pytest.mark.parametrize("path", sorted(set(GOOD) - {"/v1/embeddings"}))
@pytest.mark.parametrize("text", [*LONE, '"\ud800"', '"\\x41"', '"\x01"', '"\\u12"', '"\n"'])
def test_text_that_is_no_unicode_is_refused(wire: Wire, path: str, text: str) -> None:
    field = next(iter(GOOD[path]))
    body = f'{{"{field}": {text}}}'.encode("utf-8", "surrogatepass")
    assert check(wire, path, body).status == 400


@pytest.mark.parametrize(
    "content", ["\0", "a\0b", "\ufeff", "\u2028\u2029", "\uffff", "\U0010ffff", "\x7f\x80", "\r\n\r"]
)
def test_strange_characters_in_a_prompt_are_answered(wire: Wire, content: str) -> None:
    for body in (json.dumps, lambda value: json.dumps(value, ensure_ascii=False)):
        messages = [{"role": "user", "content": content}]
        chat = body({"model": "auto", "messages": messages, "user": content}).encode()
        assert check(wire, "/v1/chat/completions", chat).status == 200
        ids = check(wire, "/tokenize", body({"prompt": content}).encode()).json()["tokens"]
        assert check(wire, "/detokenize", body({"tokens": ids}).encode()).json()["prompt"] == content
        model = check(wire, "/v1/completions", body({"model": content, "prompt": "x"}).encode())
        assert model.status == 404


def schema_with(assertion: str) -> bytes:
    """A chat whose answer must keep to a schema with this text in it."""
    schema = f'{{"type": "object", "properties": {{"a": {assertion}}}, "required": ["a"]}}'
    form = f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {schema}}}}}'
    return f'{{"model": "auto", "messages": [{{"role": "user", "content": "x"}}], "response_format": {form}}}'.encode()


@pytest.mark.parametrize("number", HARD_NUMBERS, ids=lambda text: text[:12])
def test_hard_numbers_in_a_schema_are_answered(wire: Wire, number: str) -> None:
    for keyword in ("minimum", "exclusiveMaximum", "multipleOf", "const", "minLength", "maxItems", "minProperties"):
        check(wire, "/v1/chat/completions", schema_with(f'{{"type": "integer", "{keyword}": {number}}}'))
    check(wire, "/v1/chat/completions", schema_with(f'{{"enum": [{number}]}}'))


SCHEMAS = st.dictionaries(st.sampled_from(sorted(ASSERTIONS | ANNOTATIONS)) | TEXTS, VALUES, max_size=4)


@search(100)
@given(SCHEMAS)
@example(schema={"minimum": "é" * 80})
@example(schema={"$ref": {"x": "é" * 80}})
@example(schema={"type": "string", "minLength": 2**53, "pattern": "((", "format": "date"})
@example(schema={"type": "integer", "minimum": 5, "maximum": 3, "enum": ["a"]})
def test_any_schema_of_a_tool_is_taken(wire: Wire, schema: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    body = {**GOOD["/v1/chat/completions"], "tools": [{"type": "function", "function": {"name": "f"}}]}
    body["tools"][0]["function"]["parameters"] = parameters
    reply = check(wire, "/v1/chat/completions", json.dumps(body).encode())
    assert reply.status == 200 or b"context_length_exceeded" in reply.content, "what is long fits no context"


@search(100)
@given(SCHEMAS)
@example(schema={"minimum": "é" * 80})
@example(schema={"$ref": {"x": "é" * 80}})
def test_any_schema_is_answered(wire: Wire, schema: dict[str, Any]) -> None:
    check(wire, "/v1/chat/completions", schema_with(json.dumps(schema)))
