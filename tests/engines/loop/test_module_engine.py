"""Whatever else runs, joins or leaves, every sequence gets the text it would have got alone."""

import contextlib
import dataclasses
import random
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from engines.scheduling.prefix_cache import BLOCK_TOKENS
from engines.scheduling.turns import Turns
from engines.sequence import FinishReason, GenerationRequest, SamplingParams, Sequence, SequenceStatus, WhileLoading
from models.errors import EngineUnhealthy
from models.student.folder import Student
from models.student.manifest import Exit, StudentPath, find_problems
from tests.engines.conftest import FakeEngine

PATHS = ("knowledge", "reasoning", "full")


def random_prompt(rng: random.Random) -> list[int]:
    """Few beginnings, so that the prefix cache is hit, and ends of all lengths."""
    blocks = [[10 + rng.randrange(2)] * BLOCK_TOKENS for _ in range(rng.randrange(4))]
    return [*(token for block in blocks for token in block), *rng.choices(range(3, 300), k=rng.randint(1, 30))]


def random_request(rng: random.Random, number: int) -> GenerationRequest:
    sampling: dict[str, Any] = {"max_tokens": rng.randint(1, 60), "ignore_eos": rng.random() < 0.5}
    if rng.random() < 0.5:
        sampling |= {"temperature": 0.8, "seed": rng.randrange(1000), "top_p": rng.choice([1.0, 0.9])}
    if rng.random() < 0.2:
        sampling |= {"frequency_penalty": 0.5, "repetition_penalty": 1.2}
    if rng.random() < 0.2:
        sampling |= {"logprobs": 1, "logit_bias": {rng.randrange(40, 320): 1.0}}
    request = _request(f"s{number}", random_prompt(rng), rng.choice(PATHS), **sampling)
    exact, tenant, priority = rng.random() < 0.3, rng.choice(["", "", "b", "c"]), rng.choice([0, 0, 1, -1])
    return dataclasses.replace(request, needs_exact_head=exact, cache_salt=tenant, priority=priority)


def _request(id: str, prompt: list[int], path: str, **sampling: Any) -> GenerationRequest:
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return GenerationRequest(id=id, prompt_token_ids=tuple(prompt), path=path, sampling=params)


def random_settings(rng: random.Random) -> dict[str, Any]:
    """From roomy to so tight that a single long sequence fills the KV."""
    busy_step_tokens = rng.choice([4, 7, 16, 64])
    return {
        "max_running": rng.choice([2, 3, 5, 8]),
        "max_waiting": 1000,
        "kv_bytes": rng.choice([4608, 6000, 8000, 100_000]),
        "prefix_cache_bytes": rng.choice([0, 4, 40, 400]) * BLOCK_TOKENS * 8,
        "step_tokens": rng.choice([busy_step_tokens, 200]),
        "busy_step_tokens": busy_step_tokens,
        "head": rng.choice(["exact", "cheap"]),
    }


def check_integrity(fake: Any) -> None:
    """KV bytes add up, slots and sequences agree, no sequence is in two places."""
    engine, scheduler = fake.engine, fake.engine._scheduler
    running, waiting = list(scheduler.running), list(scheduler.waiting)
    needed = [engine._kv.needed_bytes(sequence.path, 1) for sequence in running]
    assert all(needed)
    assert engine._kv.used_bytes == sum(engine._kv._held.values()) <= engine._kv.capacity_bytes
    assert set(engine._kv._held) == {sequence.id for sequence in running}
    for sequence in running:
        assert scheduler._slots.occupant(sequence.slot) is sequence
        assert engine._kv._held[sequence.id] >= engine._kv.needed_bytes(sequence.path, sequence.num_computed_tokens)
        assert sequence.status in (SequenceStatus.PREFILLING, SequenceStatus.DECODING)
        assert sequence.num_computed_tokens < sequence.num_tokens
    assert scheduler._slots.num_used == len(running)
    assert all(sequence.slot is None and sequence.status is SequenceStatus.WAITING for sequence in waiting)
    assert engine._living.ids() == {sequence.id for sequence in (*running, *waiting)}


