"""Which words of a text a verdict hangs on: the text is classified without each of them in turn.

Source: Zeiler and Fergus 2014, section 4.2 (occlusion), on words.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from router.conversation import Conversation
from router.decision import TaskScores
from router.tasks import Task

Classify = Callable[[Conversation], TaskScores | None]

MAX_WORDS = 64
MAX_CHARS = 2000
"""Longer texts hang on no single word, and every word costs a classification."""

_WORD = re.compile(r"[\u3400-\u9fff]{1,2}|[^\s\u3400-\u9fff]+")
"""Chinese has no spaces: two ideographs are a word often enough."""


@dataclass(slots=True, kw_only=True, frozen=True)
class WordPull:
    """A word, `text[start:end]` of the last turn. `pull` is what the likeliest task's probability loses without it;
    `task` the verdict without it."""

    start: int
    end: int
    pull: float
    task: Task


def explain(classify: Classify, conversation: Conversation, scores: TaskScores) -> list[WordPull]:
    """Empty for a long text, for a single word, and where the classifier fails."""
    text = conversation.last
    words = [match.span() for match in _WORD.finditer(text[: MAX_CHARS + 1])]
    if len(text) > MAX_CHARS or not 1 < len(words) <= MAX_WORDS:
        return []
    likeliest = max(scores.probabilities, key=lambda task: scores.probabilities[task])
    pulls = []
    for start, end in words:
        without = classify(replace(conversation, last=text[:start] + text[end:]))
        if without is None:
            return []
        pull = scores.probabilities[likeliest] - without.probabilities[likeliest]
        pulls.append(WordPull(start=start, end=end, pull=pull, task=without.task))
    return pulls
