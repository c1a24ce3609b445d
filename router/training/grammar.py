"""Prompts written for the classifier: templates with slots, in `LANG/LABEL.toml` and `LANG/LABEL-2.toml`.

A prompt may hold `[[slot]]`, `[[one|or|another]]` and `[[2..99]]`; a slot's values may hold them again.
"""

import math
import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigError

GRAMMAR_FOLDER = Path(__file__).parent / "grammar"
MAX_DRAWS = 30
"""The most texts that one template gives; one with fewer variants gives as many as it has."""

_PLACE = re.compile(r"\[\[([^\[\]]+)\]\]")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MAX_DEPTH = 8


@dataclass(slots=True, kw_only=True, frozen=True)
class Style:
    """Prompts of one register (exam, lay question, bare premise, ...)."""

    name: str
    prompts: tuple[str, ...]


@dataclass(slots=True, kw_only=True, frozen=True)
class Grammar:
    """The prompts of one file: one label in one language."""

    name: str
    label: str
    lang: str
    slots: dict[str, tuple[str, ...]]
    styles: tuple[Style, ...]

    def expand(self, prompt: str, rng: random.Random) -> str:
        """One text of a prompt, its places filled at random."""
        return self._fill(prompt, rng, _MAX_DEPTH)

    def num_variants(self, prompt: str, depth: int = _MAX_DEPTH) -> int:
        """How many texts a prompt can give (an upper bound: equal ones count twice)."""
        self._check_depth(prompt, depth)
        count = 1
        for inner in _PLACE.findall(prompt):
            count *= self._num_choices(inner, depth)
        return count

    def _num_choices(self, inner: str, depth: int) -> int:
        if "|" in inner:
            return len(inner.split("|"))
        span = _RANGE.fullmatch(inner)
        if span is not None:
            return int(span[2]) - int(span[1]) + 1
        return sum(self.num_variants(value, depth - 1) for value in self.slots[inner])

    def _fill(self, text: str, rng: random.Random, depth: int) -> str:
        self._check_depth(text, depth)
        return _PLACE.sub(lambda match: self._draw(match[1], rng, depth), text)

    def _check_depth(self, text: str, depth: int) -> None:
        if depth == 0:
            raise ConfigError(f"the slots of {self.lang}/{self.label} name each other in a circle: {text[:80]!r}")

    def _draw(self, inner: str, rng: random.Random, depth: int) -> str:
        if "|" in inner:
            return rng.choice(inner.split("|"))
        span = _RANGE.fullmatch(inner)
        if span is not None:
            return str(rng.randint(int(span[1]), int(span[2])))
        return self._fill(rng.choice(self.slots[inner]), rng, depth - 1)


def read_grammar(file: Path) -> Grammar:
    """Read `LANG/LABEL.toml`.

    Raises: ConfigError that names the file and what is wrong in it.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        slots = {name: tuple(values) for name, values in table.get("slots", {}).items()}
        styles = tuple(Style(name=style["name"], prompts=tuple(style["prompts"])) for style in table["styles"])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: cannot be read as prompts: {error}") from error
    grammar = Grammar(
        name=file.stem, label=file.stem.partition("-")[0], lang=file.parent.name, slots=slots, styles=styles
    )
    problems = find_problems(grammar)
    if problems:
        raise ConfigError(f"{file}: {'; '.join(problems)}")
    return grammar


def find_problems(grammar: Grammar) -> list[str]:
    """Slots that are not defined, and ranges that end before they begin."""
    texts = [prompt for style in grammar.styles for prompt in style.prompts]
    texts += [value for values in grammar.slots.values() for value in values]
    places = sorted({inner for text in texts for inner in _PLACE.findall(text) if "|" not in inner})
    spans = {inner: _RANGE.fullmatch(inner) for inner in places}
    problems = [f"no such slot: {inner}" for inner, span in spans.items() if not span and inner not in grammar.slots]
    return problems + [f"empty range: {inner}" for inner, span in spans.items() if span and int(span[1]) > int(span[2])]


def read_grammars(folder: Path = GRAMMAR_FOLDER) -> tuple[Grammar, ...]:
    """Every `LANG/LABEL.toml` under `folder`, in the order of their names. Raises: ConfigError."""
    return tuple(read_grammar(file) for file in sorted(folder.glob("*/*.toml")))


def draw_texts(grammar: Grammar, style: Style, rng: random.Random) -> list[str]:
    """The texts of a style: fixed prompts once, templates in proportion to the root of their variants."""
    texts: dict[str, None] = {}
    for prompt in style.prompts:
        num_draws = min(MAX_DRAWS, math.ceil(math.sqrt(grammar.num_variants(prompt))))
        texts.update(dict.fromkeys(grammar.expand(prompt, rng).strip() for _ in range(num_draws)))
    return [text for text in texts if text]
