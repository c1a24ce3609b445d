"""The prefix cache finds exactly what was written, never more, whatever was evicted."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from engines.contract import Block
from engines.prefix_match import Match
from engines.scheduling.prefix_cache import BLOCK_TOKENS, PrefixCache, block_digests, lineages

BLOCK_BYTES = 4


def fake_block(tokens: list[int], stage: str, start: int) -> Block:
    """A block that says what it was made of: the stage and every token up to its end."""
    return np.array([hash((stage, tuple(tokens[: start + BLOCK_TOKENS]))) % (1 << 31)], np.int32)


def reader(tokens: list[int]) -> Callable[[str, int], Block]:
    return lambda stage, start: fake_block(tokens, stage, start)


def check_integrity(cache: PrefixCache) -> None:
    entries = cache._entries
    assert cache.used_bytes == sum(entry.block.nbytes for entry in entries.values())
    assert cache.used_bytes <= cache.capacity_bytes
    assert all(entry.num_holders >= 0 for entry in entries.values())


def check_match(match: Match, cache: PrefixCache, tokens: list[int], stages: tuple[str, ...]) -> None:
    num_blocks = match.num_tokens // BLOCK_TOKENS
    expected = [
        fake_block(tokens, stage, index * BLOCK_TOKENS).tolist() for stage in stages for index in range(num_blocks)
    ]
    assert [block.tolist() for block in cache.blocks(match)] == expected
    assert match.num_tokens < max(len(tokens), 1)


def test_prefix_cache_finds_a_shared_beginning() -> None:
    cache = PrefixCache(1 << 20)
    first = list(range(100))
    cache.insert(first, ("k",), reader(first))
    match = cache.match([*first[:70], 9, 9, 9], ("k",))
    assert match.num_tokens == 64
    check_match(match, cache, first, ("k",))


def test_prefix_cache_finds_what_its_example_says() -> None:
    cache, tokens = PrefixCache(1 << 20), list(range(100))
    cache.insert(tokens, ("knowledge",), reader(tokens))
    cache.insert(tokens[:70], ("knowledge", "reasoning"), reader(tokens))
    assert cache.used_bytes == 5 * BLOCK_BYTES
    assert cache.match(tokens, ("knowledge",)).num_tokens == 96
    assert cache.match(tokens, ("knowledge", "reasoning")).num_tokens == 64


def test_prefix_cache_leaves_a_token_to_compute() -> None:
    cache = PrefixCache(1 << 20)
    tokens = list(range(64))
    cache.insert(tokens, ("k",), reader(tokens))
    assert cache.match(tokens, ("k",)).num_tokens == 32


def test_prefix_cache_shares_the_first_module_but_not_unwritten_deeper_kv() -> None:
    cache = PrefixCache(1 << 20)
    tokens = list(range(80))
    cache.insert(tokens, ("k",), reader(tokens))
    assert cache.match(tokens, ("k", "r")).num_tokens == 0
    cache.insert(tokens, ("k", "r"), reader(tokens))
    assert cache.match(tokens, ("k", "r")).num_tokens == 64
    assert cache.match(tokens, ("k",)).num_tokens == 64


def test_prefix_cache_separates_paths_that_skip_a_module() -> None:
    assert lineages(("k", "a"))["a"] != lineages(("k", "r", "a"))["a"]
    cache = PrefixCache(1 << 20)
    tokens = list(range(80))
    cache.insert(tokens, ("k", "a"), reader(tokens))
    cache.insert(tokens, ("k", "r"), reader(tokens))
    assert cache.match(tokens, ("k", "r", "a")).num_tokens == 0


def test_prefix_cache_separates_widths_from_the_first_module_on() -> None:
    every = {lineage for width in ("", "wide", "slim") for lineage in lineages(("k", "r"), width).values()}
    assert len(every) == 6
    cache = PrefixCache(1 << 20)
    tokens = list(range(80))
    cache.insert(tokens, ("k", "r"), reader(tokens), width="slim")
    assert cache.match(tokens, ("k", "r")).num_tokens == 0
    assert cache.match(tokens, ("k",), width="wide").num_tokens == 0
    assert cache.match(tokens, ("k",), width="slim").num_tokens == 64
    cache.insert(tokens, ("k",), reader(tokens))
    assert cache.used_bytes == 6 * BLOCK_BYTES


def test_prefix_cache_digests_depend_on_everything_before() -> None:
    one = block_digests([1] * 64, 2)
    other = block_digests([2] + [1] * 63, 2)
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_prefix_cache_counts_hits_per_stage() -> None:
    cache = PrefixCache(1 << 20)
    tokens = list(range(80))
    cache.insert(tokens, ("k",), reader(tokens))
    cache.match(tokens, ("k", "r"))
    assert (cache.counters["k"].query_tokens, cache.counters["k"].hit_tokens) == (80, 64)
    assert (cache.counters["r"].query_tokens, cache.counters["r"].hit_tokens) == (80, 0)


def test_prefix_cache_keeps_held_blocks_when_full() -> None:
    cache = PrefixCache(2 * BLOCK_BYTES)
    held, other = list(range(64)), list(range(1000, 1064))
    cache.insert(held, ("k",), reader(held))
    match = cache.match([*held, 0, 0], ("k",))
    cache.insert(other, ("k",), reader(other))
    check_match(match, cache, [*held, 0, 0], ("k",))
    assert cache.match([*other, 0, 0], ("k",)).num_tokens == 0
    cache.release(match)
    cache.insert(other, ("k",), reader(other))
    assert cache.match([*other, 0, 0], ("k",)).num_tokens == 64


def test_prefix_cache_holds_nothing_after_a_read_that_failed() -> None:
    cache, tokens = PrefixCache(5 * BLOCK_BYTES), list(range(100))

    def read(stage: str, start: int) -> Block:
        if start == 2 * BLOCK_TOKENS:
            raise RuntimeError("device")
        return fake_block(tokens, stage, start)

    with pytest.raises(RuntimeError, match="device"):
        cache.insert(tokens, ("k", "r"), read)
    check_integrity(cache)
    assert cache.count_held() == (4 * BLOCK_BYTES, 0)
    other = list(range(200, 264))
    cache.insert(other, ("k",), reader(other))
    assert cache.match(tokens, ("k",)).num_tokens == 2 * BLOCK_TOKENS, "a first block must not go before its successors"
    assert cache.match(other, ("k",)).num_tokens == BLOCK_TOKENS


def test_prefix_cache_of_no_bytes_holds_nothing() -> None:
    cache = PrefixCache(0)
    tokens = list(range(64))
    cache.insert(tokens, ("k",), reader(tokens))
    assert cache.match([*tokens, 1, 1], ("k",)).num_tokens == 0
    check_integrity(cache)


@pytest.mark.parametrize("seed", range(25))
def test_prefix_cache_stays_true_under_random_operations(seed: int) -> None:
    rng = random.Random(seed)
    cache = PrefixCache(rng.choice([0, 3, 8, 30]) * BLOCK_BYTES)
    paths: list[tuple[str, ...]] = [("k",), ("k", "r"), ("k", "r", "a")]
    held: list[tuple[Match, list[int], tuple[str, ...]]] = []
    for _ in range(150):
        tokens = [rng.randrange(2)] * 32 + [rng.randrange(3)] * 32 + [rng.randrange(2)] * rng.randrange(70)
        stages = rng.choice(paths)
        action = rng.random()
        if action < 0.45:
            cache.insert(tokens, stages, reader(tokens))
        elif action < 0.8:
            held.append((cache.match(tokens, stages), tokens, stages))
        elif held:
            cache.release(held.pop(rng.randrange(len(held)))[0])
        for match, its_tokens, its_stages in held:
            check_match(match, cache, its_tokens, its_stages)
        check_integrity(cache)
    for match, _, _ in held:
        cache.release(match)
    assert all(entry.num_holders == 0 for entry in cache._entries.values())


def test_prefix_cache_smaller_than_a_prompt_serves_its_beginning_on_every_stage() -> None:
    cache = PrefixCache(4 * BLOCK_BYTES)
    tokens = list(range(32 * 10))
    cache.insert(tokens, ("k", "r"), reader(tokens))
    assert cache.match(tokens, ("k", "r")).num_tokens == 64
