"""Hashed n-grams of a text in numpy: what the task classifier reads.

Every span is identified by a polynomial hash modulo 2**32. Character n-grams come from hashes that grow by a character
at a time; words and pairs of words from differences of prefix sums, so that a span of any length costs the same.
Source: feature hashing, Weinberger et al. 2009 (arXiv 0902.2206); subword n-grams, Bojanowski et al. 2017.
"""

import sys
import unicodedata
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]

HEAD_CHARS = 600
TAIL_CHARS = 360
"""Only the beginning and the end of a longer text are read: questions are there, documents in between."""

OPENING_CHARS = 48

_UTF32 = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"
_NUM_CODES = 1 << 16
_BASE = 0x9E3779B1
_MAX_CHARS = 4096
"""A compatibility form can expand to up to 18 characters; of the result no more than this is read."""
_ORDERS = (1, 2, 3, 4)
_SALTS = (0x2C1B3C6D, 0x2C1B3C6F, 0x2C1B3C71, 0x2C1B3C73)
_WIDE_FORMS = "，？！：；（）．～＿／｜＝＋－％…²³①②③④⑤\u3000\xa0"
_NARROW_FORMS = tuple((wide, unicodedata.normalize("NFKC", wide)) for wide in _WIDE_FORMS)
"""Frequent in Chinese and in copied text. Once these are replaced, most texts are in their normal form already."""

_WORD_SALT = 0x7FEB352D
_PAIR_SALT = 0x846CA68B
_OPENING_MARK = 0x1B873593
_OPENING_SALT = 0x85EBCA6B


def _powers(base: int) -> Ids:
    """1, base, base ** 2, ..., modulo 2**32."""
    factors = np.full(_MAX_CHARS, base, np.uint32)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint32)


def _char_values() -> Ids:
    """A scattered value per character; all ten digits share one."""
    codes = np.arange(_NUM_CODES, dtype=np.uint32)
    codes[ord("0") : ord("9") + 1] = ord("0")
    return codes * np.uint32(0x85EBCA6B) + np.uint32(0x27D4EB2F)


def _word_chars() -> npt.NDArray[np.bool_]:
    """Letters and digits of scripts that put spaces between words; not those of East Asia."""
    is_word = np.zeros(_NUM_CODES, np.bool_)
    for code in (*range(0x2E80), *range(0xD800, _NUM_CODES)):
        is_word[code] = chr(code).isalnum()
    is_word[ord("'")] = True
    return is_word


_POWERS = _powers(_BASE)
_INVERSES = _powers(pow(_BASE, -1, 1 << 32))
_VALUES = _char_values()
_IS_WORD = _word_chars()


def sample(text: str) -> str:
    """Head and tail of a long text; a short one as it is."""
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]} {text[-TAIL_CHARS:]}"


def normalise(text: str) -> str:
    """Sampled, lower case, full-width forms narrowed, white space single, one space at either end."""
    text = sample(text)
    if not text.isascii():
        text = _normal_form(text)
    return f" {' '.join(text.lower().split())[: _MAX_CHARS - 2]} "


def _normal_form(text: str) -> str:
    """NFKC. Recognising a text that is in it already takes about a tenth of the time of normalising one.

    Narrowing a form first changes nothing: its compatibility decomposition is the narrow one.
    """
    for wide, narrow in _NARROW_FORMS:
        text = text.replace(wide, narrow)
    return unicodedata.normalize("NFKC", text)


class Features(NamedTuple):
    """What a text is classified by: features of all of it, and separate features of its opening.

    The first words of a request mostly say what is wanted ("Write", "Imagine you are", "Is it legal"); a mean over a
    long text would drown that. Repeated as often as they occur. Shapes: [features] each, about five per character.
    """

    whole: Ids
    opening: Ids


def read_features(text: str, num_bits: int) -> Features:
    """All features are below 2 ** num_bits."""
    codes = np.frombuffer(normalise(text).encode(_UTF32, "surrogatepass"), np.uint32)
    codes = np.minimum(codes, _NUM_CODES - 1)
    values, is_word = _VALUES[codes], _IS_WORD[codes]
    end = _opening_end(is_word)
    chars, (words, pairs, num_opening_words) = _char_spans(values), _word_spans(values, is_word, end)
    opening = [spans[: max(end - order, 0)] for order, spans in enumerate(chars)]
    opening += [words[:num_opening_words], pairs[: max(num_opening_words - 1, 0)]]
    marked = _mix(np.concatenate(opening) ^ np.uint32(_OPENING_MARK), _OPENING_SALT)
    shift = np.uint32(32 - num_bits)
    return Features(np.concatenate([*chars, words, pairs]) >> shift, marked >> shift)


def _opening_end(is_word: npt.NDArray[np.bool_]) -> int:
    """The end of the first `OPENING_CHARS` characters, moved back to a word boundary where there is one."""
    end = min(OPENING_CHARS, len(is_word))
    breaks = np.flatnonzero(~is_word[:end])
    return int(breaks[-1]) + 1 if breaks[-1] > 0 else end


def _char_spans(values: Ids) -> list[Ids]:
    """N-grams, one array per order, by where they begin."""
    spans = []
    hashes = values
    for order, salt in zip(_ORDERS, _SALTS, strict=True):
        if order > 1:
            hashes = hashes[:-1] * np.uint32(_BASE) + values[order - 1 :]
        spans.append(_mix(hashes, salt))
        if len(hashes) < 2:
            break
    return spans


def _word_spans(values: Ids, is_word: npt.NDArray[np.bool_], opening_end: int) -> tuple[Ids, Ids, int]:
    """Words, pairs of neighbouring words, and how many words end within the opening.

    The text begins and ends with a space, so edges come in pairs.
    """
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    sums = np.zeros(len(values) + 1, np.uint32)
    np.cumsum(values * _POWERS[: len(values)], out=sums[1:], dtype=np.uint32)
    words = _mix((sums[ends] - sums[starts]) * _INVERSES[starts], _WORD_SALT)
    pairs = _mix((sums[ends[1:]] - sums[starts[:-1]]) * _INVERSES[starts[:-1]], _PAIR_SALT)
    return words, pairs, int(np.searchsorted(ends, opening_end))


def _mix(hashes: Ids, salt: int) -> Ids:
    """Mix the low bits into the high ones, of which the index is made."""
    mixed: Ids = (hashes ^ (hashes >> np.uint32(15))) * np.uint32(salt)
    return mixed
