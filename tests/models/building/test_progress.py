"""What is shown of a build: every percent once, in order, up to the end."""

import contextlib
from typing import Any

import pytest

from models.building.build import build_student
from models.building.progress import ALMOST, shown_as_bar, shown_as_lines


@pytest.mark.parametrize(
    ("kind", "precisions"),
    [("Q4_0", ("gguf-native",)), ("Q4_0", ("w8a8", "fp32")), ("F16", ("int8",)), (None, ("w8a8-native", "w8a8"))],
)
def test_build_shows_percents_that_rise_to_the_end(
    tiny_source: Any, tiny_gguf: Any, tmp_path: Any, kind: str | None, precisions: tuple[str, ...]
) -> None:
    folder = tiny_source("llama", tie_word_embeddings=kind is None)
    source = folder if kind is None else tiny_gguf(folder, quantisation=kind)
    shown: list[tuple[int, str]] = []
    build_student(source, tmp_path / "out", precisions=precisions, show=lambda *news: shown.append(news))
    percents = [percent for percent, _ in shown]
    assert percents == sorted(set(percents))
    assert (percents[0] < 50, percents[-1]) == (True, ALMOST)
    parts = list(dict.fromkeys(part for _, part in shown))
    assert {"embedding", "layer 1 of 4", "layer 4 of 4"} <= set(parts)
    assert shown[-1][1] in ("head", "layer 4 of 4")


def test_build_that_is_watched_gives_the_same_student(tiny_source: Any, tiny_gguf: Any, tmp_path: Any) -> None:
    file = tiny_gguf(tiny_source("llama"), quantisation="Q4_1")
    plain, seen = (
        build_student(file, tmp_path / out, name="n", precisions=("gguf-native", "w8a8"), show=show)
        for out, show in (("a", None), ("b", lambda *news: None))
    )
    assert plain == seen


def test_lines_come_every_ten_percent() -> None:
    lines: list[str] = []
    with shown_as_lines(lines.append, "tiny") as show:
        for percent in (*range(0, 31), 37, 55, ALMOST):
            show(percent, f"layer {percent}")
    assert [line.partition(" %")[0] for line in lines] == [f"building tiny: {n}" for n in (10, 20, 30, 55, ALMOST)]
    assert lines[0] == "building tiny: 10 %, layer 10"


def test_bar_names_the_student_the_part_and_ends_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_as_bar("tiny") as show:
        show(42, "layer 7 of 16")
    told = capsys.readouterr().err
    assert "building tiny" in told
    assert "100%" in told
    with contextlib.suppress(ValueError), shown_as_bar("tiny") as show:
        show(42, "layer 7 of 16")
        raise ValueError
    assert "100%" not in capsys.readouterr().err