def check_nothing_left(fake: Any) -> None:
    engine = fake.engine
    check_integrity(fake)
    assert not engine._living.ids()
    assert engine._kv.used_bytes == 0
    assert not any(fake.runner.written), "a slot nobody uses holds memory"
    assert all(entry.num_holders == 0 for entry in engine._cache._entries.values())


def run_mix(fake: Any, rng: random.Random, requests: list[GenerationRequest], abort_share: float) -> set[str]:
    """Submit and abort between steps, checking after each; returns what was aborted before it ended."""
    fake.load_by_hand()
    pending, aborted = list(requests), set[str]()
    for _ in range(5000):
        while pending and rng.random() < 0.5:
            fake.engine.submit(pending.pop())
        if rng.random() < abort_share and fake.engine._living.ids():
            victim = rng.choice(sorted(fake.engine._living.ids()))
            fake.engine.abort(victim)
            aborted.add(victim)
        is_busy = fake.engine.step()
        check_integrity(fake)
        if not is_busy and not pending:
            return aborted
    pytest.fail("sequences are stuck")


@pytest.mark.parametrize("group", range(3))
def test_loop_gives_every_sequence_the_text_it_gets_alone(make_engine: Any, group: int) -> None:
    num_moves = num_preemptions = num_pauses = num_hits = num_aborted = num_cheap = 0
    for seed in range(group * 24, group * 24 + 24):
        rng = random.Random(seed)
        fake = make_engine(**random_settings(rng))
        requests = [random_request(rng, number) for number in range(rng.randint(2, 16))]
        aborted = run_mix(fake, rng, requests, abort_share=rng.choice([0.0, 0.05]))
        for request in requests:
            expected, finish = fake.alone(request), fake.finish(request.id)
            assert finish.error is None
            tokens = fake.tokens(request.id)
            if request.id in aborted and finish.reason is FinishReason.ABORT:
                assert tokens == expected[: len(tokens)]
                num_aborted += 1
            else:
                assert tokens == expected, f"seed {seed} {request.id} on {request.path}"
                assert finish.path == request.path
                assert finish.usage.num_cached_tokens < len(request.prompt_token_ids)
            num_cheap += expected != fake.alone(dataclasses.replace(request, needs_exact_head=True))
        check_nothing_left(fake)
        assert fake.runner.max_step_tokens <= max(fake.config.step_tokens, fake.config.busy_step_tokens)
        num_moves += fake.runner.num_moves
        num_preemptions += fake.engine.status().num_preemptions
        num_pauses += fake.engine.status().num_pauses
        num_hits += sum(fake.engine.status().prefix_hit_tokens.values())
    assert min(num_moves, num_preemptions, num_pauses, num_hits, num_aborted, num_cheap) > 0, (
        "the mix proves too little"
    )


DEAR_S, PASS_S = 1.0, 2.0


