"""Blind answers: the same answer after another row's question.

Much of a short answer's likelihood is its form: a path that has learned to answer in three words finds any three words
likely. What it knows shows in how much likelier the answer is after its own question than after another row's.
"""

from collections.abc import Sequence
from dataclasses import replace

from models.evaluation.rows import Passage

SHORT_ANSWER_TOKENS = 16
"""The most that short answers have on average: less than a sentence, whose beginning would tell much of its end."""


def are_short(lengths: Sequence[int]) -> bool:
    """Whether answers of these lengths in tokens are short, taken together."""
    return sum(lengths) <= SHORT_ANSWER_TOKENS * len(lengths)


def with_other_questions(passages: Sequence[Passage], max_tokens: int) -> list[Passage]:
    """The passages; where a dataset's answers are short, each with another row's question of that dataset and task.

    Deterministic. A row for which no other row has a different question and answer, and fits, gets none.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, passage in enumerate(passages):
        groups.setdefault((passage.task, passage.dataset), []).append(index)
    found = list(passages)
    for indices in groups.values():
        group = [passages[index] for index in indices]
        if are_short([passage.num_answer_tokens for passage in group]):
            for place, index in enumerate(indices):
                found[index] = replace(passages[index], other_question=_other_question(group, place, max_tokens))
    return found


def _other_question(group: Sequence[Passage], place: int, max_tokens: int) -> tuple[int, ...]:
    """Searched for from half the group away on: neighbours in a file may come from one text."""
    own = group[place]
    for step in range(len(group)):
        other = group[(place + len(group) // 2 + step) % len(group)]
        differs = other.question != own.question and other.answer != own.answer
        if differs and other.boundary + own.num_answer_tokens <= max_tokens:
            return other.question
    return ()
