"""Cold starts of a tiny student, with full and with empty page cache."""

from pathlib import Path

import pytest

from loadtest import coldstart
from loadtest.comparison.servers import Place


@pytest.fixture
def place(student: Path, tmp_path: Path) -> Place:
    return Place(server_cores=(0,), generator_cores=(0,), folder=tmp_path, student=student, gguf=None)


def test_first_token_comes_after_listening_and_before_the_limit(place: Place) -> None:
    told: list[str] = []
    found = coldstart.cold_starts(place, place.student, 1, told.append)
    ((listening,), (first,), (whole,)) = (found[name] for name in ("listening_s", "first_token_s", "all_loaded_s"))
    assert 0 < listening < first < coldstart.LIMIT_S
    assert listening < whole
    assert "first_token_s" in told[0]


def test_page_cache_is_emptied_file_by_file_where_the_whole_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[Path] = []
    monkeypatch.setattr(coldstart, "DROP", tmp_path / "none" / "drop_caches")
    monkeypatch.setattr(coldstart, "_forget", forgotten.append)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(b"x" * 10)
    assert "posix_fadvise" in coldstart.empty_page_cache([tmp_path])
    assert forgotten == [tmp_path / "deep" / "weights"]


def test_whole_page_cache_is_dropped_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldstart, "DROP", tmp_path / "drop_caches")
    assert coldstart.empty_page_cache([tmp_path]) == "drop_caches"
    assert (tmp_path / "drop_caches").read_text() == "3"


def test_server_that_does_not_start_is_told(place: Place) -> None:
    (place.student / "manifest.json").write_text("{")
    with pytest.raises(RuntimeError, match="ended with status"):
        coldstart.start_once(place, place.student)
