"""The scheduler alone: what it plans stays within its budgets, and no sequence is lost, stuck or starved."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engines.scheduling.kv_budget import KV_BLOCK_TOKENS, KvBudget
from engines.scheduling.prefix_cache import PrefixCache
from engines.scheduling.prompt_pace import PromptPace
from engines.scheduling.row_pace import RowPace
from engines.scheduling.scheduler import Scheduler, chunk_tokens
from engines.scheduling.step_plan import StepPlan
from engines.scheduling.turns import Turns
from engines.sequence import GenerationRequest, SamplingParams, Sequence, SequenceStatus, WhileLoading, new_sequence

DEPTHS = {"full": 0, "middle": 1, "short": 2}
STAGES = {"full": ("k", "r", "a"), "middle": ("k", "r"), "short": ("k",)}
BYTES_PER_TOKEN = {"full": 3, "middle": 2, "short": 1}
HEADS = {False: "cheap", True: "exact"}
"""By whether the request needs the exact head: the engine's own is the cheap one."""
BLOCK_BYTES = KV_BLOCK_TOKENS * 3
"""A block of a sequence on the full path."""


def make_sequence(
    id: str,
    num_tokens: int = 10,
    path: str = "full",
    needs_exact_head: bool = False,
    *,
    tenant: str = "",
    max_tokens: int = 100,
    choosing_s: float | None = None,
    priority: int = 0,
) -> Sequence:
    request = GenerationRequest(
        id=id,
        prompt_token_ids=tuple(range(num_tokens)),
        path=path,
        sampling=SamplingParams(max_tokens=max_tokens),
        needs_exact_head=needs_exact_head,
        cache_salt=tenant,
        priority=priority,
    )
    sequence = new_sequence(request, lambda _: b"", "cheap")
    sequence.choosing_s = choosing_s
    return sequence


class Rig:
    """A scheduler and the steps taken with it, checked one by one."""

    def __init__(self, **settings: Any) -> None:
        self.kv = KvBudget(settings.pop("kv_bytes", 100 * BLOCK_BYTES), BYTES_PER_TOKEN)
        busy_step_s, self.row_s = settings.pop("busy_step_s", None), settings.pop("row_s", None)
        """`row_s`: how long a row takes in a pass; None: passes take no time that is noted."""
        self.settings = {"max_running": 4, "step_tokens": 64, "busy_step_tokens": 16, **settings}
        self.loaded = set(DEPTHS)
        self.asked: list[str] = []
        self.turns = Turns(RowPace(busy_step_s))
        self.scheduler = Scheduler(
            max_running=self.settings["max_running"],
            pace=PromptPace(
                step_tokens=self.settings["step_tokens"],
                busy_step_tokens=self.settings["busy_step_tokens"],
                busy_step_s=None,
                hidden_size=64,
            ),
            turns=self.turns,
            kv=self.kv,
            cache=PrefixCache(0),
            depths=DEPTHS,
            stages=STAGES,
            widths=dict.fromkeys(STAGES, ""),
            resolve_path=self._resolve,
        )

    def _resolve(self, path: str, while_loading: WhileLoading) -> str | None:
        self.asked.append(path)
        return path if path in self.loaded else None

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.scheduler.add(sequence)

    def step(self) -> StepPlan:
        """Plan, check, commit, and give every sequence whose tokens are computed another one."""
        was_busy = any(sequence.status is SequenceStatus.DECODING for sequence in self.scheduler.running)
        plan = self.scheduler.plan()
        self.check(plan, was_busy)
        if self.row_s is not None:
            self.scheduler.note_pass(plan, 0.005 + self.row_s * plan.num_tokens)
        self.scheduler.commit(plan)
        for sequence in plan.sequences:
            if sequence.num_uncomputed_tokens == 0:
                sequence.token_ids.append(7)
        return plan

    def check(self, plan: StepPlan, was_busy: bool) -> None:
        self.check_slots()
        self.check_kv(plan)
        self.check_rows(plan)
        chunk_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        # A sequence that was decoding may be preempted by this very plan.
        bound = self.settings["busy_step_tokens"] if any(plan.decode) else self.settings["step_tokens"]
        assert chunk_tokens <= bound
        assert was_busy or not any(plan.decode)

    def check_slots(self) -> None:
        scheduler = self.scheduler
        slots = [scheduler._slots.occupant(slot) for slot in range(self.settings["max_running"])]
        assert [sequence for sequence in slots if sequence is not None] == sorted(
            scheduler.running, key=lambda sequence: sequence.slot or 0
        )
        assert all(slots[sequence.slot] is sequence for sequence in scheduler.running if sequence.slot is not None)
        ranks = [DEPTHS[sequence.path] for sequence in slots if sequence is not None]
        assert ranks == sorted(ranks)
        assert all(sequence.slot is None for sequence in scheduler.waiting)
        assert not {sequence.id for sequence in scheduler.waiting} & {sequence.id for sequence in scheduler.running}

    def check_kv(self, plan: StepPlan) -> None:
        held = self.kv._held
        assert set(held) == {sequence.id for sequence in self.scheduler.running}
        assert self.kv.used_bytes == sum(held.values()) <= self.kv.capacity_bytes
        for sequence in self.scheduler.running:
            # Every token the step writes has its KV.
            assert held[sequence.id] >= sequence.num_tokens * BYTES_PER_TOKEN[sequence.path]
            assert held[sequence.id] % (KV_BLOCK_TOKENS * BYTES_PER_TOKEN[sequence.path]) == 0

    def check_rows(self, plan: StepPlan) -> None:
        step = self.scheduler.step_input(plan)
        assert not step.decode or step.decode[-1].path is not None
        for slot, row in enumerate(step.decode):
            occupant = self.scheduler._slots.occupant(slot)
            assert row.position == (occupant.num_computed_tokens if occupant else 0)
            if row.path is not None:
                assert occupant is not None
                assert (row.path, row.token_id) == (occupant.path, occupant.token_ids[row.position])
                assert row.position == occupant.num_tokens - 1
                assert row.head == HEADS[occupant.request.needs_exact_head]
        for chunk, given in zip(plan.chunks, step.prefill, strict=True):
            sequence = chunk.sequence
            assert (given.slot, given.start) == (sequence.slot, sequence.num_computed_tokens)
            assert given.token_ids == tuple(sequence.token_ids[given.start : given.start + chunk.num_tokens])
            assert given.wants_logits == (given.start + chunk.num_tokens == sequence.num_tokens)
            assert given.head == HEADS[sequence.request.needs_exact_head]


