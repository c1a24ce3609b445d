"""The shared store, against a real server, and against one that is slow, full, gone or answers nonsense."""

import asyncio
import builtins
import dataclasses
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError, Unavailable
from router.cache.config import CacheConfig
from router.cache.redis_store import RedisStore, address_of
from tests.router.redis_process import BINARY, REASON, fake_server, redis_server

needs_server = pytest.mark.skipif(BINARY is None, reason=REASON)

PATIENT = CacheConfig(timeout_s=5.0)
HASTY = CacheConfig(timeout_s=0.05, breaker_failures=2, breaker_pause_s=60.0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as found:
        yield found


def make_store(url: str, config: CacheConfig = PATIENT, **settings: Any) -> RedisStore:
    return RedisStore(dataclasses.replace(config, url=url, **settings))


async def fails(store: RedisStore) -> bool:
    """Whether the store cannot tell, and does not say that there is nothing."""
    try:
        await store.get("key")
    except Unavailable:
        return True
    return False


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisStore]:
    found = make_store(url)
    await found.flush("")
    yield found
    await found.close()


@needs_server
async def test_store_shares_values_between_replicas(store: RedisStore, url: str) -> None:
    assert await store.put("tiny:full:1", b"\x00value")
    other, elsewhere = make_store(url), make_store(url, namespace="other")
    assert await other.get("tiny:full:1") == b"\x00value"
    assert await elsewhere.get("tiny:full:1") is None
    assert await other.get("tiny:full:2") is None
    assert store.status().errors == {}
    await other.close()
    await elsewhere.close()


@needs_server
async def test_store_lets_values_expire(store: RedisStore, url: str) -> None:
    await store.put("tiny:full:1", b"value")
    assert 0 < await store._client.ttl("fenhe:tiny:full:1") <= 3600


@needs_server
async def test_store_flushes_by_prefix_and_only_its_own_namespace(store: RedisStore, url: str) -> None:
    elsewhere = make_store(url, namespace="other")
    for key in ("tiny:full:1", "tiny:shallow:1", "tinyother:full:1", *(f"many:full:{i}" for i in range(2500))):
        await store.put(key, b"v")
    await elsewhere.put("tiny:full:1", b"v")
    assert await store.flush("tiny:") == 2
    assert await store.flush("many:") == 2500
    assert await store.get("tinyother:full:1") == b"v"
    assert await elsewhere.get("tiny:full:1") == b"v"
    assert await elsewhere.flush("") == 1
    await elsewhere.close()


@needs_server
@pytest.mark.parametrize("pattern", ["t?ny:", "*", "[t]iny:", "tiny:full:\\"])
async def test_store_takes_a_prefix_by_the_letter(store: RedisStore, pattern: str) -> None:
    await store.put("tiny:full:1", b"v")
    assert await store.flush(pattern) == 0
    await store.put(f"{pattern}1", b"v")
    assert await store.flush(pattern) == 1


@needs_server
async def test_store_that_is_full_still_reads(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory-policy", "noeviction") as url:
        store = make_store(url, breaker_failures=2)
        assert await store.put("kept", b"v")
        await store._client.config_set("maxmemory", 1)
        assert [await store.put("more", b"v") for _ in range(3)] == [False, False, False]
        assert await store.get("kept") == b"v"
        assert store.status().open_breakers == {"get": False, "put": True}
        assert sum(store.status().errors.values()) == 2
        await store.close()


@needs_server
async def test_store_that_is_gone_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(tmp_path) as url:
        store = make_store(url, breaker_failures=2, breaker_pause_s=60.0)
        await store.put("key", b"v")
    with caplog.at_level(logging.WARNING):
        assert [await fails(store) for _ in range(5)] == [True] * 5
    status = store.status()
    assert (sum(status.errors.values()), status.open_breakers["get"]) == (2, True)
    told = [record.message.split(" operation")[0] for record in caplog.records]
    address = url.removeprefix("unix://")
    assert told == [f"cache server failed address={address}", f"cache server left alone address={address}"]
    with pytest.raises(Unavailable, match=r"cache\.url"):
        await store.flush("")
    await store.close()


@needs_server
async def test_store_is_asked_again_after_the_pause(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        store = make_store(url, breaker_failures=1, breaker_pause_s=0.01)
    assert await fails(store)
    assert store.status().open_breakers["get"]
    (tmp_path / "redis.sock").unlink()
    with redis_server(tmp_path):
        await asyncio.sleep(0.02)
        assert await store.get("key") is None
        assert not store.status().open_breakers["get"]
        await store.close()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://user:secret@cache.example:7000/0?password=secret", "cache.example:7000"),
        ("valkeys://:secret@[::1]", "[::1]:6379"),
        ("redis://", "localhost:6379"),
        ("unix://user:secret@/run/redis.sock?db=1&password=secret", "/run/redis.sock"),
    ],
)
def test_store_address_has_no_password(url: str, address: str) -> None:
    assert address_of(url) == address


