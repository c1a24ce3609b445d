"""Decides which sequences run in the next step. Counts slots, KV bytes and tokens; touches no tensor.

Waiting sequences are admitted in order, as slots and KV allow. Prompts are computed in chunks beside running streams.
When KV runs out, the youngest sequence gives its memory back and computes its tokens again later. Where tenants share
the engine, each gets its share of slots and KV (`slot_shares.py`): a sequence of one that has more pauses for it.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from itertools import chain

from engines.contract import DecodeRow, PrefillChunk, StepInput
from engines.prefix_match import Match
from engines.scheduling.kv_budget import KvBudget
from engines.scheduling.prefix_cache import PrefixCache
from engines.scheduling.prompt_pace import PromptPace
from engines.scheduling.slot_shares import SlotShares
from engines.scheduling.slots import Move, SlotMap
from engines.scheduling.step_plan import Chunk, Paused, StepPlan
from engines.scheduling.turns import Turns
from engines.sequence import Sequence, SequenceStatus, WhileLoading

BACKGROUND_TOKENS = 32
"""Prompt tokens of a step that has nothing else to do: what arrives meanwhile waits for no more than these."""
BACKGROUND_TOKENS_BESIDE = 8
"""The same beside streams: about half a step more."""

LEAST_REST = 2
"""What a prompt that must wait with its end leaves for later at least: not one token alone, see `chunk_tokens`."""


class Scheduler:
    """Owns every living sequence, waiting or running, and the slots of those that run.

    `depths` ranks paths, 0 the deepest; `stages` gives the stages of a path that have KV, `widths` its width;
    `resolve_path` returns the path a sequence may run now, or None while it has to wait for modules to load.
    """

    def __init__(
        self,
        *,
        max_running: int,
        pace: PromptPace,
        turns: Turns,
        kv: KvBudget,
        cache: PrefixCache,
        depths: Mapping[str, int],
        stages: Mapping[str, tuple[str, ...]],
        widths: Mapping[str, str],
        resolve_path: Callable[[str, WhileLoading], str | None],
    ) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_pauses = 0
        self._turns = turns
        self._prompt_order: list[str] = []
        """Tenants with prompts; those that were left out of a step stand before those that had a chunk in it."""
        self._max_running = max_running
        self._slots: SlotMap[Sequence] = SlotMap(max_running)
        self._pace = pace
        self._kv = kv
        self._cache = cache
        self._depths = depths
        self._stages = stages
        self._widths = widths
        self._resolve_path = resolve_path
        self._resolved: dict[tuple[str, WhileLoading], str | None] = {}
        """What `resolve_path` said in this step: asking for each of many that wait would take longer than the plan."""

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def find(self, sequence_id: str) -> Sequence | None:
        living = (*self.running, *self.waiting)
        return next((sequence for sequence in living if sequence.id == sequence_id), None)

    def occupant(self, slot: int) -> Sequence | None:
        return self._slots.occupant(slot)

    @property
    def num_used_slots(self) -> int:
        return self._slots.num_used

    def plan(self) -> StepPlan:
        """Decide the next step. Slots and KV are taken now; progress is recorded by `commit`."""
        plan = StepPlan()
        self._resolved.clear()
        self._grow(plan)
        self._admit(plan)
        self._carry_out(self._slots.compact(), plan)
        self._queue_tenants()
        chunks = self._next_chunks()
        waiting = self._waiting(chunks)
        plan.chunks = self._next_chunks([one for one in chunks if one.is_last], waiting) if waiting else chunks
        plan.chunks += self._background_chunks(plan)
        served = {chunk.sequence.tenant for chunk in plan.chunks}
        self._prompt_order.sort(key=served.__contains__)
        self._plan_decode(plan, waiting)
        return plan

    def _waiting(self, chunks: list[Chunk]) -> frozenset[str]:
        """Ids of sequences for which no token is chosen in this step, because other tenants' would wait too long.

        A prompt needs a turn only in the step that ends it, and none where nothing follows it.
        """
        running = [sequence for sequence in self.running if not sequence.in_background]
        tenants = frozenset(sequence.tenant for sequence in running)
        decoding = [sequence for sequence in running if sequence.status is SequenceStatus.DECODING]
        ending = [chunk.sequence for chunk in chunks if chunk.is_last and chunk.sequence.request.sampling.max_tokens]
        return self._turns.waiting([*decoding, *ending], tenants)

    def note_pass(self, plan: StepPlan, seconds: float) -> None:
        """The forward pass of `plan`, which is not committed yet, took so long."""
        if not plan.chunks:
            self._turns.note_pass([row for row in plan.decode if row is not None], seconds)
        self._pace.note_pass(plan, seconds)

    def commit(self, plan: StepPlan) -> None:
        """The step succeeded: its tokens' KV is written."""
        for sequence in plan.decode:
            if sequence is not None:
                sequence.num_computed_tokens += 1
        for chunk in plan.chunks:
            is_last = chunk.is_last
            chunk.sequence.num_computed_tokens += chunk.num_tokens
            if is_last:
                chunk.sequence.status = SequenceStatus.DECODING

    def remove(self, sequence: Sequence) -> int | None:
        """Forget a sequence and free what it holds; returns the slot it had."""
        slot = sequence.slot
        if slot is None:
            self.waiting.remove(sequence)
        else:
            self._vacate(sequence)
        self._cache.release(sequence.match)
        sequence.status = SequenceStatus.FINISHED
        return slot

    def _vacate(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._slots.free(sequence.slot)
        self._kv.release(sequence)
        self.running.remove(sequence)
        sequence.slot = None

    def _grow(self, plan: StepPlan) -> None:
        """Take KV for the token that every decoding sequence adds; where there is not enough, preempt the youngest:
        of a tenant that has more than its share, if there is one."""
        for sequence in list(self.running):
            while sequence.slot is not None and not self._kv.can_hold(sequence, sequence.num_tokens):
                self._preempt(self._youngest_in_background() or self._shares().to_preempt() or self.running[-1], plan)
            if sequence.slot is not None:
                self._kv.hold(sequence, sequence.num_tokens)

    def _youngest_in_background(self) -> Sequence | None:
        return next((sequence for sequence in reversed(self.running) if sequence.in_background), None)

    def _shares(self) -> SlotShares:
        waiting = [one for one in self.waiting if self._can_run(one)] if self._has_tenants() else []
        return SlotShares(self.running, waiting, self._max_running, self._kv)

    def _has_tenants(self) -> bool:
        """Whether anybody shares with anybody, be it with one that waits for modules."""
        living = (one for one in chain(self.running, self.waiting) if not one.in_background)
        first = next(living, None)
        return first is not None and any(one.tenant != first.tenant for one in living)

    def _can_run(self, sequence: Sequence) -> bool:
        """Whether its modules are loaded. One that ran before keeps the path it began on."""
        if sequence.admitted_s is None:
            path = self._resolve(sequence.request.path, sequence.request.while_loading)
            if path is None:
                return False
            sequence.path = path
        return True

    def _resolve(self, path: str, while_loading: WhileLoading) -> str | None:
        key = (path, while_loading)
        if key not in self._resolved:
            self._resolved[key] = self._resolve_path(path, while_loading)
        return self._resolved[key]

    def _preempt(self, sequence: Sequence, plan: StepPlan) -> None:
        self._put_back(sequence, plan)
        self.num_preemptions += not sequence.in_background

    def _pause(self, sequence: Sequence, plan: StepPlan) -> None:
        assert sequence.slot is not None
        plan.paused.append(Paused(sequence=sequence, slot=sequence.slot, num_tokens=sequence.num_computed_tokens))
        sequence.paused_at = sequence.num_tokens
        self._put_back(sequence, plan)
        self.num_pauses += 1

    def _put_back(self, sequence: Sequence, plan: StepPlan) -> None:
        """To the head of those that wait: it began before they did."""
        assert sequence.slot is not None
        plan.vacated.append((sequence.slot, sequence.num_computed_tokens))
        self._vacate(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_computed_tokens = 0
        self.waiting.appendleft(sequence)

    def _admit(self, plan: StepPlan) -> None:
        """Admit in order of arrival, those that shares have room for first and those in the background last. Sequences
        that wait for modules let others pass; one that waits for KV does not: a stream of small requests would starve
        it.
        """
        entitled = self._entitle(plan)
        if not self._slots.has_room:
            return
        entitled_ids = {one.id for one in entitled}
        others = sorted((one for one in self.waiting if one.id not in entitled_ids), key=_in_background)
        for sequence in (*entitled, *others):
            if not self._slots.has_room:
                return
            if not self._can_run(sequence):
                continue
            if not self._kv.can_hold(sequence, sequence.num_tokens):
                return
            self.waiting.remove(sequence)
            self._start(sequence, plan)

    def _entitle(self, plan: StepPlan) -> list[Sequence]:
        """Waiting sequences that have shares to start on, after making way for the first of them, or of all: before any
        slot is moved. One sequence pauses in a step, for what it leaves behind takes time to keep.

        Where nothing can pause for the first, one of the others may take the place of another tenant's sequence.
        """
        if not self.waiting:
            return []
        shares = self._shares()
        entitled = shares.entitled()
        self._make_way(entitled, plan)
        if not entitled or self._fits(entitled[0]):
            return entitled
        paused = shares.to_pause(entitled[0], lacks_slot=not self._slots.has_room)
        if paused is not None:
            self._pause(paused, plan)
            return entitled
        return self._replace_one(entitled, shares, plan)

    def _replace_one(self, entitled: list[Sequence], shares: SlotShares, plan: StepPlan) -> list[Sequence]:
        """Pause a sequence whose place one of the entitled takes; that one comes first then."""
        found = shares.to_replace(entitled[1:])
        if found is None:
            return entitled
        wanted, paused = found
        self._pause(paused, plan)
        return [wanted, *(one for one in entitled if one is not wanted)]

    def _make_way(self, entitled: list[Sequence], plan: StepPlan) -> None:
        """Sequences in the background give back what the first other one waits for."""
        first = next((one for one in (*entitled, *self.waiting) if not one.in_background), None)
        while first is not None and not self._fits(first):
            youngest = self._youngest_in_background()
            if youngest is None:
                return
            self._preempt(youngest, plan)

    def _fits(self, sequence: Sequence) -> bool:
        return self._slots.has_room and self._kv.can_hold(sequence, sequence.num_tokens)

    def _start(self, sequence: Sequence, plan: StepPlan) -> None:
        self._kv.hold(sequence, sequence.num_tokens)
        slot, moves = self._slots.allocate(sequence, self._depths[sequence.path])
        self._carry_out(moves, plan)
        self._hold_prefix(sequence)
        plan.restores.append(sequence)
        sequence.slot = slot
        sequence.status = SequenceStatus.PREFILLING
        sequence.num_computed_tokens = sequence.match.num_tokens
        if sequence.admitted_s is None:
            sequence.admitted_s = time.monotonic()
            sequence.num_cached_tokens = sequence.match.num_tokens
        self.running.append(sequence)

    def _hold_prefix(self, sequence: Sequence) -> None:
        match = self._find_prefix(sequence)
        # A sequence preempted in the middle of its prompt still holds the match from when it last began.
        self._cache.release(sequence.match)
        sequence.match = match

    def _find_prefix(self, sequence: Sequence) -> Match:
        if sequence.num_unscored_tokens:  # cached KV does not include the tokens' log-probabilities
            return Match()
        salt, width = sequence.request.cache_salt, self._widths[sequence.path]
        return self._cache.match(sequence.token_ids, self._stages[sequence.path], salt, width)

    def _carry_out(self, moves: list[Move], plan: StepPlan) -> None:
        """Record moves in the sequences concerned: the slot map has already made them."""
        for move in moves:
            sequence = next(sequence for sequence in self.running if sequence.slot == move.source)
            sequence.slot = move.target
            plan.moves.append((move, sequence))

    def _next_chunks(self, ending: Many[Chunk] | None = None, waiting: frozenset[str] = frozenset()) -> list[Chunk]:
        """Tenants in turn, each one's in order of admission; beside streams of other tenants each its part of less.

        Where `ending` is given, it has the prompts that may end in this step, of which those of `waiting` do not; what
        that leaves computes more of other prompts. One that must not end leaves its last tokens for later.
        """
        due = sorted(self._prefilling(), key=lambda one: self._prompt_order.index(one.tenant))
        running = (one for one in self.running if not one.in_background)
        streaming = frozenset(one.tenant for one in running if one.status is SequenceStatus.DECODING)
        room = self._pace.room(due, streaming)
        chunks = [chunk for chunk in ending or () if chunk.sequence.id not in waiting]
        for chunk in chunks:
            room.take(chunk)
        taken = {chunk.sequence.id for chunk in chunks}
        for sequence in due:
            if sequence.id not in taken:
                most = sequence.num_uncomputed_tokens - (0 if ending is None else LEAST_REST)
                num_tokens = chunk_tokens(sequence.num_uncomputed_tokens, min(room.of(sequence), most))
                if num_tokens > 0:
                    chunks.append(Chunk(sequence=sequence, num_tokens=num_tokens))
                    room.take(chunks[-1])
        return chunks

    def _background_chunks(self, plan: StepPlan) -> list[Chunk]:
        """A few tokens of one prompt in the background, in steps without other prompts and while none is due."""
        due = [one for one in self.running if one.in_background and one.status is SequenceStatus.PREFILLING]
        if plan.chunks or not due or self._prefilling():
            return []
        is_alone = all(one.in_background for one in self.running)
        room = BACKGROUND_TOKENS if is_alone else BACKGROUND_TOKENS_BESIDE
        num_tokens = chunk_tokens(due[0].num_uncomputed_tokens, min(room, self._pace.busy_step_tokens))
        return [Chunk(sequence=due[0], num_tokens=num_tokens)]

    def _prefilling(self) -> list[Sequence]:
        """Those that are not in the background."""
        return [one for one in self.running if one.status is SequenceStatus.PREFILLING and not one.in_background]

    def _queue_tenants(self) -> None:
        """Those that have prompts now; new ones at the end."""
        tenants = dict.fromkeys(one.tenant for one in self._prefilling())
        kept = [tenant for tenant in self._prompt_order if tenant in tenants]
        self._prompt_order = list(dict.fromkeys([*kept, *tenants]))

    def _plan_decode(self, plan: StepPlan, waiting: frozenset[str]) -> None:
        rows = [self._slots.occupant(slot) for slot in range(self._slots.end)]
        decoding = [row if row is not None and self._is_due(row, waiting) else None for row in rows]
        while decoding and decoding[-1] is None:
            decoding.pop()
        plan.decode = decoding

    def _is_due(self, sequence: Sequence, waiting: frozenset[str]) -> bool:
        return sequence.status is SequenceStatus.DECODING and sequence.id not in waiting

    def step_input(self, plan: StepPlan) -> StepInput:
        """The plan in the form that the runner takes."""
        return StepInput(
            decode=tuple(self._decode_row(slot, sequence) for slot, sequence in enumerate(plan.decode)),
            prefill=tuple(_prefill_chunk(chunk) for chunk in plan.chunks),
        )

    def _decode_row(self, slot: int, sequence: Sequence | None) -> DecodeRow:
        if sequence is None:
            occupant = self._slots.occupant(slot)
            return DecodeRow(path=None, position=occupant.num_computed_tokens if occupant else 0, token_id=0)
        return DecodeRow(
            path=sequence.path,
            position=sequence.num_computed_tokens,
            token_id=sequence.token_ids[-1],
            head=sequence.head,
        )


def _in_background(sequence: Sequence) -> bool:
    return sequence.in_background


def chunk_tokens(num_uncomputed: int, budget: int) -> int:
    """How many of a prompt's tokens to compute now: what the budget allows, but neither one alone nor all but one.

    Passes of one token sum in another order than longer ones, and an answer must not change by its last bits because
    load cut its prompt elsewhere.
    """
    if num_uncomputed <= budget:
        return num_uncomputed
    num_tokens = budget - 1 if num_uncomputed - budget == 1 else budget
    return num_tokens if num_tokens > 1 else 0


def _prefill_chunk(chunk: Chunk) -> PrefillChunk:
    sequence = chunk.sequence
    assert sequence.slot is not None
    start = sequence.num_computed_tokens
    return PrefillChunk(
        slot=sequence.slot,
        path=sequence.path,
        start=start,
        token_ids=tuple(sequence.token_ids[start : start + chunk.num_tokens]),
        wants_logits=chunk.is_last,
        keeps_states=bool(chunk.unscored),
        head=sequence.head,
    )
