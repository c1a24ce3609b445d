"""How many prompt tokens a step takes beside streams, on made-up machines: what each pass takes is known here."""

import random
from dataclasses import dataclass

import pytest

from engines.scheduling.prompt_pace import ATTENTION_PER_CHANNEL, LEAST_CHUNK, PROMPTS_SHARE, PromptPace
from engines.scheduling.step_plan import Chunk, StepPlan
from engines.sequence import GenerationRequest, SamplingParams, Sequence, new_sequence

BOUND_S = 0.05
HIDDEN_SIZE = 576
TYPICAL_TOKENS = int(ATTENTION_PER_CHANNEL * HIDDEN_SIZE)
STREAMING = frozenset({""})


def make_prompt(num_tokens: int, tenant: str = "") -> Sequence:
    request = GenerationRequest(
        id=f"{tenant}{num_tokens}",
        prompt_token_ids=(1,) * num_tokens,
        path="full",
        sampling=SamplingParams(max_tokens=1),
        cache_salt=tenant,
    )
    return new_sequence(request, lambda _: b"", "exact")


@dataclass(slots=True, kw_only=True)
class Machine:
    """Seconds of a pass: of the streams alone, of any prompt, and of its tokens, dearer the more stand before them."""

    streams_s: float
    prompt_s: float
    token_s: float
    attention_tokens: float = 800

    def seconds(self, chunks: list[Chunk]) -> float:
        total = self.streams_s
        for chunk in chunks:
            middle = chunk.sequence.num_computed_tokens + chunk.num_tokens / 2
            total += self.prompt_s + chunk.num_tokens * self.token_s * (1 + middle / self.attention_tokens)
        return total


MACHINES = {
    "fast": Machine(streams_s=0.006, prompt_s=0.005, token_s=0.0003),
    "slow": Machine(streams_s=0.013, prompt_s=0.01, token_s=0.0017, attention_tokens=3000),
    "large model": Machine(streams_s=0.035, prompt_s=0.03, token_s=0.003, attention_tokens=3000),
    "larger still": Machine(streams_s=0.3, prompt_s=0.2, token_s=0.04, attention_tokens=20000),
}


def make_pace(bound_s: float | None = BOUND_S) -> PromptPace:
    return PromptPace(step_tokens=512, busy_step_tokens=128, busy_step_s=bound_s, hidden_size=HIDDEN_SIZE)


def run(pace: PromptPace, machine: Machine, prompt: Sequence, slower: float = 1.0) -> list[tuple[int, float]]:
    """A prompt beside a stream: tokens and seconds of each step with some of it."""
    steps = []
    while prompt.num_uncomputed_tokens:
        num_tokens, seconds = step(pace, machine, prompt, slower)
        if num_tokens:
            steps.append((num_tokens, seconds))
    return steps


def step(pace: PromptPace, machine: Machine, prompt: Sequence, slower: float = 1.0) -> tuple[int, float]:
    num_tokens = min(pace.room([prompt], STREAMING).of(prompt), prompt.num_uncomputed_tokens)
    chunks = [Chunk(sequence=prompt, num_tokens=num_tokens)] if num_tokens else []
    seconds = machine.seconds(chunks) * slower
    pace.note_pass(StepPlan(decode=[make_prompt(1)], chunks=chunks), seconds)
    prompt.num_computed_tokens += num_tokens
    return num_tokens, seconds


def settle(pace: PromptPace, machine: Machine) -> None:
    """The streams have a step of their own."""
    pace.note_pass(StepPlan(decode=[make_prompt(1)]), machine.streams_s)


def warmed(pace: PromptPace, machine: Machine) -> PromptPace:
    """Has computed a prompt of 40 tokens alone and 20 tokens of its stream."""
    chunk = Chunk(sequence=make_prompt(40), num_tokens=40)
    pace.note_pass(StepPlan(chunks=[chunk]), machine.seconds([chunk]) - machine.streams_s)
    for _ in range(20):
        settle(pace, machine)
    return pace


