"""What a tenant's pauses beside others are called: within their aim or beyond it."""

from pathlib import Path
from typing import Any

import pytest

from loadtest.isolation import beside, run

SEEN: dict[str, Any] = {"num_gaps": 100, "p50_gap_ms": 9.0, "p99_gap_ms": 21.0, "failures": []}


def test_pauses_are_within_their_aim_or_beyond_it() -> None:
    assert beside("x", SEEN, 11.0, 22.0).verdict == ""
    assert beside("x", SEEN, 10.0, 20.0).verdict == "beyond the aim"
    assert beside("alone", SEEN).verdict == ""


def test_streams_that_are_refused_are_told() -> None:
    assert beside("x", SEEN | {"failures": ["stream: 429"]}, 11.0, 22.0).verdict == "not answered: stream: 429"
    assert beside("x", SEEN | {"p99_gap_ms": None}, 11.0, 22.0).verdict == "no gap was seen"


def test_table_has_the_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(iter([beside("x", SEEN, 10.0, 20.0)]), tmp_path / "rows.json") == 0
    assert "| x | 100 | 9.0 ms | 21.0 ms | 2.1 | 20.0 ms | beyond the aim |" in capsys.readouterr().out
    assert (tmp_path / "rows.json").exists()
