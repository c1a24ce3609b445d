"""Checkpoints of a training run: one file each, written beside and renamed, so that a kill never leaves half of one."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from models.distill.run.identity import differences
from models.errors import ConfigError
from models.file_writing import replacing

logger = logging.getLogger(__name__)

KEPT = 2
_NAME = re.compile(r"step-(\d+)\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and plain data), and keep only the checkpoint before it.

    Checkpoints of later steps are deleted too: the run restarted before them because they could not be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = checkpoint_file(folder, step)
    for torn in folder.glob("step-*.partial"):  # left by runs that were killed while they saved
        torn.unlink()
    with replacing(file, file.with_suffix(".partial")) as partial, partial.open("wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())
    for other in _surplus(checkpoints(folder), file):
        other.unlink()
    return file


def checkpoint_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def _surplus(files: list[Path], newest: Path) -> list[Path]:
    """All but `newest` and the last one before it."""
    place = files.index(newest)
    return [*files[: max(0, place + 1 - KEPT)], *files[place + 1 :]]


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, the newest last."""
    return sorted(file for file in folder.glob("step-*.pt") if _NAME.fullmatch(file.name))


def load_checkpoint(folder: Path, run: str) -> dict[str, Any] | None:
    """The newest checkpoint of this run; None when there is none.

    A damaged one is skipped for the one before it.
    Raises: ConfigError when the folder's checkpoints belong to another `run`.
    """
    for file in reversed(checkpoints(folder)):
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except Exception:  # whatever the damage is, the file cannot be used
            logger.warning("checkpoint cannot be read, skipped file=%s", file)
            continue
        if different := differences(state["run"], run):
            raise ConfigError(
                f"{file} belongs to a run with other {different}; restore that, or remove {folder} to begin again"
            )
        return state
    if checkpoints(folder):
        raise ConfigError(f"no checkpoint in {folder} can be read; remove the folder to begin again")
    return None
