"""The semantic cache: finds the kept answer to a question that says nearly the same.

Similarity is the cosine of character and word n-grams: it sees spelling, not meaning. Words that can reverse a meaning
(numbers, names, negations, question words) must therefore be equal in both. `fenhe bench similar` measures how often it
is wrong all the same.
"""

import hashlib
import re
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.sequence import GenerationRequest
from router.cache.key import Origin, cache_key
from router.classifier.features import HEAD_CHARS, TAIL_CHARS, read_features

NUM_BITS = 10
MAX_CHARS = HEAD_CHARS + TAIL_CHARS
"""Of longer texts only the ends are read, so they are never compared."""

_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_REVERSING_WORDS = """
no not never none nothing nobody without neither nor cannot un more less most least fewer before after above below over
under up down in out on off from to into with against first last next previous since until all any every some only
except who whom whose what when where why how which minimum maximum increase decrease true false left right north south
east west
"""
_REVERSING = frozenset(_REVERSING_WORDS.split())
_CHINESE_REVERSING = re.compile("[不没未无非勿莫别前后上下左右内外多少大小最先]|[一二三四五六七八九十百千万亿两]+")

Vector = npt.NDArray[np.float32]


class Reading(NamedTuple):
    """A question as it is compared. Shapes: `vector` [2 ** NUM_BITS], of length 1."""

    vector: Vector
    marks: tuple[str, ...]


@dataclass(slots=True, kw_only=True, frozen=True)
class Question:
    """The last thing a user said, and a hash of the rest of the request. `threshold` is that of its task."""

    group: str
    reading: Reading
    threshold: float


def read_question(
    origin: Origin,
    requests: Sequence[GenerationRequest],
    prompt: str,
    last: str,
    *,
    threshold: float,
    max_context_tokens: int,
) -> Question | None:
    """`prompt` is the whole text that the model reads, `last` the user's words in it. None when those words cannot be
    found in it or are too long to compare, and when the answer has scores of the prompt's own tokens."""
    before, found, after = prompt.rpartition(last)
    if not found or not last.strip() or len(last) > MAX_CHARS:
        return None
    if any(request.prompt_token_ids != requests[0].prompt_token_ids for request in requests):
        return None
    if any(request.sampling.prompt_logprobs is not None for request in requests):
        return None
    rest = cache_key(origin, [_without_prompt(request, max_context_tokens) for request in requests])
    group = hashlib.sha256("\0".join((rest, str(len(before)), before, after)).encode(errors="surrogatepass"))
    return Question(group=group.hexdigest(), reading=read_text(last), threshold=threshold)


def _without_prompt(request: GenerationRequest, max_context_tokens: int) -> GenerationRequest:
    """An answer that may fill the context is limited by the prompt's length alone: that limit is taken out too."""
    num_tokens = request.num_prompt_tokens + request.sampling.max_tokens
    fills = num_tokens >= max_context_tokens
    sampling = replace(request.sampling, max_tokens=num_tokens) if fills else request.sampling
    return replace(request, prompt_token_ids=(), sampling=sampling, remote=None)


def read_text(text: str) -> Reading:
    counts = np.bincount(read_features(text, NUM_BITS).whole, minlength=1 << NUM_BITS)
    vector = np.sqrt(counts, dtype=np.float32)
    vector /= max(float(np.linalg.norm(vector)), 1e-9)
    return Reading(vector, _marks(text))


def similarity(one: Reading, other: Reading) -> float:
    """From 0 to 1; 0 when the words differ that can reverse a meaning."""
    return float(one.vector @ other.vector) if one.marks == other.marks else 0.0


def _marks(text: str) -> tuple[str, ...]:
    """What must be equal: numbers, names (capitalised words after the first) and words that reverse a meaning."""
    words = _WORD.findall(text)
    names = {word.lower() for word in words[1:] if word[0].isupper()}
    reversing = [word.lower() for word in words if word.lower() in _REVERSING or word.lower().endswith(("n't", "n’t"))]
    return (*_NUMBER.findall(text), *sorted(names), *sorted(reversing), *sorted(_CHINESE_REVERSING.findall(text)))


class SimilarIndex:
    """Questions whose answers were kept, by group. The one found least recently is dropped first."""

    def __init__(self, max_questions: int) -> None:
        self._max_questions = max_questions
        self._readings: OrderedDict[tuple[str, str], Reading] = OrderedDict()
        self._keys: defaultdict[str, set[str]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._readings)

    def add(self, question: Question, key: str) -> None:
        self._readings[question.group, key] = question.reading
        self._readings.move_to_end((question.group, key))
        self._keys[question.group].add(key)
        while len(self._readings) > self._max_questions:
            self.forget(*next(iter(self._readings)))

    def nearest(self, question: Question) -> tuple[str, float] | None:
        """The key of the most similar question's answer, and the similarity; None when none reaches the threshold."""
        keys = self._keys.get(question.group, ())
        near = [(similarity(question.reading, self._readings[question.group, key]), key) for key in keys]
        score, key = max(near, default=(0.0, ""))
        if not key or score < question.threshold:
            return None
        self._readings.move_to_end((question.group, key))
        return key, score

    def forget(self, group: str, key: str) -> None:
        """Drop a question whose answer is gone."""
        self._readings.pop((group, key), None)
        self._keys[group].discard(key)
        if not self._keys[group]:
            del self._keys[group]
