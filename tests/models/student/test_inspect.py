"""What `fenhe inspect` says of heads and verdicts."""

from pathlib import Path

import msgspec

from models.student.inspect import _lines
from models.student.manifest import CheapHead, PathFigures, Verdict
from tests.server.conftest import make_manifest


def test_inspect_shows_the_cheap_head_and_verdicts_by_task(tmp_path: Path) -> None:
    judged: tuple[tuple[str, Verdict], ...] = (("math", "passed"), ("fact", "undecided"))
    figures = tuple(
        PathFigures(
            path="full",
            head="cheap",
            task=task,
            variant="w8a8-native",
            language="en",
            verdict_fidelity="passed",
            verdict_field=field,
        )
        for task, field in judged
    )
    head = CheapHead(rank=4, num_frequent=3, num_candidates=2, mean_candidates=1.2, sha256="")
    manifest = msgspec.structs.replace(make_manifest(), cheap_head=head, figures=figures)
    lines = list(_lines(manifest, tmp_path))
    assert "  cheap head: rank 4, 3 frequent tokens and at most 2 others (on average 1) exact" in lines
    assert "  full           cheap  w8a8-native  math passed / passed, fact passed / undecided" in lines


def test_inspect_says_that_nothing_was_measured(tmp_path: Path) -> None:
    lines = list(_lines(make_manifest(), tmp_path))
    title = next(index for index, line in enumerate(lines) if line.startswith("verdicts"))
    assert lines[title + 1] == "  nothing measured"