@pytest.mark.parametrize("seed", range(40))
def test_scheduler_keeps_its_promises_under_random_operations(seed: int) -> None:
    rng = random.Random(seed)
    tenants = ("a", "a", "b", "c")[: 1 + seed % 4]
    rig = Rig(
        max_running=rng.randint(1, 6),
        step_tokens=rng.randint(8, 64),
        busy_step_tokens=rng.randint(4, 8),
        kv_bytes=BLOCK_BYTES * rng.choice([5, 8, 40]),
    )
    lengths: dict[str, int] = {}
    living: dict[str, Sequence] = {}
    for turn in range(400):
        if turn < 200 and rng.random() < 0.3:
            sequence = make_sequence(
                f"s{turn}",
                rng.randint(1, 50),
                rng.choice(sorted(DEPTHS)),
                rng.random() < 0.5,
                tenant=rng.choice(tenants),
                priority=rng.choice([0, 0, 1, -1]),
            )
            living[sequence.id] = sequence
            lengths[sequence.id] = sequence.num_tokens + rng.randint(1, 29)
            rig.add(sequence)
        rig.loaded = set(DEPTHS) - ({"full"} if turn < 200 and rng.random() < 0.2 else set())
        rig.step()
        for sequence in [s for s in living.values() if s.num_tokens >= lengths[s.id] or rng.random() < 0.01]:
            assert rig.scheduler.find(sequence.id) is sequence
            rig.scheduler.remove(living.pop(sequence.id))
            assert rig.scheduler.find(sequence.id) is None
        assert {s.id for s in (*rig.scheduler.running, *rig.scheduler.waiting)} == set(living)
    for _ in range(5000):
        if not living:
            break
        rig.step()
        for sequence in [s for s in living.values() if s.num_tokens >= lengths[s.id]]:
            rig.scheduler.remove(living.pop(sequence.id))
    assert not living, "a sequence is stuck"
    assert rig.kv.used_bytes == 0


def step_until(rig: Rig, condition: Callable[[], bool]) -> list[StepPlan]:
    plans: list[StepPlan] = []
    for _ in range(500):
        if condition():
            return plans
        plans.append(rig.step())
    pytest.fail("it never came to that")


