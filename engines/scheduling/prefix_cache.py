"""KV of prompt beginnings that were computed before, in blocks, per module.

A block is known by its tokens, everything before them, and the modules its KV went through at which width; so the
knowledge module's KV of a shared prefix serves every path of one width, and a deeper path never takes a prefix whose
deeper KV was not written.
Holds copies; knows nothing of slots or tensors beyond their size.

Example: a prompt of 100 tokens ran on the path knowledge, and its first 70 on knowledge, reasoning. Blocks of 32
tokens are kept: three of `knowledge` (96 tokens) and two of `knowledge/reasoning` (64 tokens). The same prompt again
begins at token 96 on the first path, and at token 64 on the second: there the third block of `knowledge` is of no use.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.contract import Block
from engines.prefix_match import BlockKey, Digest, Match

BLOCK_TOKENS = 32
MIN_LEFT_TOKENS = 2
"""How many tokens a match leaves to compute: the last gives the logits, and a pass of one token sums differently."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    block: Block
    num_holders: int = 0


@dataclass(slots=True, kw_only=True)
class StageCounters:
    query_tokens: int = 0
    hit_tokens: int = 0


def block_digests(token_ids: Sequence[int], num_blocks: int, salt: str = "") -> list[Digest]:
    """A hash per block of everything from the first token to the block's end. Different salts give different hashes."""
    tokens = np.asarray(token_ids[: num_blocks * BLOCK_TOKENS], np.int64)
    digests = []
    digest = salt.encode()
    for index in range(num_blocks):
        block = tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
        digest = hashlib.blake2b(digest + block.tobytes(), digest_size=16).digest()
        digests.append(digest)
    return digests


def _most_blocks(num_tokens: int) -> int:
    return max(num_tokens - MIN_LEFT_TOKENS, 0) // BLOCK_TOKENS


def least_computed(num_tokens: int) -> int:
    """How many tokens of a prompt are computed even if all others are in the cache."""
    return num_tokens - _most_blocks(num_tokens) * BLOCK_TOKENS


def lineages(stages: Sequence[str], width: str = "") -> dict[str, str]:
    """For every stage of a path, on which stages at which width its KV depends ("": the whole width)."""
    return {stage: ":".join((width, "/".join(stages[: index + 1]))) for index, stage in enumerate(stages)}


class PrefixCache:
    """Least recently used blocks go first; blocks that a `Match` holds stay.

    Whenever blocks of a chain are used, their predecessors are touched after them. So the oldest block never has a
    younger successor, and eviction cannot leave a block whose prefix is gone.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.counters: dict[str, StageCounters] = {}
        self._entries: OrderedDict[BlockKey, _Entry] = OrderedDict()

    def match(self, token_ids: Sequence[int], stages: Sequence[str], salt: str = "", width: str = "") -> Match:
        """Find and hold the longest prefix whose KV is cached for all stages, at least two tokens short of the whole.

        `stages` are those of the path that have KV, in order, and `width` is the path's.
        """
        digests = block_digests(token_ids, _most_blocks(len(token_ids)), salt)
        num_blocks = len(digests)
        ways = lineages(stages, width)
        for stage, lineage in ways.items():
            known = next((i for i, d in enumerate(digests) if (lineage, d) not in self._entries), len(digests))
            self._count(stage, len(token_ids), known * BLOCK_TOKENS)
            num_blocks = min(num_blocks, known)
        keys = [(lineage, digest) for lineage in ways.values() for digest in digests[:num_blocks]]
        for key in keys:
            self._entries[key].num_holders += 1
        self._touch(ways, digests[:num_blocks])
        return Match(num_tokens=num_blocks * BLOCK_TOKENS if stages else 0, keys=keys)

    def blocks(self, match: Match) -> list[Block]:
        """The held blocks: all of the first stage in token order, then all of the next.

        Shapes: each [layers, 2, kv_heads, BLOCK_TOKENS, head_dim].
        """
        return [self._entries[key].block for key in match.keys]

    def release(self, match: Match) -> None:
        """Release a match; releasing it twice does nothing."""
        for key in match.keys:
            self._entries[key].num_holders -= 1
        match.keys = []
        match.num_tokens = 0

    def insert(
        self,
        token_ids: Sequence[int],
        stages: Sequence[str],
        read: Callable[[str, int], Block],
        salt: str = "",
        width: str = "",
    ) -> None:
        """Remember the full blocks of `token_ids`; `read(stage, start)` copies one out when it is not there yet. What
        it raises is raised; blocks that were read before stay.

        Shapes: `read` returns [layers, 2, kv_heads, BLOCK_TOKENS, head_dim].
        """
        digests = block_digests(token_ids, len(token_ids) // BLOCK_TOKENS, salt)
        ways = lineages(stages, width)
        # Held while it grows: making room for the end of a chain must not evict its beginning.
        chain = Match()
        try:
            self._extend(chain, digests, ways, read)
        finally:
            self.release(chain)
            self._touch(ways, digests)

    def _extend(
        self, chain: Match, digests: Sequence[Digest], ways: Mapping[str, str], read: Callable[[str, int], Block]
    ) -> None:
        """Block by block through all stages: a chain that fits only in part is useful up to there."""
        for index, digest in enumerate(digests):
            for stage, lineage in ways.items():
                key = (lineage, digest)
                if key not in self._entries and not self._add(key, read(stage, index * BLOCK_TOKENS)):
                    return
                self._entries[key].num_holders += 1
                chain.keys.append(key)

    def count_held(self) -> tuple[int, int]:
        """Bytes stored, and how many times blocks are held: counted afresh, for the audit."""
        entries = self._entries.values()
        return sum(entry.block.nbytes for entry in entries), sum(entry.num_holders for entry in entries)

    def _add(self, key: BlockKey, block: Block) -> bool:
        """Store a block, evicting as needed; False when it cannot fit."""
        while self.used_bytes + block.nbytes > self.capacity_bytes:
            victim = next((k for k, entry in self._entries.items() if entry.num_holders == 0), None)
            if victim is None:
                return False
            self.used_bytes -= self._entries.pop(victim).block.nbytes
        self._entries[key] = _Entry(block=block)
        self.used_bytes += block.nbytes
        return True

    def _touch(self, ways: Mapping[str, str], digests: Sequence[Digest]) -> None:
        """Mark blocks of the lineages of a path's stages as used, deepest stage and last block first."""
        for lineage in reversed(list(ways.values())):
            for digest in reversed(digests):
                if (lineage, digest) in self._entries:
                    self._entries.move_to_end((lineage, digest))

    def _count(self, stage: str, query_tokens: int, hit_tokens: int) -> None:
        counters = self.counters.setdefault(stage, StageCounters())
        counters.query_tokens += query_tokens
        counters.hit_tokens += hit_tokens
