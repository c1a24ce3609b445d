"""Prompts of every task in English and Chinese, of a wanted length, no two alike. The texts are in `prompts/`, our
own."""

import random
import re
import string
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loadtest.traffic.workload import Lengths

FOLDER = Path(__file__).parent / "prompts"
_NAMES = {
    "en": ("Ada", "Ben", "Clara", "David", "Elena", "Farid", "Grace", "Hugo", "Irene", "Jonas", "Kira", "Leo", "Mona"),
    "zh": ("小明", "小红", "李雷", "王芳", "张伟", "刘洋", "陈静", "赵强", "周敏", "吴磊"),
}
_CITIES = {
    "en": ("Oslo", "Rome", "Lima", "Cairo", "Boston", "Kyoto", "Nairobi", "Porto", "Vienna", "Tallinn", "Quito"),
    "zh": ("北京", "上海", "广州", "成都", "杭州", "西安", "南京", "武汉", "青岛", "厦门"),
}
_NUMBERS = {"n": (12, 9800), "m": (3, 180), "k": (2, 24), "m2": (10, 99), "n3": (100, 999)}
_SLOT = re.compile(r"{(\w+)}")
_COUNTED = re.compile(r"[A-Za-z]+|\d|[\u4e00-\u9fff]|[^\sA-Za-z\d\u4e00-\u9fff]")
TOKENS_PER_HAN = 1.8
MORE = 1.04
"""Tokens over parts of words: fitted to these prompts, as `TOKENS_PER_HAN` is. Within 5 % for one prompt in English."""
LONG_WORD = 9
"""Letters. Longer words are counted as one token and a half."""


@dataclass(slots=True, frozen=True)
class Texts:
    """Of one task in one language."""

    questions: tuple[str, ...]
    context: tuple[str, ...]


@cache
def texts(task: str, language: str) -> Texts:
    content = tomllib.loads((FOLDER / f"{task}.toml").read_text(encoding="utf-8"))[language]
    return Texts(tuple(content["questions"]), tuple(content["context"]))


@cache
def estimate_tokens(text: str) -> float:
    """About how many tokens SmolLM2's tokenizer makes of it: words, digits and signs count one each, Han characters
    `TOKENS_PER_HAN`. What the server counted is in the results.
    """
    total = 0.0
    for part in _COUNTED.findall(text):
        if "\u4e00" <= part[0] <= "\u9fff":
            total += TOKENS_PER_HAN
        else:
            total += 1.5 if len(part) > LONG_WORD else 1.0
    return MORE * total


def draw_length(lengths: Lengths, rng: random.Random) -> int:
    if lengths.least == lengths.most:
        return lengths.least
    while True:
        drawn = round(lengths.median * rng.lognormvariate(0.0, lengths.spread))
        if lengths.least <= drawn <= lengths.most:
            return drawn


def compose(task: str, language: str, num_tokens: int, rng: random.Random) -> str:
    """A question, after as much context as the length leaves room for. Numbers and names are drawn anew each time, and
    a reference at the end makes sure that no two are alike.
    """
    source = texts(task, language)
    question = _fill(rng.choice(source.questions), language, rng) + reference(rng)
    parts: list[str] = []
    left = num_tokens - estimate_tokens(question)
    unused: list[str] = []
    while left > 0:
        unused = unused or rng.sample(source.context, len(source.context))
        sentence = _fill(unused.pop(), language, rng)
        size = estimate_tokens(sentence)
        if size / 2 > left:
            break
        parts.append(sentence)
        left -= size
    return ("" if language == "zh" else " ").join([*parts, question])


def reference(rng: random.Random) -> str:
    return " (" + "".join(rng.choices(string.ascii_lowercase, k=5)) + ")"


def system_prompt(num_tokens: int) -> str:
    """The same for all sessions of a workload."""
    return compose("general", "en", num_tokens, random.Random("system"))


def _fill(text: str, language: str, rng: random.Random) -> str:
    def value(found: re.Match[str]) -> str:
        slot = found.group(1)
        if slot == "name":
            return rng.choice(_NAMES[language])
        return rng.choice(_CITIES[language]) if slot == "city" else str(rng.randint(*_NUMBERS[slot]))

    return _SLOT.sub(value, text)