def test_scheduler_admits_in_order_up_to_its_slots() -> None:
    rig = Rig(max_running=2)
    rig.add(*(make_sequence(id) for id in "abc"))
    rig.step()
    assert [sequence.id for sequence in rig.scheduler.running] == ["a", "b"]
    assert [sequence.id for sequence in rig.scheduler.waiting] == ["c"]


def test_scheduler_without_kv_lets_the_youngest_give_way_and_resumes_it() -> None:
    rig = Rig(kv_bytes=3 * BLOCK_BYTES)
    old, young = make_sequence("old", 14), make_sequence("young", 14)
    rig.add(old, young)
    (*_, plan) = step_until(rig, lambda: rig.scheduler.num_preemptions == 1)
    # The old one took the third block, the young one wanted a fourth.
    assert (young.status, young.num_computed_tokens, young.slot) == (SequenceStatus.WAITING, 0, None)
    assert plan.vacated == [(1, 16)]
    assert old.status is SequenceStatus.DECODING
    kept = list(young.token_ids)
    rig.scheduler.remove(old)
    rig.step()
    assert young.num_computed_tokens == len(kept) == young.num_tokens - 1


def test_scheduler_lets_who_gave_way_come_back_before_the_others() -> None:
    rig = Rig(kv_bytes=3 * BLOCK_BYTES)
    rig.add(make_sequence("old", 14), make_sequence("young", 14))
    rig.step()
    rig.add(make_sequence("new", 14))
    step_until(rig, lambda: rig.scheduler.num_preemptions == 2)
    assert [sequence.id for sequence in rig.scheduler.waiting] == ["young", "new"]


def test_scheduler_waiter_for_modules_blocks_nobody() -> None:
    rig = Rig()
    rig.loaded = {"short"}
    rig.add(make_sequence("deep", path="full"), make_sequence("shallow", path="short"))
    rig.step()
    assert [sequence.id for sequence in rig.scheduler.running] == ["shallow"]
    rig.loaded.add("full")
    rig.step()
    assert [sequence.id for sequence in rig.scheduler.running] == ["shallow", "deep"]


def test_scheduler_waiter_for_kv_is_not_starved_by_small_ones() -> None:
    rig = Rig(kv_bytes=4 * BLOCK_BYTES)
    small, large = make_sequence("small", 20), make_sequence("large", 60)
    rig.add(small)
    rig.step()
    rig.add(large, *(make_sequence(f"tiny{number}", 2, "short") for number in range(3)))
    rig.step()
    assert rig.scheduler.running == [small]
    rig.scheduler.remove(small)
    rig.step()
    assert rig.scheduler.running[0] is large


def test_scheduler_cuts_prompts_to_the_step() -> None:
    rig = Rig(step_tokens=64, busy_step_tokens=16)
    rig.add(make_sequence("a", 100), make_sequence("b", 10))
    sizes = [[(chunk.sequence.id, chunk.num_tokens) for chunk in rig.step().chunks] for _ in range(3)]
    assert sizes == [[("a", 64)], [("a", 36), ("b", 10)], []]
    rig.add(make_sequence("c", 20))
    assert [chunk.num_tokens for chunk in rig.step().chunks] == [16]
    assert [chunk.num_tokens for chunk in rig.step().chunks] == [4]


def test_scheduler_pads_the_slot_of_a_prompt_between_streams() -> None:
    rig = Rig(busy_step_tokens=4)
    rig.add(*(make_sequence(id, 4) for id in "abc"))
    rig.step()
    rig.scheduler.remove(rig.scheduler.running[1])
    rig.add(make_sequence("prompt", 10))
    plan = rig.step()
    assert [row and row.id for row in plan.decode] == ["a", None, "c"]
    assert rig.scheduler.step_input(rig.scheduler.plan()).decode[1].position == 4


def test_scheduler_puts_a_deeper_arrival_before_shallower_ones() -> None:
    rig = Rig()
    rig.add(make_sequence("shallow", path="short"))
    rig.step()
    rig.add(make_sequence("deep"))
    plan = rig.step()
    assert [(move.source, move.target, sequence.id) for move, sequence in plan.moves] == [(0, 1, "shallow")]
    assert rig.scheduler.running[0].slot == 1


