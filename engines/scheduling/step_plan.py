"""What the scheduler has decided of one step: sequences, slots and numbers of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from engines.scheduling.slots import Move
from engines.sequence import Sequence


@dataclass(slots=True, kw_only=True, frozen=True)
class Chunk:
    """The next `num_tokens` tokens of a sequence that is prefilling."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_last(self) -> bool:
        return self.num_tokens == self.sequence.num_uncomputed_tokens

    @property
    def unscored(self) -> range:
        """Its positions whose logits give the log-probability, still wanted, of the prompt token after them."""
        sequence = self.sequence
        start, first = sequence.num_computed_tokens, sequence.next_scored_position
        end = min(start + self.num_tokens, first + sequence.num_unscored_tokens)
        return range(max(start, first), end)


@dataclass(slots=True, kw_only=True, frozen=True)
class Paused:
    """A sequence that left its slot to another tenant; KV of so many tokens is still there when the step begins."""

    sequence: Sequence
    slot: int
    num_tokens: int


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """What one step does, in this order: keep the KV of `paused` sequences, copy KV between slots, restore cached
    prefixes, run `decode` and `chunks`.

    `decode` has an entry per slot up to the last decoding one; None is padding. `vacated` has the slots of
    preempted and paused sequences, and how many tokens each held.
    """

    paused: list[Paused] = field(default_factory=list)
    vacated: list[tuple[int, int]] = field(default_factory=list)
    moves: list[tuple[Move, Sequence]] = field(default_factory=list)
    restores: list[Sequence] = field(default_factory=list)
    decode: list[Sequence | None] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def sequences(self) -> Iterator[Sequence]:
        """Every sequence in the step's forward pass."""
        yield from (sequence for sequence in self.decode if sequence is not None)
        yield from (chunk.sequence for chunk in self.chunks)

    @property
    def touched(self) -> list[Sequence]:
        """Every sequence whose KV the step reads or writes: those of the pass, and those only moved or restored."""
        moved = [sequence for _, sequence in self.moves]
        return list(dict.fromkeys([*self.sequences, *moved, *self.restores]))

    @property
    def is_empty(self) -> bool:
        return not self.chunks and not self.decode

    @property
    def num_background_tokens(self) -> int:
        """Tokens of the pass that sequences in the background have."""
        rows = sum(sequence is not None and sequence.in_background for sequence in self.decode)
        return rows + sum(chunk.num_tokens for chunk in self.chunks if chunk.sequence.in_background)

    @property
    def num_tokens(self) -> int:
        """Tokens of the pass."""
        rows = sum(sequence is not None for sequence in self.decode)
        return rows + sum(chunk.num_tokens for chunk in self.chunks)
