"""Which words a verdict hangs on."""

import pytest

from router.classifier.explanation import MAX_CHARS, MAX_WORDS, explain
from router.conversation import Conversation
from router.decision import TaskScores
from router.tasks import GENERAL, TASKS


def classify(conversation: Conversation) -> TaskScores:
    """Sure of mathematics in the measure of the sevens in a text."""
    share = min(0.9, 0.3 * conversation.last.count("seven"))
    rest = (1 - share) / (len(TASKS) - 1)
    task = "math" if share > 0.5 else GENERAL
    scores = {one: share if one == "math" else rest for one in TASKS}
    return TaskScores(task=task, confidence=max(scores.values()), probabilities=scores)


def test_words_are_weighed_by_what_is_lost_without_them() -> None:
    conversation = Conversation(last="seven plus seven is")
    pulls = explain(classify, conversation, classify(conversation))
    assert [(one.start, one.end) for one in pulls] == [(0, 5), (6, 10), (11, 16), (17, 19)]
    assert [round(one.pull, 2) for one in pulls] == [0.3, 0.0, 0.3, 0.0]
    assert [one.task for one in pulls] == ["general", "math", "general", "math"]


def test_ideographs_are_taken_in_pairs() -> None:
    conversation = Conversation(last="三只蜘蛛 seven")
    spans = [(one.start, one.end) for one in explain(classify, conversation, classify(conversation))]
    assert spans == [(0, 2), (2, 4), (5, 10)]


def test_what_was_said_before_stays() -> None:
    seen = []

    def watch(conversation: Conversation) -> TaskScores:
        seen.append(conversation)
        return classify(conversation)

    conversation = Conversation(last="one two", earlier=("before",), system=("be brief",))
    explain(watch, conversation, classify(conversation))
    assert [one.last for one in seen] == [" two", "one "]
    assert {(one.earlier, one.system) for one in seen} == {(("before",), ("be brief",))}


@pytest.mark.parametrize("text", ["", "one", "a " * (MAX_WORDS + 1), "a" * MAX_CHARS + " b"])
def test_texts_that_hang_on_no_word_are_not_explained(text: str) -> None:
    conversation = Conversation(last=text)
    assert explain(classify, conversation, classify(conversation)) == []


def test_classifier_that_fails_explains_nothing() -> None:
    conversation = Conversation(last="seven seven")
    assert explain(lambda _: None, conversation, classify(conversation)) == []
