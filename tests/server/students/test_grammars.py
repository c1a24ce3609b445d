"""Grammars are compiled once, outside the loop, within a time; few are kept."""

import asyncio
import threading

import pytest

from engines.grammar import GrammarCompiler
from models.errors import InvalidParameter
from server.students.grammars import Grammars
from tests.server.conftest import make_tokenizer

WAIT_S = 10.0


def nothing() -> None:
    pass


class Checks:
    """Counts the compilations by their checks, which run first, and can hold them up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.threads: list[threading.Thread] = []

    def __call__(self) -> None:
        self.threads.append(threading.current_thread())
        assert self.gate.wait(WAIT_S)


def make_grammars(max_grammars: int = 8) -> Grammars:
    return Grammars(lambda: GrammarCompiler(make_tokenizer(), 258), max_grammars)


async def test_grammar_is_compiled_once_for_all_who_ask() -> None:
    grammars, checks = make_grammars(), Checks()
    found = await asyncio.gather(*(grammars.compile('start: "a"', checks, WAIT_S) for _ in range(5)))
    assert await grammars.compile('start: "a"', checks, WAIT_S) is found[0]
    assert all(one is found[0] for one in found)
    assert len(checks.threads) == 1
    assert checks.threads[0] is not threading.main_thread()


async def test_the_grammar_used_longest_ago_is_forgotten() -> None:
    grammars, checks = make_grammars(max_grammars=2), Checks()
    for text in ("a", "b", "a", "c", "a", "b"):
        await grammars.compile(f'start: "{text}"', checks, WAIT_S)
    assert len(checks.threads) == 4


async def test_failures_are_told_to_everyone_and_not_kept() -> None:
    grammars = make_grammars()
    results = await asyncio.gather(
        *(grammars.compile("start: nowhere", nothing, WAIT_S) for _ in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [InvalidParameter] * 3
    with pytest.raises(InvalidParameter):
        await grammars.compile("start: nowhere", nothing, WAIT_S)


async def test_slow_compilation_is_given_up_and_kept_for_the_next_try() -> None:
    grammars, checks = make_grammars(), Checks()
    checks.gate.clear()
    with pytest.raises(InvalidParameter, match="grammar_timeout_s"):
        await grammars.compile('start: "a"', checks, 0.01)
    checks.gate.set()
    await grammars.compile('start: "a"', checks, WAIT_S)
    assert len(checks.threads) == 1
