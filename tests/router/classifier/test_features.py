"""Features against a slow reference, and what must not change them."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.classifier.features import HEAD_CHARS, TAIL_CHARS, normalise, read_features, sample
from tests.router.ngrams import is_word_char, raw_id, reference_ids, spans_of

ROOT = Path(__file__).parents[3]
ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""Every code point there is, lone surrogates and NUL among them."""
MIXED_TEXT = st.text(st.sampled_from("aB'z09 \t\n.,é?ßÅ中文。１ａ　ﬁ한ا\0\ud800😀ﷺ，＝～…²①\u0338\u0301"), max_size=80)


def ids_of(text: str, num_bits: int = 19) -> list[int]:
    return list(map(int, read_features(text, num_bits).whole))


@given(text=ANY_TEXT | MIXED_TEXT, num_bits=st.integers(8, 24))
@settings(deadline=None)
def test_features_equal_the_reference(text: str, num_bits: int) -> None:
    assert Counter(ids_of(text, num_bits)) == Counter(reference_ids(text, num_bits))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a",
        "中",
        "don't stop",
        "Solve 3x + 12 = 48 for x.",
        "第一章 合同法 clause 7",
        "x" * 961,
        "word " * 3000,
        "ﷺ" * 400,
        "İ" * 900,
        "\0" * 50,
        "\udfff\ud800",
    ],
)
def test_features_of_odd_texts_equal_the_reference(text: str) -> None:
    assert Counter(ids_of(text)) == Counter(reference_ids(text, 19))


def test_features_are_the_n_grams_words_and_pairs() -> None:
    """` ab cd `: 7 + 6 + 5 + 4 n-grams, two words and one pair."""
    assert len(ids_of("ab cd")) == 25
    assert len(ids_of("你好")) == 4 + 3 + 2 + 1


def test_features_of_an_empty_text_are_its_two_spaces() -> None:
    assert len(ids_of("")) == 2 + 1


@given(text=ANY_TEXT, num_bits=st.integers(8, 24))
@settings(deadline=None)
def test_features_stay_below_the_table_size(text: str, num_bits: int) -> None:
    ids = read_features(text, num_bits).whole
    assert ids.dtype == np.uint32
    assert len(ids)
    assert int(ids.max()) < 1 << num_bits


@given(text=st.text(st.characters(max_codepoint=0x7E, min_codepoint=0x20) | st.sampled_from("中文法律")))
def test_features_ignore_full_width_forms(text: str) -> None:
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text).replace(" ", "\u3000")
    assert ids_of(wide) == ids_of(text)


@given(text=st.text(st.characters(max_codepoint=0x7E) | st.sampled_from("中文éÀЖ")))
def test_features_ignore_case(text: str) -> None:
    assert ids_of(text.upper()) == ids_of(text) == ids_of(text.swapcase())


@given(
    words=st.lists(st.text(st.sampled_from("ab1中.'"), min_size=1), max_size=8),
    gaps=st.lists(st.text(st.sampled_from(" \t\r\n\u3000\u00a0"), min_size=1), min_size=9, max_size=9),
)
def test_features_ignore_kinds_of_white_space(words: list[str], gaps: list[str]) -> None:
    text = gaps[-1] + "".join(word + gap for word, gap in zip(words, gaps, strict=False))
    assert ids_of(text) == ids_of(" ".join(words))


def test_features_take_all_digits_for_one() -> None:
    assert ids_of("12 of 345") == ids_of("90 of 678")
    assert ids_of("12 of 345") != ids_of("1 of 345")


@pytest.mark.parametrize(("one", "other"), [("a b", "b a"), ("ab", "a b"), ("a.b", "a b"), ("中文", "文中")])
def test_features_tell_texts_apart(one: str, other: str) -> None:
    assert Counter(ids_of(one)) != Counter(ids_of(other))


def test_features_of_a_long_text_are_those_of_head_and_tail() -> None:
    head, tail = "h" * HEAD_CHARS, "t" * TAIL_CHARS
    assert sample(head + tail) == head + tail
    assert sample(f"{head}.{tail}") == f"{head} {tail}"
    assert ids_of(head + "some document " * 999 + tail) == ids_of(head + "another one" + tail)


@pytest.mark.parametrize(("place", "counts"), [(599, True), (600, False), (1639, False), (1640, True)])
def test_features_of_a_long_text_change_up_to_the_cut(place: int, counts: bool) -> None:
    text = "a" * 2000
    changed = f"{text[:place]}q{text[place + 1 :]}"
    assert (ids_of(changed) != ids_of(text)) is counts


@given(text=ANY_TEXT)
def test_normalised_text_begins_and_ends_with_one_space(text: str) -> None:
    assert normalise(text) == f" {' '.join(normalise(text).split())} "


def test_features_of_unfolding_characters_are_bounded() -> None:
    assert len(normalise("ﷺ" * 960)) == 4096
    assert len(ids_of("ﷺ" * 960)) < 1 << 15


DIGEST = """
import hashlib, sys
from router.classifier.features import read_features
texts = ["Solve 3x + 12 = 48.", "第一章 合同法 clause 7", "don't \\ud800 stop", "z" * 5000]
print(hashlib.sha256(b"".join(read_features(text, 19).whole.tobytes() for text in texts)).hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_features_are_the_same_in_every_process(hash_seed: str) -> None:
    texts = ["Solve 3x + 12 = 48.", "第一章 合同法 clause 7", "don't \ud800 stop", "z" * 5000]
    here = hashlib.sha256(b"".join(read_features(text, 19).whole.tobytes() for text in texts)).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == here


@given(text=st.text(alphabet="ab cd'中文？", max_size=120))
@settings(deadline=None)
def test_opening_has_the_features_of_the_first_words_under_marks_of_its_own(text: str) -> None:
    normal = normalise(text)
    end = min(48, len(normal))
    while end > 1 and is_word_char(normal[end - 1]):
        end -= 1
    opening = normal[:end] if end > 1 else normal[:48]
    spans = [raw_id(span, salt) for span, salt in spans_of(opening)]
    expected = sorted(((mark := raw ^ 0x1B873593) ^ (mark >> 15)) * 0x85EBCA6B % 2**32 >> 15 for raw in spans)
    assert sorted(map(int, read_features(text, 17).opening)) == expected
