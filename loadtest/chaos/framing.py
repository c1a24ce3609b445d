"""Attacks below the application: trailers, offers to upgrade, pipelines, hosts, keys."""

import json
import socket
import time

from loadtest.chaos.attack import Attack, Observation, Target, at_least, at_most, each, only
from loadtest.chaos.sockets import connect, first_status, flood, read_all, speak, statuses_in

FLOOD_BYTES = 40_000_000
PIPELINE_BYTES = 13_000_000
FLOOD_S = 6.0
MAX_GROWTH_MIB = 64
ACCENTED_KEY = "loadtest-clé"
CHUNKED = b"transfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\n"
END = b"connection: close\r\n\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-version: 13\r\n",
}


def _bearer(key: str) -> bytes:
    return f"authorization: Bearer {key}\r\n".encode()


def _post(path: str, headers: bytes = b"") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n".encode() + headers


def _completion(**fields: object) -> bytes:
    return json.dumps({"model": "auto", "prompt": "hello", "max_tokens": 4, **fields}).encode()


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def endless_trailers(target: Target) -> Observation:
    """Many trailers, one that never ends, and a chunk extension that never ends."""
    seen = Observation()
    many = b"".join(b"x-%06d: %s\r\n" % (index, b"a" * 48) for index in range(1000))
    head = GET + CHUNKED
    for ending, piece in ((b"0\r\n", many), (b"0\r\nx-long: ", b"a" * 65536), (b"1;", b"a" * 65536)):
        outcome, num_sent = flood(target, head + ending, piece, limit_bytes=FLOOD_BYTES, limit_s=FLOOD_S)
        seen.note(outcome)
        seen.figures["MB sent"] = max(seen.figures.get("MB sent", 0.0), num_sent / 1e6)
    return seen


def forbidden_trailers(target: Target) -> Observation:
    """A key, the admin key, a deadline and a request id behind the body."""
    seen = Observation()
    body, end = _chunk(_completion()), b"connection: close\r\n"
    for name, head, trailer in (
        ("key", _post("/v1/completions", end), _bearer(target.key)),
        ("admin key", b"GET /debug/state HTTP/1.1\r\nhost: localhost\r\n" + end, _bearer(target.admin_key)),
        ("deadline", _post("/v1/completions", end + _bearer(target.key)), b"x-fenhe-deadline-ms: 1\r\n"),
        ("id", _post("/v1/completions", end + _bearer(target.key)), b"x-request-id: smuggled\r\n"),
    ):
        raw = speak(target, [head + CHUNKED + body, b"0\r\n" + trailer + b"\r\n"], limit_s=20.0)
        taken = " taken" if b"smuggled" in raw else ""
        seen.note(f"{name} {first_status(raw)}{taken}")
    return seen


def upgrades(target: Target) -> Observation:
    """A good body, and one that looks like a request, each in a segment of its own; then one more request."""
    seen = Observation(figures={"most answers": 0.0})
    smuggled = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for name, offer in OFFERS.items():
        for kind, body in (("good", _completion()), ("smuggled", smuggled)):
            length = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            head = _post("/v1/completions", _bearer(target.key)) + offer + length
            raw = speak(target, [head, body, GET + END])
            seen.note(f"{name} {kind} {first_status(raw)}")
            seen.figures["most answers"] = max(seen.figures["most answers"], len(statuses_in(raw)) - 1)
    return seen


def pipelining(target: Target) -> Observation:
    """Requests without end from a client that reads nothing, and whether others are answered meanwhile."""
    seen = Observation()
    piece = (GET + b"\r\n") * 2000
    with connect(target) as connection:
        connection.setblocking(False)
        num_sent, end_s = 0, time.monotonic() + 4.0
        while num_sent < PIPELINE_BYTES and time.monotonic() < end_s:
            try:
                num_sent += connection.send(piece)
            except BlockingIOError:
                time.sleep(0.01)
            except ConnectionError:
                break
        seen.note(f"other {first_status(speak(target, [GET + END]))}")
    seen.figures["MB taken"] = num_sent / 1e6
    return seen


def half_closed(target: Target) -> Observation:
    """A client that ends its side after its request, as `nc -N` does."""
    seen = Observation()
    body = _completion()
    length = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    for name, request in (
        ("probe", GET + b"\r\n"),
        ("completion", _post("/v1/completions", _bearer(target.key)) + length + body),
    ):
        with connect(target) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            seen.note(f"{name} {first_status(read_all(connection, 5.0))}")
    return seen


def hosts(target: Target) -> Observation:
    seen = Observation()
    for name, lines in (("one", b"host: a\r\n"), ("two", b"host: a\r\nhost: b\r\n"), ("none", b"")):
        raw = speak(target, [b"GET /health HTTP/1.1\r\n" + lines + END])
        seen.note(f"{name} {first_status(raw)}")
    return seen


def strange_keys(target: Target) -> Observation:
    """A key that ends in a letter beyond ASCII, in UTF-8 and Latin-1, and keys that nobody has."""
    seen = Observation()
    models = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer "
    for name, key in (
        ("utf-8", ACCENTED_KEY.encode()),
        ("latin-1", ACCENTED_KEY.encode("latin-1")),
        ("unknown", "loadtest-ключ".encode()),
        ("bytes", b"\xff\xfe\xe9"),
    ):
        raw = speak(target, [models + key + b"\r\n\r\n"])
        seen.note(f"{name} {first_status(raw)}")
    return seen


FRAMING = (
    Attack(
        name="endless trailers",
        expected="431 or closed, at most 8 MB taken",
        run=endless_trailers,
        rules=(only("431", "closed"), at_most("MB sent", 8.0)),
        max_growth_mib=MAX_GROWTH_MIB,
    ),
    Attack(
        name="headers behind the body",
        expected="they count for nothing",
        run=forbidden_trailers,
        rules=(only("key 401", "admin key 401", "deadline 200", "id 200"), each("key 401", "admin key 401", "id 200")),
    ),
    Attack(
        name="upgrade in two segments",
        expected="one answer, the body is the request's",
        run=upgrades,
        rules=(
            only(*(f"{name} {end}" for name in OFFERS for end in ("good 200", "smuggled 400"))),
            at_most("most answers", 1),
            at_least("most answers", 1),
        ),
        max_growth_mib=MAX_GROWTH_MIB,
    ),
    Attack(
        name="13 MB of pipelined requests",
        expected="reading pauses, others are answered",
        run=pipelining,
        rules=(only("other 200"), at_most("MB taken", 8.0)),
        max_growth_mib=MAX_GROWTH_MIB,
    ),
    Attack(
        name="half-closed requests",
        expected="they are answered",
        run=half_closed,
        rules=(only("probe 200", "completion 200"), each("probe 200", "completion 200")),
    ),
    Attack(
        name="one, two and no Host",
        expected="200, 400, 400",
        run=hosts,
        rules=(only("one 200", "two 400", "none 400"), each("one 200", "two 400", "none 400")),
    ),
    Attack(
        name="keys beyond ASCII",
        expected="the right one opens, others get 401",
        run=strange_keys,
        rules=(
            only("utf-8 200", "latin-1 200", "unknown 401", "bytes 401"),
            each("utf-8 200", "latin-1 200", "unknown 401", "bytes 401"),
        ),
    ),
)
