"""Grammars are compiled once for a tenant, in turns, within a time and a memory, and only while somebody waits."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.grammar_process import TrialDied, TrialTooLong
from engines.grammar_trial import Outcome, Trial, Words
from engines.schema_loosening import Loosens, SchemaRule
from models.errors import InvalidParameter, QueueFull, Stopping, Unavailable
from server.students.grammars import GrammarBounds, Grammars, SchemaRefused
from tests.server.conftest import make_tokenizer

WAIT_S = 30.0
NUM_BYTES = 1000


class Trials:
    """Stands for the processes: notes what they are asked to try, and can hold them up, or let them die."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.schemas: list[list[dict[str, Any]]] = []
        self.deaths: list[Exception] = []
        """What becomes of the next trials."""
        self.gate = threading.Event()
        self.gate.set()
        self.processes: list[ScriptedProcess] = []
        self.outcome = Outcome(num_bytes=NUM_BYTES)

    def make(self, words: Callable[[], Words]) -> "ScriptedProcess":
        self.processes.append(ScriptedProcess(self))
        return self.processes[-1]

    def hold(self) -> None:
        self.gate.clear()

    async def begun(self, num_trials: int) -> None:
        while len(self.sources) < num_trials:
            await asyncio.sleep(0.001)


class ScriptedProcess:
    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self.num_ends = 0
        self.pid = None

    def run(self, trial: Trial) -> Outcome:
        self._trials.sources.append(trial.rules)
        self._trials.schemas.append([rule.schema for rule in trial.schemas])
        if self._trials.deaths:
            raise self._trials.deaths.pop(0)
        num_ends = self.num_ends
        while not self._trials.gate.wait(0.001):
            if self.num_ends > num_ends:
                raise TrialDied("killed", blames_trial=False)
        return self._trials.outcome

    def end(self) -> None:
        self.num_ends += 1

    close = end


@pytest.fixture
def trials() -> Iterator[Trials]:
    made = Trials()
    yield made
    made.gate.set()


def make_grammars(trials: Trials, **bounds: Any) -> Grammars:
    return Grammars(make_tokenizer(), 258, GrammarBounds(**bounds), trials.make)


async def compile(grammars: Grammars, word: str, tenant: str | None = None) -> Any:
    return (await grammars.compile(f'start: "{word}"', [], tenant=tenant, time_limit_s=WAIT_S)).grammar


def start(grammars: Grammars, word: str, tenant: str | None = None) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(compile(grammars, word, tenant))


async def cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_grammar_is_compiled_once_for_all_of_a_tenant_who_ask(trials: Trials) -> None:
    grammars = make_grammars(trials)
    found = await asyncio.gather(*(compile(grammars, "a", "x") for _ in range(5)))
    assert await compile(grammars, "a", "x") is found[0]
    assert all(one is found[0] for one in found)
    assert len(trials.sources) == 1


async def test_a_tenant_s_grammar_says_nothing_to_another_tenant(trials: Trials) -> None:
    grammars = make_grammars(trials)
    first = await compile(grammars, "a", "x")
    assert await compile(grammars, "a", "y") is not first
    assert len(trials.sources) == 2


async def test_kept_grammars_are_bounded_by_bytes(trials: Trials) -> None:
    grammars = make_grammars(trials, max_kept_bytes=2 * NUM_BYTES)
    for word in "abacab":
        await compile(grammars, word)
    assert len(trials.sources) == 4
    trials.outcome = Outcome(num_bytes=3 * NUM_BYTES)
    await compile(grammars, "large")
    await compile(grammars, "large")
    assert len(trials.sources) == 6, "what is larger than the bound is not kept"