def test_kv_budget_counts_blocks_and_forgets_who_left() -> None:
    kv, sequence = KvBudget(4 * BLOCK_BYTES, BYTES_PER_TOKEN), make_sequence("a")
    kv.hold(sequence, 17)
    assert kv.used_bytes == 2 * BLOCK_BYTES
    kv.hold(sequence, 18)
    assert kv.used_bytes == 2 * BLOCK_BYTES
    assert kv.can_hold(sequence, 64)
    assert not kv.can_hold(sequence, 65)
    kv.release(sequence)
    kv.release(sequence)
    assert kv.used_bytes == 0


@pytest.mark.parametrize("num_tokens", range(2, 40))
@pytest.mark.parametrize("budget", [4, 5, 16])
def test_scheduler_never_computes_a_single_token_of_a_longer_prompt(num_tokens: int, budget: int) -> None:
    pieces = []
    while num_tokens:
        pieces.append(chunk_tokens(num_tokens, budget))
        num_tokens -= pieces[-1]
    assert min(pieces) > 1
    assert max(pieces) <= budget


PASS_S = 1.0
"""Choosing that costs a tenant as much waits four steps beside one other: half a pass per step, for two."""


def shared_rig(*sequences: Sequence, **settings: Any) -> Rig:
    """Beside the stream of tenant "b", which is cheap to choose."""
    rig = Rig(**{"max_running": 8, "step_tokens": 512, "busy_step_tokens": 128, **settings})
    rig.turns.note_pass([], PASS_S)
    rig.add(make_sequence("stream", 4, tenant="b", choosing_s=0.0))
    rig.step()
    rig.add(*sequences)
    return rig


def num_steps_until(rig: Rig, *sequences: Sequence) -> int:
    """Until the prompts of all of them are computed."""
    return len(step_until(rig, lambda: not any(s.status in UNDONE for s in sequences)))


UNDONE = (SequenceStatus.WAITING, SequenceStatus.PREFILLING)


def test_prompt_needs_a_turn_for_its_end_alone() -> None:
    """Sixteen steps for its 128 tokens, and it waits with its end for three."""
    prompt = make_sequence("prompt", 128, tenant="a", choosing_s=PASS_S)
    rig = shared_rig(prompt)
    sizes = [sum(chunk.num_tokens for chunk in rig.step().chunks) for _ in range(16)]
    assert sizes == [8] * 15 + [6]
    assert num_steps_until(rig, prompt) == 3


def test_prompt_that_no_token_follows_needs_no_turn() -> None:
    prompt = make_sequence("prompt", 32, tenant="a", max_tokens=0, choosing_s=PASS_S)
    assert num_steps_until(shared_rig(prompt), prompt) == 4


def test_prompt_that_waits_with_its_end_holds_up_no_other() -> None:
    """Neither its own tenant's next one, nor another tenant's, although its own streams leave it the whole step."""
    dear = 100 * PASS_S
    ended, behind = make_sequence("ended", 8, tenant="a", choosing_s=dear), make_sequence("x", 80, tenant="a")
    rig = shared_rig(ended, behind)
    assert sum(sum(chunk.num_tokens for chunk in rig.step().chunks if chunk.sequence is behind) for _ in range(9)) >= 64
    assert ended.status is SequenceStatus.PREFILLING
    own, other = make_sequence("own", 128, tenant="b", choosing_s=dear), make_sequence("other", 80, tenant="c")
    rig = shared_rig(own, other)
    assert num_steps_until(rig, other) <= 2 * 80 // 4
    assert own.status is SequenceStatus.PREFILLING


