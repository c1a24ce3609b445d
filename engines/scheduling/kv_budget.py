"""How much KV running sequences hold, counted in bytes. Touches no tensor."""

from collections.abc import Mapping

from engines.sequence import Sequence

KV_BLOCK_TOKENS = 16
"""KV is accounted in blocks of this many tokens, which is about the size of a memory page."""


class KvBudget:
    """Bytes of KV that sequences hold, in blocks, within a capacity."""

    def __init__(self, capacity_bytes: int, bytes_per_token: Mapping[str, int]) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._bytes_per_token = bytes_per_token
        self._held: dict[str, int] = {}

    def needed_bytes(self, path: str, num_tokens: int) -> int:
        num_blocks = -(-num_tokens // KV_BLOCK_TOKENS)
        return num_blocks * KV_BLOCK_TOKENS * self._bytes_per_token[path]

    def capacity_tokens(self, path: str) -> int:
        """The longest sequence on a path that could run alone."""
        block_bytes = KV_BLOCK_TOKENS * self._bytes_per_token[path]
        return self.capacity_bytes // block_bytes * KV_BLOCK_TOKENS if block_bytes else self.capacity_bytes

    def can_hold(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether the sequence can hold `num_tokens` in all, in place of what it holds now."""
        more = self.needed_bytes(sequence.path, num_tokens) - self._held.get(sequence.id, 0)
        return self.used_bytes + more <= self.capacity_bytes

    def hold(self, sequence: Sequence, num_tokens: int) -> None:
        needed = self.needed_bytes(sequence.path, num_tokens)
        self.used_bytes += needed - self._held.get(sequence.id, 0)
        self._held[sequence.id] = needed

    def release(self, sequence: Sequence) -> None:
        self.used_bytes -= self._held.pop(sequence.id, 0)

    @property
    def held_bytes(self) -> Mapping[str, int]:
        """By sequence id."""
        return self._held
