"""What a killed run logged beyond its last checkpoint is forgotten."""

from pathlib import Path

import msgspec

from models.distill.run.log import append_line, forget_after


def steps(file: Path) -> list[int]:
    return [msgspec.json.decode(line)["step"] for line in file.read_bytes().splitlines()]


def test_lines_beyond_the_checkpoint_and_torn_ones_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    forget_after(file, 0, 0)
    assert not file.exists()
    for step in (20, 40, 60, 80):
        append_line(file, {"step": step, "num_tokens": 100 * step, "loss": {"a": 1.0}})
    forget_after(file, 80, 8000)
    assert steps(file) == [20, 40, 60, 80]
    with file.open("ab") as log:
        log.write(b'{"step": 90, "num_to')
    forget_after(file, 70, 7000)
    assert steps(file) == [20, 40, 60]
    # An earlier part of the run had smaller steps: tokens say how far it was.
    forget_after(file, 30, 4000)
    assert steps(file) == [20]
    forget_after(file, 0, 0)
    assert file.read_bytes() == b""
