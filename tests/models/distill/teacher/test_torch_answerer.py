"""Answers from plain torch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.distill.teacher.torch_answerer import TorchAnswerer, sample
from models.errors import ConfigError
from models.reference import ReferenceDecoder
from models.sources.source import ModelSource, open_source

PROMPTS = [(5, 6, 7), (40, 41), (100,)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def source(tiny_source: Callable[..., Path]) -> ModelSource:
    return open_source(tiny_source("llama"))


def answers(answerer: TorchAnswerer, prompts: list[tuple[int, ...]] = PROMPTS, **change: Any) -> dict[int, Any]:
    settings = {"max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0} | change
    return dict(answerer.answer(prompts, **settings))


def test_answers_are_the_greedy_ones_without_a_cache(source: ModelSource) -> None:
    decoder = ReferenceDecoder(source)
    for index, answer in answers(TorchAnswerer(source)).items():
        ids = list(PROMPTS[index])
        for token in answer:
            assert token == int(decoder.forward(ids)[-1].argmax())
            ids.append(token)


def test_answers_stop_with_the_end_token(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = TorchAnswerer(source)
    whole = answers(answerer)[0]
    assert len(whole) == 12
    monkeypatch.setattr(answerer, "_end_ids", frozenset({whole[3]}))
    assert answers(answerer)[0] == whole[: whole.index(whole[3]) + 1]


def test_sampled_answers_depend_on_prompt_and_seed_alone(source: ModelSource) -> None:
    answerer = TorchAnswerer(source)
    hot: dict[str, Any] = {"temperature": 5.0}
    drawn = answers(answerer, **hot)
    assert answers(answerer, PROMPTS[1:], **hot)[0] == drawn[1]
    assert answers(answerer, seed=1, **hot) != drawn
    assert drawn != answers(answerer)


def test_a_prompt_beyond_the_context_is_refused(source: ModelSource) -> None:
    with pytest.raises(ConfigError, match="set max_prompt_tokens to at most 116"):
        answers(TorchAnswerer(source), [(5,) * 117])
    assert len(answers(TorchAnswerer(source), [(5,) * 116])) == 1


def drawn(probabilities: list[float], temperature: float, top_p: float) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.tensor(probabilities).log()
    return {sample(logits_V, temperature, top_p, generator) for _ in range(300)}


@pytest.mark.parametrize(
    ("temperature", "top_p", "possible"),
    [
        (0.0, 1.0, {2}),
        (1.0, 1.0, {0, 1, 2, 3}),
        (1.0, 0.05, {2}),
        (1.0, 0.49, {2}),
        (1.0, 0.51, {2, 0}),
        (1.0, 0.85, {2, 0, 3}),
        (0.05, 1.0, {2}),
        (2.0, 0.6, {2, 0}),
    ],
)
def test_sample_draws_from_the_fewest_that_reach_top_p(temperature: float, top_p: float, possible: set[int]) -> None:
    assert drawn([0.3, 0.05, 0.5, 0.15], temperature, top_p) == possible


def test_sample_draws_in_proportion() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.tensor([0.25, 0.75]).log()
    share = sum(sample(logits_V, 1.0, 1.0, generator) for _ in range(1000)) / 1000
    assert 0.70 < share < 0.80
