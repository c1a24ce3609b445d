"""What is timed: prompts of every length from 20 to 2,000 characters in both languages, and very long ones.

They are drawn from the grammars that ship, the same every time; longer ones are several joined end to end.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from router.training.corpus import Row

SEED = 20
LANGS = ("en", "zh")
LONG_CHARS = 100_000
_BETWEEN = {"en": " ", "zh": ""}


@dataclass(slots=True, kw_only=True, frozen=True)
class Texts:
    """How many there are per language: `num_own` as the grammars give them, `num_joined` of evenly spread lengths.

    `num_longest` have exactly 2,000 characters, `num_long` 100,000.
    """

    num_own: int = 200
    num_joined: int = 200
    num_longest: int = 100
    num_long: int = 100


@dataclass(slots=True, kw_only=True, frozen=True)
class Sample:
    lang: str
    text: str


@dataclass(slots=True, kw_only=True, frozen=True)
class LengthClass:
    """Samples of one language (None: of all) from `shortest` to `longest` characters; `suffix` names its figures."""

    suffix: str
    title: str
    shortest: int = 0
    longest: int = LONG_CHARS
    lang: str | None = None

    def has(self, sample: Sample) -> bool:
        return self.lang in (None, sample.lang) and self.shortest <= len(sample.text) <= self.longest


def _classes() -> tuple[LengthClass, ...]:
    bounds = (("200", "up to 200", 0, 200), ("1000", "201 to 1,000", 201, 1000), ("2000", "2,000", 2000, 2000))
    found = [
        LengthClass(suffix=f"_{lang}_{name}", title=f"{lang} {title}", shortest=low, longest=high, lang=lang)
        for lang in LANGS
        for name, title, low, high in bounds
    ]
    found.append(LengthClass(suffix="_2000", title="2,000", shortest=2000, longest=2000))
    found.append(LengthClass(suffix="_100k", title="100,000", shortest=LONG_CHARS))
    found.append(LengthClass(suffix="", title="up to 2,000", longest=2000))
    return tuple(found)


CLASSES = _classes()
MIX = CLASSES[-1]


def draw_samples(rows: Sequence[Row], counts: Texts) -> list[Sample]:
    """Samples in mixed order; the same rows give the same ones."""
    rng = random.Random(SEED)
    samples = []
    for lang in LANGS:
        own = [row.text for row in rows if row.lang == lang and len(row.text) <= MIX.longest]
        rng.shuffle(own)
        stream = _lay_end_to_end(own, _BETWEEN[lang], 2 * LONG_CHARS)
        joined = [_window(stream, length, rng) for length in _lengths(counts)]
        samples += [Sample(lang=lang, text=text) for text in (*own[: counts.num_own], *joined)]
    rng.shuffle(samples)
    return samples


def _lengths(counts: Texts) -> list[int]:
    """Three quarters of the joined ones have up to 1,000 characters, as most prompts do."""
    num_shorter = counts.num_joined * 3 // 4
    shorter = _spread(20, 1000, num_shorter)
    longer = _spread(1001, 1999, counts.num_joined - num_shorter)
    return [*shorter, *longer, *[MIX.longest] * counts.num_longest, *[LONG_CHARS] * counts.num_long]


def _spread(first: int, last: int, count: int) -> list[int]:
    return [first + (last - first) * number // max(count - 1, 1) for number in range(count)]


def _lay_end_to_end(texts: Sequence[str], between: str, num_chars: int) -> str:
    once = between.join(texts) + between
    return once * (num_chars // len(once) + 1)


def _window(stream: str, length: int, rng: random.Random) -> str:
    start = rng.randrange(len(stream) - length)
    return stream[start : start + length]