@pytest.mark.parametrize("name", MACHINES)
def test_pace_keeps_steps_beside_streams_short(name: str) -> None:
    machine = MACHINES[name]
    bound_s = max(BOUND_S, machine.streams_s / (1 - PROMPTS_SHARE))
    steps = run(warmed(make_pace(), machine), machine, make_prompt(2000))
    assert max(seconds for _, seconds in steps) < 1.15 * bound_s
    # and no shorter than they need be
    typical = sorted(seconds for num_tokens, seconds in steps if num_tokens < 128)
    assert not typical or typical[len(typical) // 2] > 0.8 * bound_s


def test_pace_takes_what_a_fast_machine_can() -> None:
    machine = MACHINES["fast"]
    assert [num_tokens for num_tokens, _ in run(warmed(make_pace(), machine), machine, make_prompt(90))] == [90]


def test_pace_without_a_bound_or_a_stream_is_a_number_of_tokens() -> None:
    machine, prompt = MACHINES["larger still"], make_prompt(2000)
    assert warmed(make_pace(None), machine).room([prompt], STREAMING).of(prompt) == 128
    assert warmed(make_pace(None), machine).room([prompt], frozenset()).of(prompt) == 512
    assert warmed(make_pace(), MACHINES["fast"]).room([prompt], frozenset()).of(prompt) == 512
    assert make_pace().room([prompt], STREAMING).of(prompt) == 128, "nothing is known yet"


@pytest.mark.parametrize("name", ["slow", "large model", "larger still"])
def test_pace_keeps_whoever_arrives_waiting_no_longer_than_ten_steps(name: str) -> None:
    machine, prompt = MACHINES[name], make_prompt(2000)
    pace = warmed(make_pace(), machine)
    num_tokens = pace.room([prompt], frozenset()).of(prompt)
    seconds = machine.seconds([Chunk(sequence=prompt, num_tokens=num_tokens)]) - machine.streams_s
    assert 0.3 * BOUND_S < seconds / 10 < 1.3 * BOUND_S


def test_pace_recovers_from_a_pass_that_was_interrupted() -> None:
    machine = MACHINES["fast"]
    pace = warmed(make_pace(), machine)
    before = pace.room([make_prompt(500)], STREAMING).of(make_prompt(500))
    run(pace, machine, make_prompt(100), slower=100)
    prompt = make_prompt(500)
    assert pace.room([prompt], STREAMING).of(prompt) < before / 4
    run(pace, machine, make_prompt(2000))
    settle(pace, machine)
    assert pace.room([prompt], STREAMING).of(prompt) == pytest.approx(before, rel=0.2)


def test_pace_gets_on_however_slow_the_machine_is() -> None:
    machine = MACHINES["larger still"]
    pace = warmed(make_pace(), machine)
    run(pace, machine, make_prompt(128), slower=1000)
    late = make_prompt(100_000)
    late.num_computed_tokens = 90_000
    assert pace.room([late, make_prompt(50)], STREAMING).of(late) >= LEAST_CHUNK


def test_pace_learns_what_more_streams_take_while_prompts_keep_coming() -> None:
    """Streams of prompts that ended before count as streams, not as what the next prompt's tokens cost."""
    few = Machine(streams_s=0.006, prompt_s=0.0, token_s=0.002, attention_tokens=TYPICAL_TOKENS)
    many = Machine(streams_s=0.06, prompt_s=0.0, token_s=0.002, attention_tokens=TYPICAL_TOKENS)
    pace, prompt = warmed(make_pace(), few), make_prompt(20_000)
    steps = [step(pace, many, prompt) for _ in range(300)][-50:]
    prompts_s = sum(seconds - many.streams_s for num_tokens, seconds in steps if num_tokens)
    assert prompts_s / sum(seconds for _, seconds in steps) > 0.7


def test_pace_learns_what_fewer_streams_take_while_prompts_keep_coming() -> None:
    few = Machine(streams_s=0.01, prompt_s=0.0, token_s=0.002, attention_tokens=TYPICAL_TOKENS)
    many = Machine(streams_s=0.06, prompt_s=0.0, token_s=0.002, attention_tokens=TYPICAL_TOKENS)
    pace, prompt = warmed(make_pace(), many), make_prompt(20_000)
    assert max(seconds for _, seconds in [step(pace, few, prompt) for _ in range(300)][-50:]) < 1.15 * BOUND_S


def test_pace_keeps_steps_short_after_a_pass_of_the_streams_that_was_interrupted() -> None:
    machine = Machine(streams_s=0.006, prompt_s=0.0, token_s=0.002, attention_tokens=TYPICAL_TOKENS)
    pace, prompt = warmed(make_pace(), machine), make_prompt(20_000)
    run(pace, machine, make_prompt(1000))
    pace.note_pass(StepPlan(decode=[make_prompt(1)]), 1.0)
    assert max(seconds for _, seconds in [step(pace, machine, prompt) for _ in range(50)]) < 1.15 * BOUND_S


def test_pace_measures_no_streams_where_there_is_no_bound() -> None:
    pace, prompt = make_pace(None), make_prompt(20_000)
    assert {step(pace, MACHINES["slow"], prompt)[0] for _ in range(100)} == {128}


@pytest.mark.parametrize("seed", range(20))
def test_pace_shares_a_step_among_prompts_by_what_they_cost(seed: int) -> None:
    """However they lie in their texts, together they take no longer than the bound."""
    rng = random.Random(seed)
    machine = Machine(streams_s=0.006, prompt_s=0.0, token_s=0.0005, attention_tokens=TYPICAL_TOKENS)
    pace = make_pace()
    for _ in range(30):
        pace.note_pass(StepPlan(decode=[make_prompt(1)]), machine.streams_s)
        run(pace, machine, make_prompt(300))
    prompts = [make_prompt(5000 + number) for number in range(4)]
    for prompt in prompts:
        prompt.num_computed_tokens = rng.choice([0, 100, 2000, 4000])
    room, chunks = pace.room(prompts, STREAMING), []
    for prompt in prompts:
        chunk = Chunk(sequence=prompt, num_tokens=min(room.of(prompt), rng.choice([10, 30, 128])))
        room.take(chunk)
        chunks.append(chunk)
    assert 0 < sum(chunk.num_tokens for chunk in chunks) <= 128
    assert machine.seconds(chunks) < 1.1 * BOUND_S


def test_pace_leaves_streams_of_other_tenants_more() -> None:
    pace = make_pace()
    ours, theirs = make_prompt(500), make_prompt(500, tenant="b")
    room = pace.room([ours, theirs], STREAMING)
    assert (room.of(ours), room.of(theirs)) == (128, LEAST_CHUNK)
    assert pace.room([theirs], STREAMING).of(theirs) == 8


@pytest.mark.parametrize(("streams_s", "early", "late"), [(0.002, 8, 8), (0.03, 30, 15), (1.0, 128, 128)])
def test_pace_gives_prompts_beside_others_streams_half_a_pass(streams_s: float, early: int, late: int) -> None:
    machine = Machine(streams_s=streams_s, prompt_s=0.0, token_s=0.0005, attention_tokens=TYPICAL_TOKENS)
    pace, theirs = warmed(make_pace(None), machine), make_prompt(5000, tenant="b")
    assert pace.room([theirs], STREAMING).of(theirs) == pytest.approx(early, abs=1)
    theirs.num_computed_tokens = TYPICAL_TOKENS
    assert pace.room([theirs], STREAMING).of(theirs) == pytest.approx(late, abs=1)
