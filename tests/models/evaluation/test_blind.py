"""After which other question every answer is scored."""

from models.evaluation.blind import SHORT_ANSWER_TOKENS, are_short, with_other_questions
from models.evaluation.rows import Passage


def passage(question: tuple[int, ...], answer: tuple[int, ...], dataset: str = "d", task: str = "fact") -> Passage:
    return Passage(dataset=dataset, task=task, token_ids=(*question, *answer), boundary=len(question))


def others(*passages: Passage, max_tokens: int = 100) -> list[tuple[int, ...]]:
    return [one.other_question for one in with_other_questions(passages, max_tokens)]


def test_short_is_short_on_average() -> None:
    assert are_short([1, 2 * SHORT_ANSWER_TOKENS - 1])
    assert not are_short([1, 2 * SHORT_ANSWER_TOKENS])


def test_every_row_gets_the_question_half_a_round_away() -> None:
    assert others(*(passage((n,), (10 + n,)) for n in range(4))) == [(2,), (3,), (0,), (1,)]


def test_the_other_question_is_of_the_same_dataset_and_task() -> None:
    mixed = (passage((1,), (11,)), passage((2,), (12,), "other"), passage((3,), (13,), task="legal"))
    assert others(*mixed) == [(), (), ()]
    assert others(*mixed, passage((4,), (14,)))[0] == (4,)


def test_the_same_question_or_answer_is_no_other_one() -> None:
    rows = (passage((1,), (10,)), passage((2,), (11,)), passage((1,), (12,)), passage((3,), (10,)))
    assert others(*rows) == [(2,), (3,), (2,), (2,)]
    assert others(passage((1,), (10,)), passage((2,), (10,))) == [(), ()]


def test_a_question_that_leaves_no_room_for_the_answer_is_passed_over() -> None:
    long = passage((7,) * 9, (1,))
    assert others(passage((1,), (2, 3)), long, passage((4,), (5,)), max_tokens=10) == [(4,), (4,), (1,)]


def test_long_answers_are_not_asked_behind_another_question() -> None:
    long = tuple(range(SHORT_ANSWER_TOKENS + 1))
    assert others(passage((1,), long), passage((2,), long[::-1])) == [(), ()]
