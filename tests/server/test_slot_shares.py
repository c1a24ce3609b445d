"""Two tenants on one server: one takes every slot with long answers, and the other is answered meanwhile."""

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer as Backend

from engines.config import EngineConfig
from engines.loop.module_engine import ModuleEngine
from models.student.folder import Student
from models.tokenizer import Tokenizer, TokenizerSettings
from server.settings.config import KeysConfig, ServerConfig
from server.students.open_student import Opened
from tests.engines.conftest import CAPACITY_TOKENS, FakeRunner, fake_manifest
from tests.server.conftest import Served, events_of, run_server, until

ENGINE = EngineConfig(max_running=4)
NUM_LONG = 6
PASS_S = 0.05
"""A long answer then takes six seconds, in which all others are sent, and the other tenant's short one is given."""


class Slow(FakeRunner):
    """A runner whose text changes with any KV that is lost, and whose passes take a while until it is told not to."""

    engine: ModuleEngine

    def slow_down(self) -> None:
        self.on_forward = lambda: time.sleep(PASS_S)

    def speed_up(self) -> None:
        self.on_forward = lambda: None


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def runner() -> Slow:
    return Slow(fake_manifest(), ENGINE.max_running)


@pytest.fixture
def served(runner: Slow, tiny_tokenizer_json: str) -> Iterator[Served]:
    tokenizer = Tokenizer(Backend.from_str(tiny_tokenizer_json), TokenizerSettings(eos_token_ids=(2,)), None)
    student = Student(folder=Path("nowhere"), manifest=fake_manifest(), tokenizer=tokenizer)
    runner.engine = ModuleEngine(student, runner, ENGINE, capacity_tokens=CAPACITY_TOKENS, variant="fake")
    config = dataclasses.replace(
        ServerConfig(), engine=ENGINE, keys=KeysConfig(sha256=(digest("busy"), digest("visitor")))
    )
    with run_server([Opened(name="fake", student=student, engine=runner.engine)], config) as running:
        yield running


def ask(served: Served, key: str, number: int, max_tokens: int, **fields: Any) -> httpx.Response:
    body = {
        "model": "fake:full",
        "prompt": [3 + number] * 10,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "fenhe": {"cache": False},
        **fields,
    }
    return served.post("/v1/completions", body, headers={"authorization": f"Bearer {key}"})


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    *events, done = events_of(response.content)
    assert done == "[DONE]"
    return "".join(event["choices"][0]["text"] for event in events)


def run_beside(served: Served, runner: Slow) -> tuple[int, list[httpx.Response]]:
    """How many long answers had ended when the visitor had its own, and the long ones."""
    runner.slow_down()
    with ThreadPoolExecutor(NUM_LONG) as pool:
        long = [pool.submit(ask, served, "busy", number, 120, stream=True) for number in range(NUM_LONG)]
        assert until(lambda: runner.engine.status().num_running == ENGINE.max_running)
        answer = ask(served, "visitor", 50, 5)
        num_ended = sum(one.done() for one in long)
        runner.speed_up()
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 5
        return num_ended, [one.result() for one in long]


def test_tenant_is_answered_while_another_has_every_slot(served: Served, runner: Slow) -> None:
    num_ended, long = run_beside(served, runner)
    assert num_ended == 0
    assert runner.engine.status().num_pauses >= 1
    for number, response in enumerate(long):
        assert text_of(response) == text_of(ask(served, "busy", number, 120, stream=True))
    assert "fenhe_pauses_total" in served.http.get("/metrics").text
    assert runner.engine.audit(10.0) == []


def test_one_tenant_waits_for_its_own_answers_and_nothing_pauses(served: Served, runner: Slow) -> None:
    with ThreadPoolExecutor(NUM_LONG) as pool:
        long = [pool.submit(ask, served, "busy", number, 120, stream=True) for number in range(NUM_LONG)]
        assert ask(served, "busy", 50, 5).status_code == 200
        assert all(text_of(one.result()) for one in long)
    assert runner.engine.status().num_pauses == 0