@pytest.fixture
def dear_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens with log-probabilities cost half a forward pass each, all others nothing."""

    def note_choosing(sequence: Sequence, seconds: float, exact_s: float) -> None:
        sequence.choosing_s = 0.0 if sequence.request.sampling.logprobs is None else DEAR_S

    monkeypatch.setattr(Sequence, "note_choosing", note_choosing)
    monkeypatch.setattr(Turns, "note_pass", lambda turns, rows, seconds: setattr(turns, "_pass_s", PASS_S))


@pytest.mark.usefixtures("dear_logprobs")
def test_loop_gives_every_sequence_of_many_tenants_the_text_it_gets_alone(make_engine: Any) -> None:
    num_waits = 0
    for seed in range(24):
        rng = random.Random(seed)
        fake = make_engine(**random_settings(rng))
        requests = [
            dataclasses.replace(random_request(rng, number), cache_salt=rng.choice("abc"))
            for number in range(rng.randint(4, 16))
        ]
        run_mix(fake, rng, requests, abort_share=0.0)
        for request in requests:
            assert fake.tokens(request.id) == fake.alone(request), f"seed {seed} {request.id} on {request.path}"
        check_nothing_left(fake)
        num_waits += sum(row.path is None for step in fake.runner.forward_calls for row in step.decode)
    assert num_waits > 0


@pytest.mark.usefixtures("dear_logprobs")
def test_loop_keeps_another_tenant_s_stream_going_beside_dear_rows(make_engine: Any) -> None:
    """The stream has a token in every step, and no step chooses more dear ones than there is time for."""
    fake = make_engine(max_running=8)
    fake.load_by_hand()
    fake.submit("stream", max_tokens=100, ignore_eos=True, cache_salt="b")
    fake.engine.step()
    for number in range(6):
        fake.submit(f"s{number}", max_tokens=20, ignore_eos=True, logprobs=1, cache_salt="a")
    fake.step_until_idle()
    steps = [step.decode for step in fake.runner.forward_calls if step.decode and not step.prefill][4:64]
    assert len(fake.tokens("stream")) == 100
    assert all(rows[0].path is not None for rows in steps)
    assert {sum(row.path is not None for row in rows) for rows in steps} == {1, 2}
    assert all(len(fake.tokens(f"s{number}")) == 20 for number in range(6))


@pytest.mark.usefixtures("dear_logprobs")
def test_loop_lets_a_tenant_s_dear_rows_run_together_where_it_is_alone(make_engine: Any) -> None:
    fake = make_engine(max_running=8)
    fake.load_by_hand()
    for number in range(6):
        fake.submit(f"s{number}", max_tokens=20, ignore_eos=True, logprobs=1, cache_salt="a")
    fake.step_until_idle()
    assert not any(row.path is None for step in fake.runner.forward_calls for row in step.decode)


def test_loop_prompts_leave_other_tenants_streams_more(make_engine: Any) -> None:
    """A sixteenth of what they may take beside the tenant's own, and each tenant its part of that."""
    fake = make_engine(step_tokens=128, busy_step_tokens=128, max_running=4)
    fake.load_by_hand()
    fake.submit("stream", max_tokens=150, ignore_eos=True, cache_salt="a")
    fake.engine.step()
    fake.submit("other's", range(3, 103), max_tokens=1, cache_salt="b")
    fake.step_until_idle()
    fake.submit("stream again", max_tokens=150, ignore_eos=True, cache_salt="a")
    fake.engine.step()
    for tenant in "bc":
        fake.submit(f"{tenant}'s", range(103, 163), max_tokens=1, cache_salt=tenant)
    fake.step_until_idle()
    shared = [[len(chunk.token_ids) for chunk in step.prefill] for step in fake.runner.forward_calls if step.decode]
    assert [lengths for lengths in shared if len(lengths) == 1] == [[8]] * 12 + [[4]]
    assert [lengths for lengths in shared if len(lengths) == 2] == [[4, 4]] * 15


def test_loop_long_prompts_leave_busy_streams_their_share(make_engine: Any) -> None:
    fake = make_engine(step_tokens=100, busy_step_tokens=10)
    fake.load_by_hand()
    fake.submit("stream", max_tokens=60, ignore_eos=True)
    fake.engine.step()
    fake.submit("long", range(3, 103), max_tokens=1)
    fake.step_until_idle()
    shared = [step for step in fake.runner.forward_calls if step.prefill and step.decode]
    assert len(shared) == 10
    assert all(sum(len(chunk.token_ids) for chunk in step.prefill) == 10 for step in shared)


