"""One forward pass of a student on ONNX Runtime, module by module.

Owns sessions, hidden states and KV. Decode rows of all paths run together, each module once on the rows that need it.
Chunks of prompts run in the same pass where the operators are fenhe's own, else beside it. Schedules nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from engines.contract import Block, DecodeRow, PrefillChunk, StepInput
from engines.onnx.int8_kv import Int8Kv
from engines.onnx.int8_kv import bytes_per_token as int8_bytes_per_token
from engines.onnx.joint_pass import JointPass
from engines.onnx.mapped_weights import MappedWeights
from engines.onnx.packed_weights import read_packed
from engines.onnx.plan import PrecisionPlan
from engines.onnx.sessions import HeadSession, KeptRows, StageKv, StageSession, Tables, open_session
from engines.onnx.slot_kv import SlotKv
from models.architecture import Architecture
from models.errors import WeightsError
from models.graphs.precisions import PRECISIONS
from models.rope import inverse_frequencies
from models.student.folder import HEAD, HEAD_STAGES, Student
from models.student.manifest import HeadKind

Float = npt.NDArray[np.float32]
Places = npt.NDArray[np.int32]

MAX_PADDING_SHARE = 0.25
"""Prompts of unequal length share a pass while padding stays below this share of its tokens. Rows of a head share one
with the padding between them up to this share of it; beyond it they are gathered, and their logits copied."""


@dataclass(slots=True, kw_only=True, frozen=True)
class RunnerLimits:
    """`library` holds fenhe's own compiled operators, which `-native` graphs need."""

    num_slots: int
    capacity_tokens: int
    num_threads: int
    library: Path | None = None


@dataclass(slots=True, kw_only=True)
class RowRange:
    """Rows of a step that run a stage together, widest first; `bounds` has where the rows of each width end."""

    first: int
    bounds: list[int]
    rank: int = 0
    """Of the last row's width, 0 for the whole one."""

    @property
    def end(self) -> int:
        return self.bounds[-1]

    def extend_to(self, end: int, rank: int) -> None:
        """Take in the rows before `end`, of which the last has the width of this rank; padding before it counts as
        narrow too."""
        self.rank = rank
        self.bounds[rank:] = [end] * (len(self.bounds) - rank)


