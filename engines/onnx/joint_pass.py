"""Decode rows and chunks of prompts in one pass: their tokens lie side by side, each a row, so that the weights of a
module are read once for all. Attention alone goes sequence by sequence.

Native operators take that (`engines/native`), and every sequence keeps the bits that it has in a pass of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.contract import DecodeRow, PrefillChunk, StepInput


@dataclass(slots=True, kw_only=True, frozen=True)
class Span:
    """Consecutive tokens of the sequence in `slot`, the last of them at `last_position`, as rows from `first` on."""

    path: str
    slot: int
    token_ids: tuple[int, ...]
    last_position: int
    first: int

    @property
    def end(self) -> int:
        return self.first + len(self.token_ids)

    @property
    def rows(self) -> slice:
        return slice(self.first, self.end)


@dataclass(slots=True, kw_only=True, frozen=True)
class JointPass:
    """The rows of a step, deepest path first: every module's are a prefix. Padding of the step has none."""

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, step: StepInput, rank: Callable[[str], int]) -> "JointPass":
        """`rank` orders paths, the deepest first."""
        decode = [_of_row(slot, row) for slot, row in enumerate(step.decode) if row.path is not None]
        spans, first = [], 0
        for path, slot, token_ids, last in sorted(
            [*decode, *map(_of_chunk, step.prefill)], key=lambda one: rank(one[0])
        ):
            spans.append(Span(path=path, slot=slot, token_ids=token_ids, last_position=last, first=first))
            first = spans[-1].end
        return cls(spans=tuple(spans))

    @property
    def token_ids(self) -> list[int]:
        return [token_id for span in self.spans for token_id in span.token_ids]

    @property
    def total_length(self) -> int:
        return 1 + max(span.last_position for span in self.spans)

    def sequences(self, rows: slice) -> npt.NDArray[np.int32]:
        """Which sequences the rows are, as the operators read it: minus their number, then of each its tokens, its slot
        and its last position. Shapes: returns [1 + 3 * sequences].
        """
        spans = [span for span in self.spans if rows.start <= span.first < rows.stop]
        each = [value for span in spans for value in (len(span.token_ids), span.slot, span.last_position)]
        return np.array([-len(spans), *each], np.int32)

    def wanted_rows(self, chunks: Sequence[PrefillChunk]) -> npt.NDArray[np.int32]:
        """Rows whose final states are read: of decode rows all, of each chunk those it wants.

        Shapes: returns [rows], ascending.
        """
        places = {chunk.slot: chunk.wanted_places for chunk in chunks}
        return np.array([span.first + at for span in self.spans for at in places.get(span.slot, (0,))], np.int32)

    def by_slot(self) -> dict[int, Span]:
        return {span.slot: span for span in self.spans}


Tokens = tuple[str, int, tuple[int, ...], int]
"""Path, slot, ids and last position."""


def _of_row(slot: int, row: DecodeRow) -> Tokens:
    assert row.path is not None
    return row.path, slot, (row.token_id,), row.position


def _of_chunk(chunk: PrefillChunk) -> Tokens:
    return chunk.path, chunk.slot, chunk.token_ids, chunk.start + len(chunk.token_ids) - 1
