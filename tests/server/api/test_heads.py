"""A real engine with a cheap head behind HTTP: what clients see of the two heads, and what they must not see."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from models.student.manifest import HeadKind
from router.decision import Quality, RouteDecision, RoutePreferences
from server.settings.config import AdminConfig, ServerConfig
from tests.server.conftest import Served, run_server
from tests.server.random_engine import open_random
from tests.server.telemetry.test_metrics import value

KEY = "let me in"
CONFIG = ServerConfig(admin=AdminConfig(key_sha256=hashlib.sha256(KEY.encode()).hexdigest()))
SAMPLED: dict[str, Any] = {"temperature": 1, "seed": 7, "max_tokens": 40, "fenhe": {"cache": False}}
FULL: dict[str, Any] = SAMPLED | {"fenhe": {"cache": False, "quality": "full"}}


@contextlib.contextmanager
def serve(head: HeadKind) -> Iterator[Served]:
    """A server whose decisions mean the engine's head, but for requests of full quality."""
    with run_server([open_random(head=head)], CONFIG) as running:
        router = running.context.router
        decide = router.decide

        def decide_head(scores: Any, preferences: RoutePreferences, *rest: Any, **options: Any) -> RouteDecision:
            decision = decide(scores, preferences, *rest, **options)
            is_full = preferences.quality is Quality.FULL
            return dataclasses.replace(decision, head="exact" if is_full else head)

        router.decide = decide_head  # type: ignore[method-assign]
        yield running


@pytest.fixture(scope="module")
def cheap() -> Iterator[Served]:
    with serve("cheap") as running:
        yield running


@pytest.fixture(scope="module")
def exact() -> Iterator[Served]:
    with serve("exact") as running:
        yield running


def choice(served: Served, **fields: Any) -> Any:
    response = served.chat("hello", **fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def words(served: Served, **fields: Any) -> str:
    return str(choice(served, **fields)["message"]["content"])


def test_full_quality_is_that_of_a_student_without_a_cheap_head(cheap: Served, exact: Served) -> None:
    assert words(cheap, **FULL) == words(exact, **FULL) == words(exact, **SAMPLED)
    assert words(cheap, **SAMPLED) != words(cheap, **FULL)
    told = {"logprobs": True, "top_logprobs": 3}
    assert choice(cheap, **FULL, **told)["logprobs"] == choice(exact, **FULL, **told)["logprobs"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_asking_for_logprobs_changes_no_word(cheap: Served, temperature: int) -> None:
    fields = SAMPLED | {"temperature": temperature}
    assert words(cheap, **fields, logprobs=True, top_logprobs=2) == words(cheap, **fields)


def test_logprobs_are_those_of_the_exact_head(cheap: Served, exact: Served) -> None:
    """The first token's alternatives: the same prompt, whichever head then chooses."""
    told: dict[str, Any] = SAMPLED | {"logprobs": True, "top_logprobs": 3, "max_tokens": 1}
    lists = [choice(served, **told)["logprobs"]["content"][0]["top_logprobs"] for served in (cheap, exact)]
    assert lists[0] == lists[1]


def test_an_answer_keeps_to_its_schema(cheap: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    fields = SAMPLED | {"response_format": form, "max_tokens": 200}
    assert json.loads(words(cheap, **fields))["a"] in ("x", "yy")
    assert words(cheap, **fields, logprobs=True) == words(cheap, **fields)


def test_a_bias_that_is_decisive_is_so_by_either_head(cheap: Served) -> None:
    assert words(cheap, **SAMPLED | {"logit_bias": {"122": 100}, "max_tokens": 5}) == "zzzzz"
    assert words(cheap, **FULL | {"logit_bias": {"122": 100}, "max_tokens": 5}) == "zzzzz"


def test_kept_answers_of_two_heads_are_two(cheap: Served) -> None:
    def outcome(quality: str) -> str:
        fields = SAMPLED | {"seed": 99, "fenhe": {"quality": quality}}
        return str(cheap.chat("hello", **fields).headers["x-fenhe-cache"])

    assert [outcome(quality) for quality in ("balanced", "full", "balanced", "full")] == ["miss", "miss", "hit", "hit"]


def test_metrics_count_the_rows_of_each_head() -> None:
    with serve("cheap") as served:
        ask: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "logit_bias": {"122": 100}}
        assert words(served, **ask) == words(served, **ask, fenhe={"quality": "full"}) == "zzzz"
        assert value(served, "fenhe_stage_rows_total", stage="cheap_head") == 4
        assert value(served, "fenhe_stage_rows_total", stage="head") == 4 + 4
        assert value(served, "fenhe_stage_runs_total", stage="cheap_head") == 4


def test_server_names_the_head(cheap: Served, exact: Served) -> None:
    for served, head in ((cheap, "cheap"), (exact, "exact")):
        assert served.http.get("/version").json()["head"] == head
        state = served.http.get("/debug/state", headers={"authorization": f"Bearer {KEY}"}).json()
        assert [student["head"] for student in state["students"]] == [head]