class OnnxRunner:
    """`Runner` on CPU sessions.

    Hidden states of a step live in one buffer, and every module works in place on a prefix of it; the rows
    of shallower paths stay behind that prefix.
    """

    def __init__(self, student: Student, plan: PrecisionPlan, limits: RunnerLimits) -> None:
        manifest = student.manifest
        hidden_size = manifest.architecture.hidden_size
        self._student = student
        self._manifest = manifest
        self._plan = plan
        self._limits = limits
        self._embeddings = {variant: student.embedding_table(variant) for variant in plan.variants}
        self._tables = Tables(inverse_frequencies(manifest.architecture), limits.capacity_tokens)
        self._kv = {stage: self._make_kv(stage) for stage in manifest.stage_order() if manifest.num_layers_in(stage)}
        self._stage_order = manifest.stage_order()
        self._path_stages = {path.name: manifest.stages(path) for path in manifest.paths}
        self._exit_names = frozenset(exit.name for exit in manifest.exits)
        self._mapped = MappedWeights(student.folder)
        self._stages_to_load = {HEAD, *self._stage_order}
        self._stages: dict[tuple[str, str], StageSession] = {}
        self._heads: dict[tuple[str, HeadKind], HeadSession] = {}
        self._hidden = np.zeros((limits.num_slots, 1, hidden_size), np.float32)
        self._positions = np.zeros(limits.num_slots, np.int32)
        self._total_length = np.zeros((), np.int32)
        self._width_ranks = {path.name: manifest.width_rank(path.width) for path in manifest.paths}
        self._rows_by_width = np.zeros(1 + len(manifest.widths), np.int32)
        # Padding rows may share a slot with a prefilling sequence, so a step can have more rows than slots.
        self._normed = np.zeros((2 * limits.num_slots, hidden_size), np.float32)
        self._logits = np.zeros((2 * limits.num_slots, manifest.architecture.vocab_size), np.float32)
        self._picked = np.zeros(self._logits.shape, np.float32)  # logits of rows that do not lie side by side
        self._num_decode = 0
        self._kept: dict[int, tuple[int, Float]] = {}

    @property
    def variant(self) -> str:
        """The precision that prompts run in."""
        return self._plan.prefill

    @property
    def skips_padding(self) -> bool:
        """Where one pass takes sequences from any slots, and all rows run in one precision."""
        return PRECISIONS[self._plan.prefill].needs_native and self._plan.variants == (self._plan.prefill,)

    def load(self, stage: str) -> None:
        for variant in self._plan.variants:
            if stage == HEAD:
                for head in self._plan.heads:
                    opened_head = self._open_head(variant, HEAD_STAGES[head])
                    self._heads[variant, head] = _warm_head(opened_head, self._manifest.architecture)
            else:
                opened = self._open_stage(variant, stage)
                self._stages[stage, variant] = _warm_stage(opened, self._manifest.architecture, self._limits.num_slots)
        self._stages_to_load.discard(stage)
        if not self._stages_to_load:
            self._mapped.release_pages()

    def _open_stage(self, variant: str, stage: str) -> StageSession:
        """Raises: WeightsError for a graph of other widths than the student."""
        weights = read_packed(self._student, variant, stage)
        session = StageSession(self._open(variant, stage), self._kv.get(stage), self._tables, weights)
        expected = 1 if stage in self._exit_names else 1 + len(self._manifest.widths)
        if session.num_widths != expected:
            raise WeightsError(
                f"{self._student.graph(variant, stage)} has {session.num_widths - 1} widths, and the student "
                f"{expected - 1} there; build the student again with `fenhe build --widths`"
            )
        return session

    def _open_head(self, variant: str, stage: str) -> HeadSession:
        """Raises: WeightsError for a head of other sizes than the student."""
        session = HeadSession(self._open(variant, stage), read_packed(self._student, variant, stage))
        architecture = self._manifest.architecture
        if session.sizes != (architecture.hidden_size, architecture.vocab_size):
            raise WeightsError(
                f"{self._student.graph(variant, stage)} is a head from {session.sizes[0]} values to {session.sizes[1]} "
                f"tokens, and the student has {architecture.hidden_size} and {architecture.vocab_size}; build the "
                "student again with `fenhe build`"
            )
        return session

    def forward(self, step: StepInput) -> Float:
        """Shapes: returns [rows, vocab]: decode rows, then the chunks that want logits."""
        num_decode = len(step.decode)
        self._kept.clear()
        wanting = [chunk.slot for chunk in step.prefill if chunk.wants_logits]
        rows = {slot: num_decode + index for index, slot in enumerate(wanting)}
        if self._can_join(step):
            self._run_jointly(step, rows)
        else:
            if num_decode:
                self._decode(step.decode)
            for group in grouped(step.prefill):
                self._prefill(group, rows)
        num_rows = num_decode + len(rows)
        self._num_decode = num_decode
        heads = [None if row.path is None else row.head for row in step.decode]
        self._run_heads([*heads, *(chunk.head for chunk in step.prefill if chunk.wants_logits)])
        return self._logits[:num_rows]

    def exact_logits(self, rows: Sequence[int]) -> Float:
        """Shapes: returns [len(rows), vocab]."""
        logits = self._picked[: len(rows)]
        num_decode = sum(row < self._num_decode for row in rows)
        for variant, first, end in self._variant_ranges(num_decode, len(rows)):
            self._heads[variant, "exact"].run(self._normed[list(rows[first:end])], logits[first:end])
        return logits

    def position_logits(self, slot: int, first: int, end: int) -> Float:
        """Shapes: returns [end - first, vocab]."""
        start, normed = self._kept[slot]
        return self.run_head(normed[first - start : end - start])

    def move_slot(self, source: int, target: int, path: str, num_tokens: int) -> None:
        for stage in self._manifest.stages(self._manifest.path(path)):
            if stage in self._kv:
                self._kv[stage].move(source, target, num_tokens)

    def read_block(self, stage: str, slot: int, start: int, num_tokens: int) -> Block:
        """Shapes: returns [layers, 2, kv_heads, num_tokens, head_dim]; in int8 as `Int8Kv.read` has it."""
        return self._kv[stage].read(slot, start, num_tokens)

    def write_block(self, stage: str, slot: int, start: int, block: Block) -> None:
        """Shapes: block as `read_block` returns it."""
        self._kv[stage].write(slot, start, block)

    def release_slot(self, slot: int, num_tokens: int) -> None:
        for kv in self._kv.values():
            kv.release(slot, num_tokens)

    def embed(self, token_ids: Sequence[int]) -> Float:
        """What the first module reads, at the precision of prompts. Shapes: returns [1, tokens, hidden_size]."""
        return self._embeddings[self._plan.prefill][list(token_ids)][None]

    def run_stage(self, stage: str, hidden: Float, *, slot: int, start: int, width: str = "") -> Float:
        """Every position of one sequence through one stage, for callers that need all; KV before `start` is written.

        Shapes: hidden and result [1, tokens, hidden_size]. The result of an exit is normed.
        """
        output = np.empty_like(hidden)
        last = start + hidden.shape[1] - 1
        self._stages[stage, self._plan.prefill].run(
            hidden,
            output,
            slot=slot,
            last_positions=np.array([last], np.int32),
            total_length=np.array(last + 1, np.int32),
            rows_by_width=self._all_at(self._manifest.width_rank(width), 1),
        )
        return output

    def run_head(self, normed: Float, head: HeadKind = "exact") -> Float:
        """Shapes: normed [rows, hidden_size], returns [rows, vocab]."""
        logits = np.empty((len(normed), self._manifest.architecture.vocab_size), np.float32)
        self._heads[self._plan.prefill, head].run(np.ascontiguousarray(normed), logits)
        return logits

    def kv_bytes_per_token(self, stage: str) -> int:
        architecture = self._manifest.architecture
        num_layers = self._manifest.num_layers_in(stage)
        if self._plan.int8_kv:
            return int8_bytes_per_token(num_layers, architecture.num_kv_heads, architecture.head_dim)
        return 2 * num_layers * architecture.kv_size * np.dtype(self._plan.kv_type).itemsize

    def _open(self, variant: str, stage: str) -> ort.InferenceSession:
        graph, limits = self._student.whole_graph(variant, stage), self._limits
        copies = PRECISIONS[variant].needs_native
        with self._mapped.opening() if copies else nullcontext():
            return open_session(graph, limits.num_threads, limits.library)

    def _make_kv(self, stage: str) -> StageKv:
        architecture = self._manifest.architecture
        make = Int8Kv if self._plan.int8_kv else partial(SlotKv, dtype=self._plan.kv_type)
        return make(
            num_layers=self._manifest.num_layers_in(stage),
            num_slots=self._limits.num_slots + 1,  # the last one is for the first run of a stage
            num_kv_heads=architecture.num_kv_heads,
            capacity=self._limits.capacity_tokens,
            head_dim=architecture.head_dim,
        )

    def _decode(self, rows: Sequence[DecodeRow]) -> None:
        """Run all decode rows; their normed states are the first rows of `_normed`."""
        num_rows = len(rows)
        variant = self._plan.decode(num_rows)
        hidden = self._hidden[:num_rows]
        hidden[:, 0] = self._embeddings[variant][[row.token_id for row in rows]]
        self._positions[:num_rows] = [row.position for row in rows]
        self._total_length[...] = 1 + self._positions[:num_rows].max()
        normed = self._normed[:num_rows, None]
        for stage, run in self._row_ranges((row.path, 1) for row in rows):
            is_exit = stage in self._exit_names
            first, end = run.first, run.end
            self._rows_by_width[:] = [bound - first for bound in run.bounds]
            self._stages[stage, variant].run(
                hidden[first:end],
                normed[first:end] if is_exit else hidden[first:end],
                slot=first,
                last_positions=self._positions[first:end],
                total_length=self._total_length,
                rows_by_width=self._rows_by_width,
            )

    def _row_ranges(self, spans: Iterable[tuple[str | None, int]]) -> list[tuple[str, RowRange]]:
        """The rows of every stage that this step needs, in running order; `spans` has paths and how many rows each
        takes next.

        One range per stage, padding included, unless rows that must not run it lie between those that must, or a
        module has a row that is wider than the one before. Exits have no widths.
        """
        ranges: dict[str, list[RowRange]] = {}
        first, last_end = 0, 0  # the latter behind the latest row that is not padding
        for path, num_rows in spans:
            end = first + num_rows
            for stage in self._path_stages[path] if path is not None else ():
                assert path is not None
                rank = 0 if stage in self._exit_names else self._width_ranks[path]
                of_stage = ranges.setdefault(stage, [])
                if not of_stage or of_stage[-1].end != last_end or of_stage[-1].rank > rank:
                    of_stage.append(RowRange(first=first, bounds=[first] * len(self._rows_by_width)))
                of_stage[-1].extend_to(end, rank)
            last_end = end if path is not None else last_end
            first = end
        return [(stage, run) for stage in self._stage_order for run in ranges.get(stage, ())]

    def _can_join(self, step: StepInput) -> bool:
        """Whether one pass can have the step's tokens and nothing else, where it would be several or have padding."""
        variant = self._plan.prefill
        if not PRECISIONS[variant].needs_native or self._plan.decode(len(step.decode)) != variant:
            return False
        num_rows = sum(row.path is not None for row in step.decode)
        return len(step.prefill) + (num_rows > 0) > 1 or 0 < num_rows < len(step.decode)

    def _run_jointly(self, step: StepInput, rows: Mapping[int, int]) -> None:
        """Decode rows and chunks in one pass. `rows` is as for `_prefill`."""
        joint = JointPass.of(step, self._manifest.path_ranks.__getitem__)
        variant, wanted = self._plan.prefill, joint.wanted_rows(step.prefill)
        hidden = self._embeddings[variant][joint.token_ids][:, None]
        normed = np.empty_like(hidden)
        self._total_length[...] = joint.total_length
        for stage, run in self._row_ranges((span.path, len(span.token_ids)) for span in joint.spans):
            self._rows_by_width[:] = [bound - run.first for bound in run.bounds]
            part = slice(run.first, run.end)
            self._run_wanted(
                self._stages[stage, variant],
                hidden[part],
                normed[part] if stage in self._exit_names else hidden[part],
                wanted - run.first,
                slot=0,
                last_positions=joint.sequences(part),
                total_length=self._total_length,
                num_slots=self._limits.num_slots,
            )
        spans = joint.by_slot()
        for slot, row in enumerate(step.decode):
            if row.path is not None:
                self._normed[slot] = normed[spans[slot].first, 0]
        for chunk in step.prefill:
            span = spans[chunk.slot]
            if chunk.slot in rows:
                self._normed[rows[chunk.slot]] = normed[span.end - 1, 0]
            if chunk.keeps_states:
                self._kept[chunk.slot] = (chunk.start, normed[span.rows, 0])

    def _run_wanted(self, stage: StageSession, hidden: Float, output: Float, wanted: Places, **where: Any) -> None:
        """Run a stage on the path of which final states are read in the `wanted` places alone, ascending and perhaps
        outside of these rows; `_rows_by_width` counts the rows. A stage that keeps rows writes no other output.

        Shapes: hidden and output [batch, length, hidden_size], wanted [places], counted over batch and length.
        """
        num_tokens, rows_by_width = hidden.shape[0] * hidden.shape[1], self._rows_by_width
        places = wanted[(wanted >= 0) & (wanted < num_tokens)] if stage.keeps_rows else wanted[:0]
        if not stage.keeps_rows or len(places) == num_tokens:
            stage.run(hidden, output, rows_by_width=rows_by_width, **where)
            return
        places = places if len(places) else np.zeros(1, np.int32)
        by_width = np.searchsorted(places, rows_by_width * np.int32(hidden.shape[1])).astype(np.int32)
        found = np.empty((len(places), 1, hidden.shape[2]), np.float32)
        stage.run(hidden, found, rows_by_width=rows_by_width, kept=KeptRows(places, by_width), **where)
        output.reshape(num_tokens, -1)[places] = found[:, 0]

    def _prefill(self, group: Sequence[PrefillChunk], rows: Mapping[int, int]) -> None:
        """Run chunks of one path in consecutive slots. `rows` has the row of `_normed` for the slots whose last token's
        normed state is wanted.
        """
        lengths = [len(chunk.token_ids) for chunk in group]
        embedding = self._embeddings[self._plan.prefill]
        hidden = np.zeros((len(group), max(lengths), embedding.shape[1]), np.float32)
        for row, chunk in enumerate(group):
            hidden[row, : lengths[row]] = embedding[list(chunk.token_ids)]
        *modules, exit = self._path_stages[group[0].path]
        for module in modules:
            self._run_chunks(module, group, hidden, hidden)
        if exit in self._kv:
            self._run_chunks(exit, group, hidden, hidden)
        self._keep_states(group, exit, hidden)
        wanted = [row for row, chunk in enumerate(group) if chunk.slot in rows]
        if wanted:
            last = np.stack([hidden[row, lengths[row] - 1] for row in wanted])[:, None]
            normed = last if exit in self._kv else np.empty_like(last)
            if normed is not last:
                self._run_chunks(exit, [group[row] for row in wanted], last, normed)
            self._normed[[rows[group[row].slot] for row in wanted]] = normed[:, 0]

    def _keep_states(self, group: Sequence[PrefillChunk], exit: str, hidden: Float) -> None:
        """Normed states of every token of the chunks that keep them."""
        for row, chunk in enumerate(group):
            if not chunk.keeps_states:
                continue
            states = hidden[row : row + 1, : len(chunk.token_ids)].copy()
            if exit not in self._kv:
                self._run_chunks(exit, [chunk], states, states)
            self._kept[chunk.slot] = (chunk.start, states[0])

    def _run_heads(self, heads: Sequence[HeadKind | None]) -> None:
        """Each head once for all rows that use it; a row that uses none is padding."""
        for variant, first, end in self._variant_ranges(self._num_decode, len(heads)):
            for head in dict.fromkeys(head for head in heads[first:end] if head is not None):
                rows = [row for row in range(first, end) if heads[row] == head]
                if rows and _lie_together(rows, heads, head):
                    beside = slice(rows[0], rows[-1] + 1)
                    self._heads[variant, head].run(self._normed[beside], self._logits[beside])
                elif rows:
                    picked = self._picked[: len(rows)]
                    self._heads[variant, head].run(self._normed[rows], picked)
                    self._logits[rows] = picked

    def _variant_ranges(self, num_decode: int, num_rows: int) -> list[tuple[str, int, int]]:
        """The variant of each range of rows, of which the first `num_decode` are decode rows of the last step.

        One range, unless prompts run in another variant, so perhaps in another basis, than decode rows.
        """
        decode, prefill = self._plan.decode(self._num_decode), self._plan.prefill
        split = num_rows if decode == prefill else num_decode
        ranges = ((decode, 0, split), (prefill, split, num_rows))
        return [(variant, first, end) for variant, first, end in ranges if first < end]

    def _run_chunks(self, stage: str, group: Sequence[PrefillChunk], hidden: Float, output: Float) -> None:
        # Rows padded at their end write KV behind their prompt: it is overwritten before anybody reads it.
        last = [chunk.start + hidden.shape[1] - 1 for chunk in group]
        self._all_at(self._width_ranks[group[0].path], len(group))
        self._run_wanted(
            self._stages[stage, self._plan.prefill],
            hidden,
            output,
            _wanted_places(group, hidden.shape[1]),
            slot=group[0].slot,
            last_positions=np.array(last, np.int32),
            total_length=np.array(max(last) + 1, np.int32),
        )

    def _all_at(self, rank: int, num_rows: int) -> npt.NDArray[np.int32]:
        """`rows_by_width` of rows that all have the width of this rank. Shapes: [1 + widths]."""
        self._rows_by_width[:rank], self._rows_by_width[rank:] = 0, num_rows
        return self._rows_by_width


