"""Telling what users wrote from what a chat template wrote: special tokens act only where the template wrote them.

Users' texts are marked before the template is rendered: in each that spells a special token, the token is split by a
mark that nobody can guess. Afterwards the tokens that are still whole are the template's. Not seen is a token that a
text spells only once a template has removed something from inside it.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any


class TextGuard:
    """Marks texts for one tokenizer. `special` are the texts of its special tokens."""

    def __init__(self, special: Iterable[str]) -> None:
        texts = sorted(set(special) - {""})
        secret = secrets.token_hex(12)
        self._mark = f"~{secret}~"
        self._stand_ins = {text: f"~{secret}.{number}~" for number, text in enumerate(texts)}
        self._special = _pattern_of(texts)
        self._splittable = _pattern_of(text for text in texts if len(text) > 1)

    @property
    def stand_ins(self) -> Mapping[str, str]:
        """For the text of each special token the one that takes its place in `with_stand_ins`."""
        return self._stand_ins

    def marked(self, value: Any) -> Any:
        """The value with all texts in it marked, also those in objects and lists and the names of properties."""
        if isinstance(value, str):
            return self._marked_text(value)
        if isinstance(value, dict):
            return {self.marked(name): self.marked(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.marked(inner) for inner in value]
        return value

    def is_marked(self, text: str) -> bool:
        return self._mark in text

    def unmarked(self, text: str) -> str:
        return text.replace(self._mark, "")

    def with_stand_ins(self, text: str) -> str:
        """A rendered text without marks, in which only stand-ins are special."""
        if self._special is not None:
            text = self._special.sub(lambda found: self._stand_ins[found[0]], text)
        return self.unmarked(text)

    def _marked_text(self, text: str) -> str:
        while self._splittable is not None and self._splittable.search(text):  # again: one may hold another
            text = self._splittable.sub(lambda found: f"{found[0][0]}{self._mark}{found[0][1:]}", text)
        return text


def _pattern_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the longest of these texts, in time that does not grow with their number."""
    root: dict[str, Any] = {}
    for text in texts:
        node = root
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_source_of(root)) if root else None


def _source_of(node: dict[str, Any]) -> str:
    branches = [re.escape(character) + _source_of(inner) for character, inner in node.items() if character]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)}){'?' if '' in node else ''}"