async def test_grammars_in_use_are_bounded_by_bytes(trials: Trials) -> None:
    grammars = make_grammars(trials, max_kept_bytes=0, max_live_bytes=4 * NUM_BYTES)
    used = [await compile(grammars, word, "x") for word in "ab"]
    with pytest.raises(Unavailable) as caught:
        await compile(grammars, "c", "x")
    assert caught.value.retry_after_s
    used += [await compile(grammars, word, "y") for word in "ab"]
    with pytest.raises(Unavailable):
        await compile(grammars, "c", "z")
    assert grammars.counts.num_bytes == 4 * NUM_BYTES
    used.clear()
    assert await compile(grammars, "c", "x") is not None


async def test_too_large_a_grammar_is_refused_with_the_limit(trials: Trials) -> None:
    trials.outcome = Outcome(num_bytes=3 * 1024 * 1024)
    with pytest.raises(InvalidParameter, match=r"3\.0 MiB, more than 2"):
        await compile(make_grammars(trials, max_grammar_bytes=2 * 1024 * 1024), "a")


async def test_failures_are_told_to_everyone_and_not_kept(trials: Trials) -> None:
    grammars = make_grammars(trials)
    trials.outcome = Outcome(problem="wrong", where="tools", pointer="/a")
    results = await asyncio.gather(*(compile(grammars, "a") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [SchemaRefused] * 3
    trials.outcome = Outcome(num_bytes=NUM_BYTES)
    assert await compile(grammars, "a") is not None


async def test_another_tenant_passes_one_whose_schemas_take_long(trials: Trials) -> None:
    grammars = make_grammars(trials)
    trials.hold()
    held = [start(grammars, f"slow{i}", "heavy") for i in range(8)]
    await trials.begun(1)
    other = start(grammars, "quick", "light")
    await trials.begun(2)
    assert trials.sources == ['start: "slow0"', 'start: "quick"']
    trials.gate.set()
    await asyncio.gather(other, *held)


async def test_too_many_of_one_tenant_are_told_to_come_back(trials: Trials) -> None:
    grammars = make_grammars(trials)
    trials.hold()
    held = [start(grammars, f"a{i}", "heavy") for i in range(9)]
    await trials.begun(1)
    with pytest.raises(QueueFull) as caught:
        await compile(grammars, "one more", "heavy")
    assert caught.value.retry_after_s
    trials.gate.set()
    await asyncio.gather(*held)


async def test_waiting_too_long_is_no_fault_of_the_schema(trials: Trials) -> None:
    grammars = make_grammars(trials, num_processes=1, max_wait_s=0.01)
    trials.hold()
    first = start(grammars, "a")
    await trials.begun(1)
    with pytest.raises(Unavailable) as caught:
        await compile(grammars, "b")
    assert caught.value.retry_after_s
    trials.gate.set()
    assert await first is not None
    assert await compile(grammars, "b") is not None
    assert grammars.counts.outcomes == {"compiled": 2, "turned_away": 1}


async def test_what_nobody_waits_for_is_not_compiled(trials: Trials) -> None:
    grammars = make_grammars(trials, num_processes=1)
    trials.hold()
    first = start(grammars, "a")
    await trials.begun(1)
    second, third = start(grammars, "b"), start(grammars, "c")
    await asyncio.sleep(0)
    await cancel(second)
    trials.gate.set()
    await asyncio.gather(first, third)
    assert trials.sources == ['start: "a"', 'start: "c"']


async def test_a_trial_that_nobody_waits_for_is_ended(trials: Trials) -> None:
    grammars = make_grammars(trials, num_processes=1, abandoned_s=0.0)
    trials.hold()
    first, second = start(grammars, "a"), start(grammars, "a")
    await trials.begun(1)
    await cancel(first)
    assert trials.processes[0].num_ends == 0
    await cancel(second)
    third = start(grammars, "b")
    await trials.begun(2)
    assert trials.processes[0].num_ends == 1
    trials.gate.set()
    assert await third is not None


async def test_a_process_that_dies_tells_those_who_wait(trials: Trials) -> None:
    grammars = make_grammars(trials)
    trials.hold()
    asked = [start(grammars, "a") for _ in range(2)]
    await trials.begun(1)
    for process in trials.processes:
        process.end()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 2
    trials.gate.set()
    assert await compile(grammars, "a") is not None


async def test_closing_tells_everybody(trials: Trials) -> None:
    grammars = make_grammars(trials, num_processes=1)
    trials.hold()
    asked = [start(grammars, word) for word in ("a", "b")]
    await trials.begun(1)
    grammars.close()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [Stopping] * 2
    with pytest.raises(Stopping):
        await compile(grammars, "c")
    assert len(trials.sources) == 1


async def test_the_time_is_that_of_the_work(trials: Trials) -> None:
    """In processes of their own: each of these takes longer to wait than it may take to compile."""
    grammars = Grammars(make_tokenizer(), 258, GrammarBounds(num_processes=1))
    costly = '{"allOf": [' + ", ".join(f'{{"pattern": ".*a.{{{i}}}b.*"}}' for i in range(30, 43)) + "]}"
    try:
        slow = asyncio.create_task(
            grammars.compile(f"start: body\nbody: %json {costly}", [], tenant=None, time_limit_s=1.0)
        )
        await asyncio.sleep(0)
        quick = asyncio.create_task(grammars.compile('start: "a"', [], tenant=None, time_limit_s=1.0))
        assert await quick is not None
        with pytest.raises(InvalidParameter, match="make it simpler"):
            await slow
    finally:
        grammars.close()


SHAPE = {"type": "object", "properties": {"a": {}}}
TOO_COSTLY = [TrialTooLong("late"), TrialDied("out of memory", blames_trial=True)]


def rule_of(name: str, loosens: Loosens) -> SchemaRule:
    return SchemaRule.of(SHAPE, name=name, where=f"field {name}", loosens=loosens)


async def compile_rules(grammars: Grammars, rules: list[SchemaRule]) -> Any:
    source = "start: " + " ".join(rule.name for rule in rules)
    return await grammars.compile(source, rules, tenant=None, time_limit_s=WAIT_S)


@pytest.mark.parametrize("death", TOO_COSTLY)
async def test_costly_schemas_of_tools_are_tried_once_more_as_a_whole(trials: Trials, death: Exception) -> None:
    trials.deaths = [death]
    rules = [rule_of("a", Loosens.NOTHING), rule_of("b", Loosens.ANYTHING), rule_of("c", Loosens.ANYTHING)]
    found = await compile_rules(make_grammars(trials), rules)
    assert trials.schemas == [[SHAPE] * 3, [SHAPE, {"type": "object"}, {"type": "object"}]]
    assert [(place.where, place.pointer) for place in found.loosened] == [("field b", ""), ("field c", "")]
    least = [rules[0], *(rule.with_schema({"type": "object"}) for rule in rules[1:])]
    assert found.grammar.digest == (await compile_rules(make_grammars(trials), least)).grammar.digest


@pytest.mark.parametrize("death", TOO_COSTLY)
async def test_costly_schemas_are_tried_no_more_than_twice(trials: Trials, death: Exception) -> None:
    trials.deaths = [death] * 3
    with pytest.raises(InvalidParameter):
        await compile_rules(make_grammars(trials), [rule_of("a", Loosens.ANYTHING)])
    assert len(trials.sources) == 2


@pytest.mark.parametrize("loosens", [Loosens.NOTHING, Loosens.UNSUPPORTED])
async def test_costly_schemas_that_are_to_be_kept_to_are_refused_at_once(trials: Trials, loosens: Loosens) -> None:
    trials.deaths = [TrialTooLong("late")]
    with pytest.raises(InvalidParameter, match="grammar_timeout_s"):
        await compile_rules(make_grammars(trials), [rule_of("a", loosens)])
    assert len(trials.sources) == 1


async def test_a_process_that_was_killed_is_not_asked_again(trials: Trials) -> None:
    trials.deaths = [TrialDied("killed", blames_trial=False)]
    with pytest.raises(Unavailable):
        await compile_rules(make_grammars(trials), [rule_of("a", Loosens.ANYTHING)])
    assert len(trials.sources) == 1
