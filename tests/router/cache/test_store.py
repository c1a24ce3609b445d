"""The store in this process: bounded in bytes and time, least recently used first."""

from hypothesis import given
from hypothesis import strategies as st

from router.cache.store import ENTRY_OVERHEAD_BYTES, MemoryStore
from tests.router.clocks import Clock

ENTRY = 100 + ENTRY_OVERHEAD_BYTES


async def put(store: MemoryStore, *keys: str) -> None:
    for key in keys:
        assert await store.put(key, b"v" * 100)


async def kept(store: MemoryStore, *keys: str) -> list[str]:
    return [key for key in keys if await store.get(key) is not None]


async def test_store_lets_go_of_the_least_recently_used() -> None:
    store = MemoryStore(3 * ENTRY, 60.0, Clock())
    await put(store, "a", "b", "c")
    await store.get("a")
    await put(store, "d")
    assert await kept(store, "a", "b", "c", "d") == ["a", "c", "d"]
    assert store.status().evictions == {"room": 1, "age": 0}


async def test_store_lets_go_of_what_is_too_old() -> None:
    clock = Clock()
    store = MemoryStore(10 * ENTRY, 60.0, clock)
    await put(store, "a")
    clock.now_s = 30.0
    await put(store, "b")
    clock.now_s = 60.0
    assert await kept(store, "a", "b") == ["b"]
    assert store.status().evictions == {"room": 0, "age": 1}
    assert (store.status().num_entries, store.status().num_bytes) == (1, ENTRY)


async def test_store_refuses_what_is_larger_than_all_of_it() -> None:
    store = MemoryStore(ENTRY, 60.0)
    await put(store, "a")
    assert not await store.put("b", b"v" * 101)
    assert await kept(store, "a", "b") == ["a"]


async def test_store_flushes_by_prefix() -> None:
    store = MemoryStore(10 * ENTRY, 60.0)
    await put(store, "one:full:1", "one:full:2", "one:shallow:1", "oneother:full:1")
    assert await store.flush("one:full:") == 2
    assert await store.flush("one:") == 1
    assert await store.flush("") == 1
    assert store.status().num_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 400), st.integers(0, 9)), max_size=60))
async def test_store_never_holds_more_than_its_bound(steps: list[tuple[int, int, int]]) -> None:
    clock = Clock()
    store = MemoryStore(4 * ENTRY, 20.0, clock)
    newest: dict[str, tuple[bytes, float]] = {}
    for key, size, wait in steps:
        name, value = str(key), bytes([key]) * size
        clock.now_s += wait
        if await store.put(name, value):
            newest[name] = (value, clock.now_s)
        status = store.status()
        assert status.num_bytes is not None
        assert 0 <= status.num_bytes <= 4 * ENTRY
        for other, (last, put_s) in newest.items():
            found = await store.get(other)
            assert found in (None, last)
            assert found is None or clock.now_s - put_s < 20.0
