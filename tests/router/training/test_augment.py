"""Variants: the same for the same seed, typos in their share, documents from written rows alone."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.training.augment import Variation, make_typos, vary_form
from router.training.corpus import Row

TEXT = "A train leaves at noon. It runs 60 miles an hour. How far does it get by four?"


def row(text: str = TEXT, label: str = "math", lang: str = "en", source: str = "real") -> Row:
    return Row(text=text, label=label, lang=lang, source=source)


def varied(rows: list[Row], seed: int, num_variants: int = 20) -> list[str]:
    variation = Variation(rows, seed)
    return [variation.vary(one) for one in rows for _ in range(num_variants)]


def test_variants_depend_on_the_seed_alone() -> None:
    rows = [row(), row("写一首诗。要短。谢谢。", "creative", "zh"), row("a written one", source="written:x")]
    assert varied(rows, 1) == varied(rows, 1) != varied(rows, 2)


def test_variants_are_many() -> None:
    found = varied([row()], 0, 200)
    assert len(set(found)) > 100
    assert TEXT in found


@given(text=st.text(st.characters(exclude_categories=())), lang=st.sampled_from(["en", "zh", "fr"]), seed=st.integers())
def test_form_of_any_text_is_varied(text: str, lang: str, seed: int) -> None:
    assert isinstance(vary_form(text, lang, random.Random(seed)), str)


@given(text=st.text("ab {}0"), seed=st.integers(0, 99))
def test_braces_of_a_text_are_left_alone(text: str, seed: int) -> None:
    """Wrappings hold `{}` for the text: what the text itself has of them stays."""
    found = vary_form(text, "en", random.Random(seed))
    assert found.count("{") <= 2 * text.count("{") + 1


def test_documents_come_from_written_rows_of_the_language() -> None:
    rows = [
        row("WRITTENREQUEST", "other", source="written:x"),
        row("SCHRIFTLICH", "other", "de", source="written:x"),
        row("REALREQUEST", "other"),
        row("WRITTENLAW", "legal", source="written:x"),
    ]
    variation = Variation(rows, 0)
    found = " ".join(variation.vary(row("question", "other")) for _ in range(2000)).upper()
    assert "WRITTENREQUEST" in found
    assert "WRITTENLAW" in found
    assert "REALREQUEST" not in found
    assert "SCHRIFTLICH" not in found


def test_documents_of_a_subject_are_about_it() -> None:
    rows = [row("WRITTENLAW", "legal", source="written:x"), row("WRITTENSUM", "math", source="written:x")]
    variation = Variation(rows, 0)
    found = " ".join(variation.vary(row("question", "math")) for _ in range(1000)).upper()
    assert "WRITTENSUM" in found
    assert "WRITTENLAW" not in found


@pytest.mark.parametrize("text", ["x" * 300, "x" * 5000])
def test_long_texts_get_no_document(text: str) -> None:
    variation = Variation([row("WRITTENSUM", "math", source="written:x")], 0)
    assert not [1 for _ in range(300) if "WRITTENSUM" in variation.vary(row(text)).upper()]


@given(text=st.text(st.characters(exclude_categories=())), seed=st.integers(0, 9))
def test_no_share_makes_no_typo(text: str, seed: int) -> None:
    assert make_typos(text, 0.0, random.Random(seed)) == text


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_typos_have_their_share(share: float) -> None:
    """Of four kinds one writes a letter, which no digit is otherwise; one drops and one doubles: that evens out."""
    size = 40_000
    found = make_typos("0" * size, share, random.Random(7))
    assert sum(char.isalpha() for char in found) == pytest.approx(size * share / 4, rel=0.06)
    assert len(found) == pytest.approx(size, rel=0.01)


def test_typos_are_of_four_kinds() -> None:
    found = Counter(make_typos("1234", 0.1, random.Random(seed)) for seed in range(4000))
    assert {"1234", "234", "124", "11234", "12344", "2134", "1243"} <= found.keys()
    assert any(text[0].isalpha() and text[1:] == "234" for text in found)
    assert not any(text[1:] == "134" and text[0] not in "12" and not text[0].isalpha() for text in found)


def test_typos_in_chinese_stay_chinese() -> None:
    assert set(make_typos("解方程求未知数" * 50, 0.5, random.Random(0))) == set("解方程求未知数")


def test_typos_depend_on_the_seed_alone() -> None:
    one, same, other = (make_typos(TEXT, 0.2, random.Random(seed)) for seed in (3, 3, 4))
    assert one == same != other


def test_some_variants_are_in_full_width_forms_or_capitals() -> None:
    found = varied([row("solve x + 2")], 0, 400)
    assert any("ｓｏｌｖｅ ｘ ＋ ２" in text for text in found)
    assert any("SOLVE X + 2" in text for text in found)