@pytest.mark.parametrize("seed", range(20))
def test_who_has_a_turn_has_a_token_chosen_and_nobody_else(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every step of random mixes; no prompt is cut into single tokens, and all of them get on."""
    rng = random.Random(seed)
    rig = Rig(max_running=rng.randint(4, 12), step_tokens=64, busy_step_tokens=rng.choice([4, 5, 16, 128]))
    rig.turns.note_pass([], PASS_S)
    asked: set[str] = set()
    waiting_of = rig.turns.waiting

    def waiting(candidates: list[Sequence], tenants: frozenset[str]) -> frozenset[str]:
        found = waiting_of(candidates, tenants)
        asked.clear()
        asked.update({sequence.id for sequence in candidates} - found)
        return found

    monkeypatch.setattr(rig.turns, "waiting", waiting)
    living: list[Sequence] = []
    for turn in range(6000):
        if turn < 300 and rng.random() < 0.4:
            living.append(
                make_sequence(
                    f"s{turn}",
                    rng.randint(2, 60),
                    tenant=rng.choice("abc"),
                    max_tokens=rng.choice([0, 1, 5]),
                    choosing_s=rng.choice([None, 0.0, 0.3, PASS_S, 4 * PASS_S]),
                )
            )
            rig.add(living[-1])
        before = {sequence.id: sequence.num_tokens for sequence in living}
        plan = rig.step()
        assert all(chunk.num_tokens > 1 for chunk in plan.chunks)
        followed = [sequence for sequence in plan.sequences if sequence.num_tokens > before[sequence.id]]
        assert {sequence.id for sequence in followed if sequence.request.sampling.max_tokens} == asked
        for sequence in followed:
            if sequence.num_completion_tokens >= sequence.request.sampling.max_tokens:
                living.remove(sequence)
                rig.scheduler.remove(sequence)
        if turn >= 300 and not living:
            return
    pytest.fail(f"{len(living)} sequences are stuck")


@pytest.mark.parametrize("seed", range(20))
def test_everybody_gets_on_where_steps_are_bounded_in_time(seed: int) -> None:
    """In random mixes of tenants that come and go: none waits longer than the rows before it take."""
    rng = random.Random(seed)
    max_running = rng.randint(6, 16)
    rig = Rig(max_running=max_running, step_tokens=64, busy_step_tokens=16, busy_step_s=0.1, row_s=rng.uniform(0, 0.02))
    living: list[Sequence] = []
    waited: Counter[str] = Counter()
    num_left_out = 0
    for turn in range(4000):
        if turn < 400 and rng.random() < 0.5:
            tenant, max_tokens = rng.choices("abc", (8, 1, 1))[0], rng.choice([1, 5, 60])
            living.append(make_sequence(f"s{turn}", rng.randint(2, 20), tenant=tenant, max_tokens=max_tokens))
            rig.add(living[-1])
        plan = rig.step()
        taking_part = {sequence.id for sequence in plan.sequences}
        decoding = [one for one in rig.scheduler.running if one.status is SequenceStatus.DECODING]
        num_left_out += sum(one.id not in taking_part for one in decoding)
        for one in decoding:
            waited[one.id] = 0 if one.id in taking_part else waited[one.id] + 1
        assert max(waited.values(), default=0) <= max_running
        for one in [one for one in living if one.num_completion_tokens >= one.request.sampling.max_tokens]:
            living.remove(one)
            rig.scheduler.remove(one)
        if turn >= 400 and not living:
            assert num_left_out or (rig.row_s is not None and rig.row_s < 0.01)
            return
    pytest.fail(f"{len(living)} sequences are stuck")


@pytest.mark.parametrize("busy_step_tokens", [4, 5, 7, 16, 128])
def test_prompts_of_many_tenants_get_on_side_by_side(busy_step_tokens: int) -> None:
    """However few tokens a step has for them, none has a second chunk before all others had one, newcomers included."""
    num_slots = 40
    prompts = [make_sequence(f"p{number}", 200, tenant=f"t{number}") for number in range(32)]
    rig = shared_rig(*prompts, max_running=num_slots, busy_step_tokens=busy_step_tokens, kv_bytes=1000 * BLOCK_BYTES)
    had_chunk = dict.fromkeys((prompt.id for prompt in prompts), 0)
    for number in range(4000):
        while len(rig.scheduler.running) + len(rig.scheduler.waiting) < num_slots:
            rig.add(make_sequence(f"new{number}-{len(rig.scheduler.waiting)}", 2, tenant=f"new{number}"))
        plan = rig.step()
        assert all(chunk.num_tokens > 1 for chunk in plan.chunks)
        had_chunk.update({chunk.sequence.id: number for chunk in plan.chunks})
        undone = [prompt for prompt in prompts if prompt.status is SequenceStatus.PREFILLING]
        assert all(number - had_chunk[prompt.id] < num_slots for prompt in undone)
        if not undone:
            return
        for sequence in [one for one in plan.sequences if one.id.startswith("new") and one.num_completion_tokens]:
            rig.scheduler.remove(sequence)
    pytest.fail("prompts are stuck")


def test_tenant_s_own_long_prompts_leave_another_s_its_part_of_every_step() -> None:
    long = [make_sequence(f"long{number}", 2000, tenant="b") for number in range(4)]
    other = make_sequence("other", 80, tenant="c")
    rig = shared_rig(*long, other, kv_bytes=1000 * BLOCK_BYTES)
    assert num_steps_until(rig, other) <= 80 // 4 + 1
    assert sum(one.num_computed_tokens for one in long) > 2000
