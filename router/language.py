"""The language a text is written in, as far as routing needs it: English, another one, or none.

Other scripts tell themselves. Languages in the Latin script are told by their commonest words against those of English,
and by letters that English does not have. Which of the other languages it is matters less than that it is not English.
"""

import re
from collections import Counter
from typing import NamedTuple

from router.words import ENGLISH, LETTERS, PARTICLES, WORDS

ENGLISH_CODE = "en"
UNKNOWN = "und"
"""A language, but none of those known here. Source: ISO 639-2."""

HEAD_CHARS = 400
TAIL_CHARS = 200
"""Of a longer text only the beginning and the end are read."""

_NO_WORDS = re.compile(
    r"```.*?(?:```|$)|`[^`]*`|\[asy\].*?(?:\[/asy\]|$)|\$\$.*?\$\$|\$(?!\s)[^$]*(?<!\s)\$|\\[\[(].*?\\[\])]|\\[a-zA-Z]+"
    r"|https?://\S+|@\S+",
    re.DOTALL,
)
"""Code, formulas and addresses."""
_LATIN_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:['’][^\W\d_]+|[^\W\d_])(?!\w)")
"""Of two letters or more: single ones are variables as often as words."""
_CONTRACTIONS = frozenset({"s", "t", "d", "m", "re", "ve", "ll"})
"""What English has behind an apostrophe."""
_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002ffff]")),
    ("uk", re.compile(r"[іїєґІЇЄҐ]")),
    ("ru", re.compile(r"[\u0400-\u052f]")),
    ("fa", re.compile(r"[پچژگیک]")),
    ("ar", re.compile(r"[\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("el", re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("bn", re.compile(r"[\u0980-\u09ff]")),
    ("ta", re.compile(r"[\u0b80-\u0bff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("ka", re.compile(r"[\u10a0-\u10ff]")),
)
"""By language, characters that are its own; the first of those in a text that is mostly not Latin is taken."""
_OTHER_LETTER = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]")
_WIDE_LETTER = re.compile(r"[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af\U00020000-\U0002ffff]")
_LATIN_LETTER = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_LONE_GREEK = re.compile(r"(?<![^\W\d_])[\u0370-\u03ff](?![^\W\d_])")
"""A variable of a formula."""

_LETTERS_OF_A_WIDE_ONE = 3
"""A character of East Asia stands for about as much as three letters."""
_LEAST_SHARE = 0.4
_LEAST_EVIDENCE = 2


class _Evidence(NamedTuple):
    """How much a word says for English and for other languages, and for which."""

    english: int
    other: int
    languages: tuple[str, ...] = ()


_NONE = _Evidence(0, 0)
_ENGLISH = _Evidence(2, 0)


def _weigh(word: str) -> _Evidence:
    """Words of English alone or of others alone weigh two; those of both, and particles of names, one."""
    is_english, languages = word in ENGLISH, WORDS.get(word, ())
    is_clear = not (is_english and languages)
    weight_other = 0 if not languages else 2 if is_clear and word not in PARTICLES else 1
    return _Evidence(0 if not is_english else 2 if is_clear else 1, weight_other, languages)


_KNOWN = {word: _weigh(word) for word in {*ENGLISH, *WORDS}}


def find_language(text: str) -> str | None:
    """The language of a text by its two-letter code, `und` for one that is not known here, None for a text without
    words that tell (numbers, formulas, code, names).

    Source: ISO 639-1.
    """
    read = _NO_WORDS.sub(" ", text if len(text) <= HEAD_CHARS + TAIL_CHARS else _ends(text))
    if not read.isascii() and _is_mostly_other_script(read):
        return next((language for language, letters in _SCRIPTS if letters.search(read)), UNKNOWN)
    return _find_latin(read)


def _ends(text: str) -> str:
    return f"{text[:HEAD_CHARS]} {text[-TAIL_CHARS:]}"


def _is_mostly_other_script(text: str) -> bool:
    text = _LONE_GREEK.sub(" ", text)
    num_wide = len(_WIDE_LETTER.findall(text))
    num_other = len(_OTHER_LETTER.findall(text)) + (_LETTERS_OF_A_WIDE_ONE - 1) * num_wide
    num_latin = len(_LATIN_LETTER.findall(text))
    return num_other > 0 and num_other >= _LEAST_SHARE * (num_other + num_latin)


def _find_latin(text: str) -> str | None:
    english, other = 0, 0
    votes: Counter[str] = Counter()
    for word in _LATIN_WORD.findall(text):
        evidence = _read_word(word)
        english += evidence.english
        other += evidence.other
        if evidence.other:
            votes.update(dict.fromkeys(evidence.languages, evidence.other))
    if other > english and other >= _LEAST_EVIDENCE:
        return max(votes, key=votes.__getitem__) if votes else UNKNOWN
    return ENGLISH_CODE if english else None


def _read_word(word: str) -> _Evidence:
    known = _KNOWN.get(word.lower())
    if known is not None:
        return known
    before, apostrophe, behind = word.replace("’", "'").partition("'")
    if apostrophe and behind.lower() in _CONTRACTIONS:
        return _ENGLISH
    if apostrophe:
        return _KNOWN.get(before.lower() + apostrophe, _NONE)
    return _by_letters(word)


def _by_letters(word: str) -> _Evidence:
    """An unknown word says something by a letter that English does not have, unless it may be a name."""
    if word.isascii() or word[0].isupper():
        return _NONE
    languages = {language for letter in word.lower() for language in LETTERS.get(letter, ())}
    return _Evidence(0, 1, tuple(sorted(languages)))
