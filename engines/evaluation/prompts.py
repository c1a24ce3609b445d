"""Prompts for the full path's own words: such as no path was trained on."""

from collections.abc import Sequence
from pathlib import Path

from models.distill.data.deduplicate import split_heldout
from models.distill.data.rows import Row as TrainingRow
from models.evaluation.rows import Row
from models.evaluation.texts import EVAL_PREFIX, Prompt, read_prompts


def prompts_of_files(files: Sequence[Path], heldout_share: float | None) -> list[Prompt]:
    """The prompts of files. With a share, only those that a training which held out this share of every file has not
    seen; files for evaluation are never trained on and stay whole.

    Raises: ConfigError that names a line.
    """
    found = []
    for file in files:
        prompts = read_prompts(file)
        is_whole = heldout_share is None or file.name.startswith(EVAL_PREFIX)
        found += prompts if is_whole or heldout_share is None else _held_out(prompts, heldout_share)
    return found


def _held_out(prompts: Sequence[Prompt], share: float) -> list[Prompt]:
    rows = [TrainingRow(task=prompt.task, prompt=prompt.prompt, source="") for prompt in prompts]
    return [Prompt(task=row.task, prompt=row.prompt) for row in split_heldout(rows, share).held_out]


def prompts_of_rows(rows: Sequence[Row], answered: frozenset[str]) -> list[Prompt]:
    """The prompts of every task's first dataset; none for tasks that have been `answered` already."""
    first: dict[str, str] = {}
    for row in rows:
        if row.task not in answered:
            first.setdefault(row.task, row.dataset)
    return [Prompt(task=row.task, prompt=row.prompt) for row in rows if first.get(row.task) == row.dataset]
