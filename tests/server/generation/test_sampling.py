"""What a request is sampled with: its own values, else each on its own what the model recommends."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.sequence import SamplingParams
from models.sampling import RecommendedSampling
from server.settings.config import ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, make_student, open_scripted, run_server

CARD = RecommendedSampling(temperature=0.2, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1)
FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
RECOMMENDED = (0.2, 0.9, 20, 0.05, 1.1)
PLAIN = (1.0, 1.0, None, 0.0, 1.0)
"""The defaults of the API, where nothing is recommended."""
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
}


def recommending(student: TinyStudent, sampling: RecommendedSampling | None) -> TinyStudent:
    return replace(student, manifest=msgspec.structs.replace(student.manifest, sampling=sampling))


@contextlib.contextmanager
def serving(folder: Path, sampling: RecommendedSampling | None, config: ServerConfig) -> Iterator[Served]:
    student = recommending(make_student(folder), sampling)
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("student"), CARD, ServerConfig()) as running:
        yield running


def used(served: Served, path: str = "/v1/chat/completions", **fields: Any) -> tuple[Any, ...]:
    """What the engine was given; the result cache is left out, so that it is asked each time."""
    fields = {"model": "auto", "fenhe": {"cache": False}, **ENDPOINTS[path], **fields}
    assert served.post(path, fields).status_code == 200
    return values_of(served.engine.submitted[-1].sampling)


def values_of(sampling: SamplingParams) -> tuple[Any, ...]:
    return tuple(getattr(sampling, name) for name in FIELDS)


ENDINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"min_tokens": 0, "stop": (), "stop_token_ids": frozenset(), "ignore_eos": False, "shows_stop": False}),
    ({"min_tokens": 3, "max_tokens": 5}, {"min_tokens": 3, "max_tokens": 5}),
    ({"min_tokens": 600, "max_tokens": -1}, {"min_tokens": "max_tokens"}),
    ({"stop": ["a", "b", "c", "d", "e"]}, {"stop": ("a", "b", "c", "d", "e")}),
    ({"stop": [f"stop{i}" for i in range(32)]}, {"stop": tuple(f"stop{i}" for i in range(32))}),
    ({"stop": []}, {"stop": ()}),
    ({"stop_token_ids": [1, 257, 1]}, {"stop_token_ids": frozenset({1, 257})}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"include_stop_str_in_output": True, "stop": "x"}, {"shows_stop": True, "stop": ("x",)}),
]


@pytest.mark.parametrize(("given", "expected"), ENDINGS, ids=str)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_request_says_how_its_answer_ends(
    served: Served, path: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    used(served, path, **given)
    sampling = served.engine.submitted[-1].sampling
    for name, value in expected.items():
        assert getattr(sampling, name) == (getattr(sampling, value) if value == "max_tokens" else value)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_request_that_gives_nothing_has_what_the_model_recommends(served: Served, path: str) -> None:
    assert used(served, path) == RECOMMENDED
    assert used(served, path, temperature=None, top_p=None) == RECOMMENDED


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 1}, (1.0, 0.9, 20, 0.05, 1.1)),
        ({"temperature": 0}, (0.0, 0.9, 20, 0.05, 1.1)),
        ({"top_p": 1}, (0.2, 1.0, 20, 0.05, 1.1)),
        ({"top_k": -1}, (0.2, 0.9, None, 0.05, 1.1)),
        ({"top_k": 0}, (0.2, 0.9, None, 0.05, 1.1)),
        ({"top_k": 3, "min_p": 0}, (0.2, 0.9, 3, 0.0, 1.1)),
        ({"repetition_penalty": 1}, (0.2, 0.9, 20, 0.05, 1.0)),
        ({"temperature": None, "top_p": 0.5}, (0.2, 0.5, 20, 0.05, 1.1)),
        (dict(zip(FIELDS, (1, 1, -1, 0, 1), strict=True)), PLAIN),
    ],
)
def test_request_wins_over_the_model_field_by_field(
    served: Served, given: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert used(served, **given) == expected


def test_response_says_what_it_was_sampled_with(served: Served) -> None:
    body = {"model": "auto", "input": "hello"}
    assert [served.post("/v1/responses", body).json()[name] for name in FIELDS[:2]] == [0.2, 0.9]
    given = {**body, "temperature": 1}
    assert [served.post("/v1/responses", given).json()[name] for name in FIELDS[:2]] == [1.0, 0.9]


@pytest.mark.parametrize(
    ("sampling", "is_on"), [(None, True), (CARD, False), (RecommendedSampling(top_k=-1, temperature=1.0), True)]
)
def test_defaults_are_the_apis_without_a_recommendation_or_with_it_turned_off(
    tmp_path: Path, sampling: RecommendedSampling | None, is_on: bool
) -> None:
    with serving(tmp_path, sampling, ServerConfig(recommended_sampling=is_on)) as served:
        assert [used(served, path) for path in ENDPOINTS] == [PLAIN] * 3


def test_models_lists_the_recommendation(served: Served, tmp_path: Path) -> None:
    def listed(served: Served) -> list[Any]:
        return [model["fenhe"]["recommended_sampling"] for model in served.http.get("/v1/models").json()["data"]]

    assert listed(served) == [dict(zip(FIELDS, RECOMMENDED, strict=True))] * 4
    assert served.client.models.retrieve("tiny").model_extra
    some = RecommendedSampling(temperature=0.6)
    with serving(tmp_path / "some", some, ServerConfig()) as other:
        assert listed(other)[0] == {**dict.fromkeys(FIELDS), "temperature": 0.6}
    with serving(tmp_path / "off", CARD, ServerConfig(recommended_sampling=False)) as other:
        assert listed(other) == [None] * 4


def test_recommended_greedy_makes_answers_repeatable(tmp_path: Path) -> None:
    """`do_sample: false` of a model: the same question again is a hit."""
    with serving(tmp_path, RecommendedSampling(temperature=0.0), ServerConfig()) as served:
        assert [served.chat("hello").headers["x-fenhe-cache"] for _ in range(2)] == ["miss", "hit"]
        assert served.chat("hello", temperature=1).headers["x-fenhe-cache"] == "bypass"


def test_recommended_sampling_at_random_is_not_kept(served: Served) -> None:
    assert [served.chat("hello").headers["x-fenhe-cache"] for _ in range(2)] == ["bypass"] * 2


def test_values_that_are_really_used_are_in_the_cache_key(served: Served) -> None:
    """A seed makes answers repeatable: what is spelled out finds what was left to the model, and nothing else does."""
    assert served.chat("hello", seed=1).headers["x-fenhe-cache"] == "miss"
    same: dict[str, Any] = dict(zip(FIELDS, RECOMMENDED, strict=True))
    assert served.chat("hello", seed=1, **same).headers["x-fenhe-cache"] == "hit"
    others: list[dict[str, Any]] = [{name: 1} for name in FIELDS]
    assert [served.chat("hello", seed=1, **one).headers["x-fenhe-cache"] for one in others] == ["miss"] * 5
