"""Rows from files and grammars, and what each of them weighs."""

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ConfigError
from router.training.corpus import WRITTEN_SHARE, Row, read_rows, row_weights, written_rows
from router.training.grammar import Grammar, Style


def row(label: str = "math", lang: str = "en", source: str = "real", text: str = "x") -> Row:
    return Row(text=text, label=label, lang=lang, source=source)


def test_rows_are_read_in_order(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    full = Row(text="写诗", label="creative", lang="zh", source="a b", licence="MIT")
    lines = [msgspec.json.encode(full), b"", b'{"text": "1+1", "label": "math", "lang": "en", "more": [1]}']
    file.write_bytes(b"\n".join(lines))
    assert read_rows(file) == [full, Row(text="1+1", label="math", lang="en", source="unnamed", licence="unknown")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "line 2"),
        (b"\xff", "line 2"),
        (b'{"text": "\xff", "label": "math", "lang": "en"}', "line 2"),
        (b'{"text": "x", "lang": "en"}', "label"),
        (b'{"text": 1, "label": "math", "lang": "en"}', "text"),
        (b'{"text": "x", "label": "general", "lang": "en"}', "'general'"),
    ],
)
def test_bad_row_is_refused_by_file_and_line(tmp_path: Path, line: bytes, problem: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'{"text": "x", "label": "math", "lang": "en"}\n' + line)
    with pytest.raises(ConfigError) as error:
        read_rows(file)
    assert f"{file}, line 2" in str(error.value)
    assert problem in str(error.value)


def test_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.jsonl: cannot be read"):
        read_rows(tmp_path / "gone.jsonl")
    (tmp_path / "none.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match=r"none\.jsonl has no rows"):
        read_rows(tmp_path / "none.jsonl")


def grammar(name: str, prompt: str) -> Grammar:
    styles = (Style(name="exam", prompts=(prompt,)), Style(name="chat", prompts=("please",)))
    return Grammar(name=name, label="math", lang="zh", slots={}, styles=styles)


def test_written_rows_carry_label_language_and_style() -> None:
    rows = written_rows([grammar("math", "add")], seed=0)
    assert [(one.text, one.label, one.lang, one.source) for one in rows] == [
        ("add", "math", "zh", "written:exam"),
        ("please", "math", "zh", "written:chat"),
    ]
    assert all(one.is_written for one in rows)
    assert not row().is_written


def test_written_rows_depend_on_the_seed_and_the_file_alone() -> None:
    one, other = grammar("math", "[[1..999999]]"), grammar("math-2", "[[1..999999]]")
    assert written_rows([one], seed=1) == written_rows([one], seed=1)
    assert written_rows([one], seed=1) != written_rows([one], seed=2)
    assert written_rows([one, other], seed=1) == written_rows([one], seed=1) + written_rows([other], seed=1)
    assert written_rows([one], seed=1)[0].text != written_rows([other], seed=1)[0].text


def total(rows: list[Row], weights: "np.ndarray[tuple[int], np.dtype[np.float32]]", **kind: str | bool) -> float:
    chosen = [all(getattr(one, name) == value for name, value in kind.items()) for one in rows]
    return float(weights[np.array(chosen)].sum())


def test_weights_by_hand() -> None:
    """Real sources of 4 and 1 rows share 0.2 as 2 to 1; the written one of 9 has 0.8; legal has one row."""
    rows = [row(source="a")] * 4 + [row(source="b")] + [row(source="written:x")] * 9 + [row("legal")]
    weights = row_weights(rows)
    unit = 15 / 2
    assert weights[0] == pytest.approx(unit * 0.2 * 2 / 3 / 4)
    assert weights[4] == pytest.approx(unit * 0.2 / 3)
    assert weights[5] == pytest.approx(unit * 0.8 / 9)
    assert weights[14] == pytest.approx(unit)


ROWS = st.lists(
    st.builds(
        row,
        label=st.sampled_from(["math", "other"]),
        lang=st.sampled_from(["en", "zh"]),
        source=st.sampled_from(["a", "b", "written:a", "written:b"]),
    ),
    min_size=1,
    max_size=40,
)


@given(rows=ROWS)
@settings(deadline=None)
def test_weights_are_one_on_average_and_alike_for_every_class(rows: list[Row]) -> None:
    weights = row_weights(rows)
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1.0, rel=1e-5)
    kinds = {(one.label, one.lang) for one in rows}
    for label, lang in kinds:
        assert total(rows, weights, label=label, lang=lang) == pytest.approx(len(rows) / len(kinds), rel=1e-5)


@given(rows=ROWS)
@settings(deadline=None)
def test_weights_give_written_rows_their_share(rows: list[Row]) -> None:
    weights = row_weights(rows)
    for label, lang in {(one.label, one.lang) for one in rows}:
        kind = [one for one in rows if (one.label, one.lang) == (label, lang)]
        if len({one.is_written for one in kind}) == 2:
            written = total(rows, weights, label=label, lang=lang, is_written=True)
            assert written == pytest.approx(WRITTEN_SHARE * total(rows, weights, label=label, lang=lang), rel=1e-5)


def test_weights_belong_to_rows_in_whatever_order() -> None:
    rows = [row(source="a")] * 3 + [row(source="b")] * 5 + [row("other", source="written:x")] * 2
    weights = dict(zip(rows, row_weights(rows).tolist(), strict=True))
    shuffled = random.Random(0).sample(rows, len(rows))
    assert row_weights(shuffled).tolist() == pytest.approx([weights[one] for one in shuffled])


def test_rows_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "1 + 1", "label": "math", "lang": "en"}\r\n')
    assert [row.text for row in read_rows(file)] == ["1 + 1"]


def test_general_as_a_label_is_refused_with_the_word_for_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "hi", "label": "general", "lang": "en"}')
    with pytest.raises(ConfigError, match="`other` is for general"):
        read_rows(file)