def _wanted_places(group: Sequence[PrefillChunk], length: int) -> Places:
    """Where the tokens whose final states are read lie among chunks padded to a length. Shapes: returns [places]."""
    return np.array(
        [row * length + place for row, chunk in enumerate(group) for place in chunk.wanted_places], np.int32
    )


def _lie_together(rows: Sequence[int], heads: Sequence[HeadKind | None], head: HeadKind) -> bool:
    """Whether there is nothing but a little padding between them."""
    between = heads[rows[0] : rows[-1] + 1]
    return set(between) <= {head, None} and between.count(None) <= MAX_PADDING_SHARE * len(between)


def _warm_stage(stage: StageSession, architecture: Architecture, spare_slot: int) -> StageSession:
    """Run a stage once at every width in a slot that no sequence uses: operators pack their weights at their first
    run."""
    hidden = np.zeros((1, 1, architecture.hidden_size), np.float32)
    last_positions, total_length = np.zeros(1, np.int32), np.ones((), np.int32)
    for rank in range(stage.num_widths):
        rows_by_width = np.array([entry >= rank for entry in range(stage.num_widths)], np.int32)
        stage.run(
            hidden,
            hidden,
            slot=spare_slot,
            last_positions=last_positions,
            total_length=total_length,
            rows_by_width=rows_by_width,
        )
    stage.forget_bindings()
    return stage


def _warm_head(head: HeadSession, architecture: Architecture) -> HeadSession:
    head.run(np.zeros((1, architecture.hidden_size), np.float32), np.zeros((1, architecture.vocab_size), np.float32))
    return head


def grouped(chunks: Iterable[PrefillChunk]) -> list[list[PrefillChunk]]:
    """Chunks that can share a pass: first chunks of prompts on one path, in consecutive slots, of similar length.

    Attention over a past takes one sequence at a time, so a chunk that continues a prompt stays alone.
    """
    groups: list[list[PrefillChunk]] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.slot):
        if groups and _fits(groups[-1], chunk):
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


def _fits(group: Sequence[PrefillChunk], chunk: PrefillChunk) -> bool:
    last = group[-1]
    if chunk.path != last.path or chunk.slot != last.slot + 1 or chunk.start or last.start:
        return False
    lengths = [len(member.token_ids) for member in (*group, chunk)]
    if 1 in lengths and max(lengths) > 1:  # passes of one token sum in a different order
        return False
    return max(lengths) * len(lengths) * (1 - MAX_PADDING_SHARE) <= sum(lengths)
