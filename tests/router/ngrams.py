"""The features of a text, one by one and slowly: an independent version of `router.classifier.features`.

Constants are written out again, because a classifier file is only good for the features it was trained with.
"""

import unicodedata
from collections.abc import Iterator

MODULUS = 1 << 32
BASE = 0x9E3779B1
ORDER_SALTS = {1: 0x2C1B3C6D, 2: 0x2C1B3C6F, 3: 0x2C1B3C71, 4: 0x2C1B3C73}
WORD_SALT = 0x7FEB352D
PAIR_SALT = 0x846CA68B


def reference_ids(text: str, num_bits: int) -> list[int]:
    """Every occurrence of every feature, in no particular order."""
    return [feature_id(span, salt, num_bits) for span, salt in spans(text)]


def spans(text: str) -> Iterator[tuple[str, int]]:
    """Character n-grams of one to four characters, words, and pairs of words with what stands between them."""
    if len(text) > 960:
        text = text[:600] + " " + text[-360:]
    text = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    yield from spans_of(" " + text[:4094] + " ")


def spans_of(text: str) -> Iterator[tuple[str, int]]:
    """The spans of a normalised text."""
    for order, salt in ORDER_SALTS.items():
        for start in range(len(text) - order + 1):
            yield text[start : start + order], salt
    words = list(word_places(text))
    for start, end in words:
        yield text[start:end], WORD_SALT
    for index in range(len(words) - 1):
        yield text[words[index][0] : words[index + 1][1]], PAIR_SALT


def word_places(text: str) -> Iterator[tuple[int, int]]:
    start = None
    for place, char in enumerate(text):
        if is_word_char(char) and start is None:
            start = place
        if not is_word_char(char) and start is not None:
            yield start, place
            start = None


def is_word_char(char: str) -> bool:
    is_east_asian_or_rare = 0x2E80 <= ord(char) < 0xD800 or ord(char) >= 0xFFFF
    return char == "'" or (char.isalnum() and not is_east_asian_or_rare)


def feature_id(span: str, salt: int, num_bits: int) -> int:
    return raw_id(span, salt) >> (32 - num_bits)


def raw_id(span: str, salt: int) -> int:
    """Words grow to the right with rising powers, n-grams with falling ones."""
    values = [char_value(char) for char in span]
    if salt in ORDER_SALTS.values():
        values.reverse()
    total = sum(value * pow(BASE, power, MODULUS) for power, value in enumerate(values)) % MODULUS
    return (total ^ (total >> 15)) * salt % MODULUS


def char_value(char: str) -> int:
    code = ord("0") if char in "0123456789" else min(ord(char), 0xFFFF)
    return (code * 0x85EBCA6B + 0x27D4EB2F) % MODULUS
