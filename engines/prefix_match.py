"""A cached prefix that a sequence holds: how much of it there is, and the blocks it consists of."""

from dataclasses import dataclass, field

Digest = bytes
BlockKey = tuple[str, Digest]
"""The stage's lineage (its path's modules up to it) and the hash of all tokens up to the block's end."""


@dataclass(slots=True, kw_only=True)
class Match:
    """A prefix found in the cache and held there until `PrefixCache.release`; empty when nothing was found."""

    num_tokens: int = 0
    keys: list[BlockKey] = field(default_factory=list)