async def test_store_tells_the_first_failure_where_nothing_listens(caplog: pytest.LogCaptureFixture) -> None:
    store = make_store("redis://:secret@127.0.0.1:9", breaker_failures=9)
    with caplog.at_level(logging.WARNING):
        assert [await fails(store) for _ in range(3)] == [True] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "address=127.0.0.1:9 " in caplog.text
    assert "secret" not in caplog.text
    await store.close()


async def test_store_tells_a_failure_again_once_the_server_was_back(caplog: pytest.LogCaptureFixture) -> None:
    is_well = False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(4096):
            if not is_well:
                writer.close()
                return
            writer.write(b"$1\r\nv\r\n" if b"GET" in command else b"+OK\r\n" * command.count(b"*"))

    async with fake_server(answer) as url:
        store = make_store(url, breaker_failures=2, breaker_pause_s=0.001)
        with caplog.at_level(logging.INFO):
            for is_well in (False, False, True, False):
                await asyncio.sleep(0.01)
                assert await fails(store) is not is_well
        told = [record.message.partition(" address")[0] for record in caplog.records]
        assert told == [
            "cache server failed",
            "cache server left alone",
            "cache server answers again",
            "cache server failed",
        ]
        await store.close()


async def test_store_that_is_slow_costs_no_more_than_its_time_out() -> None:
    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with fake_server(be_silent) as url:
        store = make_store(url, HASTY)
        async with asyncio.timeout(10):
            assert [await fails(store) for _ in range(20)] == [True] * 20
        assert sum(store.status().errors.values()) == 2
        await store.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$notanumber\r\n",
        b"$-5\r\n",
        b"*1\r\n",
        b":7\r\n",
        b"\r\n",
        b"\xff" * 64,
        b"",
    ],
)
async def test_store_that_talks_rubbish_cannot_tell(reply: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            if not reply:
                writer.close()
                return
            writer.write(reply * 4)

    async with fake_server(talk) as url:
        store = make_store(url, HASTY)
        assert [await fails(store) for _ in range(4)] == [True] * 4
        assert store.status().errors
        await store.close()


async def test_store_never_takes_a_late_reply_for_the_next_one() -> None:
    """A reply that comes after its time-out must not answer the question that is asked next."""
    num_connections = 0

    async def be_late_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        is_late = num_connections == 1
        while command := await reader.read(4096):
            if b"GET" in command:
                await asyncio.sleep(0.3 if is_late else 0.0)
                writer.write(b"$4\r\nlate\r\n" if is_late else b"$5\r\nright\r\n")
            else:
                writer.write(b"+OK\r\n" * command.count(b"*"))

    async with fake_server(be_late_once) as url:
        store = make_store(url, HASTY, timeout_s=0.15, breaker_failures=10)
        assert await fails(store)
        await asyncio.sleep(0.3)
        replies = [await store.get("second") for _ in range(3)]
        assert b"late" not in replies
        await store.close()


async def test_store_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def fail(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("redis"):
            raise ImportError(name)
        return true_import(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ConfigError, match=r"pip install 'fenhe\[redis\]'"):
        make_store("redis://localhost")


def test_store_reads_valkey_urls_too() -> None:
    for scheme in ("valkey", "valkeys", "redis", "rediss"):
        assert make_store(f"{scheme}://localhost:6379/0")
