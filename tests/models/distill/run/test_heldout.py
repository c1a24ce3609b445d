"""Held-out figures of an exit against the full depth."""

from collections.abc import Callable
from math import exp, log
from pathlib import Path

import pytest
import torch

from models.distill.data.examples import encode_rows
from models.distill.data.rows import Row
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.distill.run.heldout import HeldOutFigure, score_held_out
from models.sources.source import ModelSource, open_source

ROWS = [
    Row(task="math", prompt="the quick fox", answer="jumps over", source="test"),
    Row(task="fact", prompt="a dog", answer=None, source="test"),
    Row(task="math", prompt="over", answer="the lazy dog", source="test"),
    Row(task="fact", prompt="a dog", answer="and then other foxes", source="test"),
    Row(task="math", prompt="third", answer="of its task", source="test"),
]


@pytest.fixture
def source(tiny_source: Callable[..., Path]) -> ModelSource:
    return open_source(tiny_source("llama"))


@pytest.fixture
def trunk(source: ModelSource) -> Trunk:
    return Trunk(source)


def exit_of(trunk: Trunk, name: str, depth: int) -> ExitModel:
    return ExitModel(trunk, name=name, depth=depth, copied_from=(3,), has_map=True)


def scored(trunk: Trunk, source: ModelSource, *exits: ExitModel, max_rows: int = 2) -> list[HeldOutFigure]:
    return score_held_out(trunk, exits, ROWS, source.tokenizer(), 96, max_rows)


def test_an_exit_that_is_the_full_depth_loses_nothing(trunk: Trunk, source: ModelSource) -> None:
    for figure in scored(trunk, source, exit_of(trunk, "same", 3)):
        assert figure.kl == pytest.approx(0.0, abs=1e-5)
        assert figure.agreement == 1.0
        assert figure.perplexity_ratio == pytest.approx(1.0, abs=1e-5)


def test_figures_are_by_exit_and_task_over_the_first_answered_rows(trunk: Trunk, source: ModelSource) -> None:
    found = scored(trunk, source, exit_of(trunk, "b", 2), exit_of(trunk, "a", 1))
    assert [(f.exit, f.task) for f in found] == [("a", "fact"), ("a", "math"), ("b", "fact"), ("b", "math")]
    examples, _ = encode_rows([ROWS[3], ROWS[0], ROWS[2]], source.tokenizer(), 96)
    sizes = [example.num_tokens - example.num_prompt_tokens for example in examples]
    assert [figure.num_tokens for figure in found[:2]] == [sizes[0], sizes[1] + sizes[2]]
    assert all(figure.kl > 0.01 and figure.agreement < 1 for figure in found)


def test_figures_are_those_of_every_answer_token_one_by_one(trunk: Trunk, source: ModelSource) -> None:
    exit = exit_of(trunk, "a", 2)
    (example,), _ = encode_rows([ROWS[3]], source.tokenizer(), 96)
    kl, loss, full_loss, agreed = 0.0, 0.0, 0.0, 0
    with torch.no_grad():
        for end in range(example.num_prompt_tokens, example.num_tokens):
            hidden = trunk.run(trunk.embed(torch.tensor([example.token_ids[:end]])), range(2))
            p = trunk.logits(trunk.norm(trunk.run(hidden, range(2, 4)))[0, -1]).softmax(-1)
            q = trunk.logits(exit(hidden)[0, -1]).softmax(-1)
            target = example.token_ids[end]
            kl += float((p * (p / q).log()).sum())
            loss -= log(float(q[target]))
            full_loss -= log(float(p[target]))
            agreed += int(p.argmax() == q.argmax())
    count = example.num_tokens - example.num_prompt_tokens
    (figure,) = (figure for figure in scored(trunk, source, exit) if figure.task == "fact")
    assert figure.num_tokens == count
    assert figure.kl == pytest.approx(kl / count, rel=1e-3)
    assert figure.agreement == pytest.approx(agreed / count)
    assert (figure.cross_entropy, figure.full_cross_entropy) == pytest.approx((loss / count, full_loss / count), 1e-3)
    assert figure.perplexity_ratio == pytest.approx(exp((loss - full_loss) / count), rel=1e-3)
