"""What every bench prints and writes alike."""

from pathlib import Path

import msgspec
import pytest

from bench.report import fill_document, list_formulas, list_notes, show_number, show_spread, write_document


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (123456.7, 4, "123457"),
        (123.456, 4, "123.5"),
        (12.3456, 4, "12.35"),
        (123.456, 3, "123"),
        (99.96, 3, "100"),
        (0.012345, 3, "0.0123"),
        (0.0000123, 3, "0.000012"),
        (-1234.5, 4, "-1234"),
    ],
)
def test_numbers_have_no_exponent(value: float, digits: int, expected: str) -> None:
    assert show_number(value, digits) == expected


def test_spread_is_the_lowest_and_the_highest() -> None:
    assert show_spread([2.0, 1.0, 3.0], 3) == "(1 .. 3)"


def test_notes_have_a_heading_only_where_there_are_any() -> None:
    assert list_notes([]) == []
    assert list_notes(["a"]) == ["", "notes", "  a"]
    assert list_formulas({"x": "y / z"}, "median") == ["", "formulas (median)", "  x: y / z"]


def test_document_is_written_where_a_file_is_named(tmp_path: Path) -> None:
    document = fill_document({"a": 1 / 3}, {"a": [1 / 3]}, {"a": "b"}, {"cores": 2}, {"python": "3"}, ["note"])
    write_document(None, document)
    write_document(tmp_path / "out.json", document)
    written = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert written == document
    assert written["figures"] == {"a": 0.333333}