def test_loop_keeps_a_long_prompt_piece_by_piece(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step copies more into the prefix cache than it computed: streams would pause for that."""
    fake = make_engine(step_tokens=64, busy_step_tokens=32, max_running=4)
    fake.load_by_hand()
    fake.submit("stream", max_tokens=60, ignore_eos=True)
    fake.engine.step()
    fake.submit("long", range(3, 3 + 5 * BLOCK_TOKENS), max_tokens=2)
    read, starts, copied = fake.runner.read_block, list[int](), list[int]()

    def count(stage: str, slot: int, start: int, num_tokens: int) -> Any:
        starts.append(start)
        return read(stage, slot, start, num_tokens)

    monkeypatch.setattr(fake.runner, "read_block", count)
    for _ in range(5):
        fake.engine.step()
        copied.append(len(starts) - sum(copied))
    assert copied == [len(fake.engine._kv_stages["full"])] * 5
    (sequence,) = [one for one in fake.engine._scheduler.running if one.id == "long"]
    assert sequence.match.keys == []


def test_loop_same_seed_gives_same_text_alone_and_in_a_batch(make_engine: Any) -> None:
    fake = make_engine(max_running=8)
    fake.load_by_hand()
    for number in range(7):
        fake.submit(f"s{number}", [5, 6], seed=number % 2, temperature=1.0, max_tokens=30)
        fake.engine.step()
    fake.step_until_idle()
    texts = [fake.tokens(f"s{number}") for number in range(7)]
    assert texts[0] == texts[2] == texts[4] != texts[1] == texts[3]
    assert texts[0] == fake.alone(fake.request("x", [5, 6], "full", seed=0, temperature=1.0, max_tokens=30))


def test_loop_without_a_seed_draws_a_fresh_one(make_engine: Any) -> None:
    fake = make_engine()
    fake.load_by_hand()
    for id in ("a", "b"):
        fake.submit(id, [5, 6], temperature=1.0, max_tokens=30, ignore_eos=True)
    fake.step_until_idle()
    assert fake.tokens("a") != fake.tokens("b")


def test_loop_prefix_of_a_shallow_path_serves_a_deep_one_only_where_its_kv_is(make_engine: Any) -> None:
    fake = make_engine()
    fake.load_by_hand()
    prompt = list(range(3, 80))
    for id, path in (("first", "knowledge"), ("deep", "full"), ("again", "full"), ("shallow", "knowledge")):
        fake.submit(id, prompt, path)
        fake.step_until_idle()
    cached = {id: fake.finish(id).usage.num_cached_tokens for id in ("first", "deep", "again", "shallow")}
    assert cached == {"first": 0, "deep": 0, "again": 64, "shallow": 64}
    assert fake.tokens("again") == fake.tokens("deep")
    assert fake.tokens("shallow") == fake.tokens("first")


def test_loop_prefix_is_shared_within_a_salt_alone(make_engine: Any) -> None:
    fake = make_engine()
    fake.load_by_hand()
    prompt = list(range(3, 80))
    for id, salt in (("first", "x"), ("other", "y"), ("again", "x"), ("none", "")):
        fake.submit(id, prompt, cache_salt=salt)
        fake.step_until_idle()
    cached = {id: fake.finish(id).usage.num_cached_tokens for id in ("first", "other", "again", "none")}
    assert cached == {"first": 0, "other": 0, "again": 64, "none": 0}


def test_loop_usage_of_a_preempted_sequence_counts_its_prompt_alone(make_engine: Any) -> None:
    fake = make_engine(max_running=2, kv_bytes=9 * 16 * 24)
    fake.load_by_hand()
    for id in ("old", "young"):
        fake.submit(id, range(3, 43), max_tokens=60, ignore_eos=True)
        fake.engine.step()
    fake.step_until_idle()
    assert fake.engine.status().num_preemptions
    # The young one comes back to find its prompt and its answer so far cached.
    for id, num_cached in (("old", 0), ("young", 32)):
        usage = fake.finish(id).usage
        assert usage.num_prompt_tokens == 40
        assert usage.num_completion_tokens == 60
        assert usage.num_cached_tokens == num_cached


def test_loop_counts_stage_runs_and_rows(make_engine: Any) -> None:
    fake = make_engine()
    fake.load_by_hand()
    fake.submit("a", [5, 6, 7], "knowledge", max_tokens=3, ignore_eos=True)
    fake.submit("b", [5, 6, 7, 8], "full", max_tokens=3, ignore_eos=True)
    fake.step_until_idle()
    status = fake.engine.status()
    assert status.stage_runs["knowledge"] == status.stage_runs["adapter"] == status.num_steps == 3
    assert status.stage_rows["knowledge"] == 3 + 4 + 2 * 2
    assert status.stage_rows["adapter"] == 4 + 2
    assert (status.num_prompt_tokens, status.num_generation_tokens) == (7, 6)


EXITS = (
    Exit(name="math_exit", after="knowledge", num_blocks=1, is_trained=True),
    Exit(name="fact_exit", after="knowledge", has_map=True, is_trained=True),
)


def with_exits(student: Student) -> Student:
    """Two more exits behind the first module, and paths that leave by them, one exit's rows apart from each other."""
    ways = (("math", "math_exit"), ("fact", "fact_exit"), ("riddle", "math_exit"))
    paths = tuple(StudentPath(name=name, modules=("knowledge",), exit=exit) for name, exit in ways)
    manifest = student.manifest
    manifest = msgspec.structs.replace(manifest, exits=(*EXITS, *manifest.exits), paths=(*paths, *manifest.paths[1:]))
    assert find_problems(manifest) == []
    return dataclasses.replace(student, manifest=manifest)


def test_path_ranks_make_neighbours_of_the_paths_of_one_exit(fake_student: Student) -> None:
    ranks = with_exits(fake_student).manifest.path_ranks
    assert ranks == {"full": 0, "reasoning": 1, "math": 2, "riddle": 3, "fact": 4}


@pytest.mark.parametrize("seed", range(6))
def test_loop_gives_paths_of_equal_depth_the_text_they_get_alone(fake_student: Student, seed: int) -> None:
    rng = random.Random(seed)
    fake = FakeEngine(with_exits(fake_student), **random_settings(rng))
    paths = ("math", "fact", "riddle", "reasoning", "full")
    requests = [
        _request(f"s{number}", random_prompt(rng), rng.choice(paths), max_tokens=rng.randint(1, 30))
        for number in range(16)
    ]
    run_mix(fake, rng, requests, abort_share=0.0)
    for request in requests:
        assert fake.tokens(request.id) == fake.alone(request), f"{request.id} on {request.path}"
        assert fake.finish(request.id).path == request.path
    check_nothing_left(fake)


def test_loading_degrades_no_path_to_another_exit_behind_the_same_modules(fake_student: Student) -> None:
    fake = FakeEngine(with_exits(fake_student), max_running=4)
    fake.runner.gates = {"fact_exit": threading.Event()}
    fake.start()
    try:
        degrade: Any = {"while_loading": WhileLoading.DEGRADE, "max_tokens": 2, "ignore_eos": True}
        fake.submit("fact", path="fact", **degrade)
        fake.submit("deep", path="reasoning", **degrade)
        assert fake.finish("deep").path == "math"
        assert "fact" not in fake.events
        fake.runner.gates["fact_exit"].set()
        assert fake.finish("fact").path == "fact"
    finally:
        fake.runner.gates["fact_exit"].set()
        fake.engine.stop(0)


@contextlib.contextmanager
def hanging(fake: Any) -> Iterator[Any]:
    """The engine while its thread is held inside a forward pass."""
    stepped, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        stepped.set()
        go_on.wait(20)

    fake.runner.on_forward = hold
    fake.start()
    fake.submit("held", max_tokens=1)
    assert stepped.wait(20)
    try:
        yield fake
    finally:
        go_on.set()


def test_sequences_tell_where_each_one_is(make_engine: Any) -> None:
    """Asked from another thread, as an operator who looks for a stuck one does."""
    fake = make_engine(max_running=1)
    gate = fake.runner.gates.setdefault("adapter", threading.Event())
    fake.start()
    fake.submit("deep", (5, 6, 7), "full", max_tokens=9)
    fake.submit("deeper", (5, 6), "full", max_tokens=3)
    states = fake.engine.sequences(10.0)
    assert [(one.id, one.status, one.slot) for one in states] == [
        ("deep", SequenceStatus.WAITING, None),
        ("deeper", SequenceStatus.WAITING, None),
    ]
    assert (states[0].num_prompt_tokens, states[0].max_completion_tokens) == (3, 9)
    gate.set()
    fake.finish("deep")
    fake.finish("deeper")
    assert fake.engine.sequences(10.0) == []


def test_sequences_of_a_running_engine_have_slots_and_progress(make_engine: Any) -> None:
    fake = make_engine()
    fake.load_by_hand()
    fake.submit("a", (5, 6, 7), max_tokens=9, ignore_eos=True)
    fake.engine.step()
    fake.engine.step()
    (state,) = fake.engine._sequence_states()
    assert (state.status, state.slot, state.num_computed_tokens) == (SequenceStatus.DECODING, 0, 4)
    assert state.num_completion_tokens == 2


def test_sequences_of_an_engine_that_hangs_are_not_waited_for(make_engine: Any) -> None:
    with hanging(make_engine()) as fake, pytest.raises(EngineUnhealthy, match=r"did not answer within 0\.01 s"):
        fake.engine.sequences(0.01)
