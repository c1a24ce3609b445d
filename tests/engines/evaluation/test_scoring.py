"""All texts of a precision: the same scores as one by one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.evaluation.scorer import PathRuns, Scorer, stages_of
from engines.evaluation.scoring import EncodedTexts, Shown, encoded, score_answers, score_texts
from engines.evaluation.writing import Written
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.evaluation.rows import OWN_WORDS, Row
from models.evaluation.scores import PathHead, RowScore
from models.evaluation.texts import Pair, PlainText

PATHS = ("knowledge", "full")
FULL = PathHead("full", "exact")
FACTS = [Row(dataset="trivia", task="fact", prompt=f"what is {n}{n}?", answer=f"{n}x{n}") for n in range(1, 7)]
TEXTS = [Row(dataset="texts", task="legal", prompt="the fox", answer="jumps over the lazy dog 0123 and over it again")]


@pytest.fixture
def student(tiny_student: Callable[..., Any]) -> Any:
    return tiny_student("llama").student


def runs_of(student: Any, paths: tuple[str, ...] = PATHS) -> PathRuns:
    runner = OnnxRunner(
        student, PrecisionPlan(many="fp32"), RunnerLimits(num_slots=3, capacity_tokens=64, num_threads=1)
    )
    for stage in stages_of(student.manifest, paths):
        runner.load(stage)
    return PathRuns(runner, student.manifest, paths)


def texts_of(student: Any, rows: list[Row]) -> EncodedTexts:
    plain = [PlainText(task="legal", text="the lazy fox"), PlainText(task="general", text="")]
    pairs = [Pair(set="s", good="foxes jump", bad="foxes jumps")]
    return encoded(rows, plain, pairs, student.tokenizer, 64)


def scored(student: Any, texts: EncodedTexts) -> dict[PathHead, list[RowScore]]:
    scores = score_texts(runs_of(student), "full", texts, None, Shown("fp32", None))
    return {column: held.rows for column, held in scores.items()}


def close(one: RowScore, other: RowScore) -> bool:
    assert (one.blind_nats is None) == (other.blind_nats is None)
    assert (one.blind_nats or 0.0) == pytest.approx(other.blind_nats or 0.0, rel=1e-5)
    assert one.nats == pytest.approx(other.nats, rel=1e-5)
    return replace(one, blind_nats=None, nats=0.0) == replace(other, blind_nats=None, nats=0.0)


def test_blind_answers_are_those_of_each_row_alone(student: Any) -> None:
    texts = texts_of(student, [*FACTS, *TEXTS])
    assert [bool(passage.other_question) for passage in texts.passages] == [True] * 6 + [False]
    together, scorer = scored(student, texts), Scorer(runs_of(student), "full")
    for index, passage in enumerate(texts.passages):
        for column, score in scorer.score(passage).items():
            assert close(together[column][index], score)


def test_choices_are_scored_in_every_wording_of_the_question(student: Any) -> None:
    """One wording is too long for the texts' 64 tokens and is left out."""
    asked = replace(FACTS[0], right="1x1", wrong=("2x2", "3x4"), rewordings=("say 11 ", "words " * 60, "and 11?"))
    texts, scorer = texts_of(student, [asked, *FACTS[1:]]), Scorer(runs_of(student), "full")
    passage = texts.passages[0]
    assert [len(reworded.branches) for reworded in passage.rewordings] == [2, 2]
    for column, rows in scored(student, texts).items():
        expected = [scorer.score(reworded)[column].choice_nats for reworded in passage.rewordings]
        assert np.array(rows[0].reworded_choice_nats) == pytest.approx(np.array(expected), rel=1e-5)
        assert rows[0].choice_nats == pytest.approx(scorer.score(passage)[column].choice_nats, rel=1e-5)
        assert not rows[1].reworded_choice_nats


def test_a_part_has_the_scores_that_it_has_in_the_whole(student: Any) -> None:
    """Rows whose other question is not in the part are asked it all the same."""
    texts = texts_of(student, [*FACTS, *TEXTS])
    part = texts.part(2, 1)
    assert (part.rows, part.plain, part.pairs) == ((0, 3, 6), (0,), (0,))
    whole = score_texts(runs_of(student), "full", texts, None, Shown("fp32", None))
    some = score_texts(runs_of(student), "full", texts.taken(part), None, Shown("fp32", None))
    for column, held in some.items():
        expected = part.scores(whole[column])
        assert all(close(one, other) for one, other in zip(held.rows, expected.rows, strict=True))
        assert (held.plain, held.pairs) == (expected.plain, expected.pairs)


def test_predictions_are_compared_on_own_words_where_a_task_has_some(student: Any) -> None:
    own = [replace(TEXTS[0], dataset=OWN_WORDS)]
    found = scored(student, texts_of(student, [*TEXTS, *own, FACTS[0]]))[FULL]
    assert [row.full_kl is not None for row in found] == [False, True, True]


def test_texts_of_nothing_are_skipped_and_counted(student: Any) -> None:
    texts = texts_of(student, TEXTS)
    assert ([task for task, _ in texts.plain], texts.num_skipped) == (["legal"], 1)


def test_answers_are_scored_by_the_full_path_whoever_wrote_them(student: Any) -> None:
    said = Written(task="legal", prompt="why?", answer="fox fox fox fox fox fox", is_complete=True)
    written = {PathHead("knowledge", "exact"): [said], FULL: [said]}
    found = score_answers(runs_of(student, ("full",)), written, student.tokenizer, 64, Shown("fp32", None))
    assert found[FULL] == found[PathHead("knowledge", "exact")]
    (answer,) = found[FULL]
    assert answer.num_ngrams == answer.num_tokens - 3
    assert answer.num_repeated > 0
    assert answer.nats > 0
