"""Checkpoints survive whatever happens to the process or the disk while one is written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.distill.run.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from models.errors import ConfigError

REPOSITORY = Path(__file__).parents[4]
RUN = "this run"

KILLED_WHILE_SAVING = """
import io, os, sys
from pathlib import Path
import torch
from models.distill.run.checkpoint import save_checkpoint

save = torch.save

def half(state, handle):
    whole = io.BytesIO()
    save(state, whole)
    handle.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    handle.flush()
    os.kill(os.getpid(), 9)

torch.save = half
save_checkpoint(Path(sys.argv[1]), 2, {"run": "this run", "weights": torch.full((1000,), 2.0)})
"""


def state(step: int) -> dict[str, Any]:
    return {"run": RUN, "step": step, "weights": torch.full((1000,), float(step))}


def loaded(folder: Path) -> Any:
    found = load_checkpoint(folder, RUN)
    return None if found is None else (found["step"], float(found["weights"].mean()))


def test_the_newest_checkpoint_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    assert loaded(tmp_path / "none") is None
    for step in (5, 10, 90):
        save_checkpoint(tmp_path, step, state(step))
    assert [file.name for file in checkpoints(tmp_path)] == ["step-00000010.pt", "step-00000090.pt"]
    assert loaded(tmp_path) == (90, 90.0)


def test_what_was_just_saved_stays_and_later_steps_that_cannot_be_read_go(tmp_path: Path) -> None:
    for step in (5, 80, 90):
        save_checkpoint(tmp_path, step, state(step))
    save_checkpoint(tmp_path, 5, state(5))
    for later in (80, 90):
        (tmp_path / f"step-{later:08d}.pt").write_bytes(b"damaged")
    assert loaded(tmp_path) == (5, 5.0)
    assert save_checkpoint(tmp_path, 10, state(10)).exists()
    assert [file.name for file in checkpoints(tmp_path)] == ["step-00000005.pt", "step-00000010.pt"]
    assert loaded(tmp_path) == (10, 10.0)


@pytest.mark.parametrize("damage", [lambda content: content[:700], lambda _: b"", lambda _: b"no checkpoint"])
def test_a_torn_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: Any) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    newest = save_checkpoint(tmp_path, 2, state(2))
    newest.write_bytes(damage(newest.read_bytes()))
    assert loaded(tmp_path) == (1, 1.0)


def test_a_process_killed_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)]
    assert subprocess.run(command, cwd=REPOSITORY, check=False, timeout=60).returncode == -9
    assert (tmp_path / "step-00000002.partial").stat().st_size > 0
    assert loaded(tmp_path) == (1, 1.0)
    save_checkpoint(tmp_path, 3, state(3))
    assert {file.name for file in tmp_path.iterdir()} == {"step-00000001.pt", "step-00000003.pt"}
    assert loaded(tmp_path) == (3, 3.0)


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path, 1, state(1))
    with pytest.raises(ConfigError, match=rf"{file.name} belongs to a run with other settings or data"):
        load_checkpoint(tmp_path, "another run")
