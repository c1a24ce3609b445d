"""The files of a distillation run: the only place that knows their names."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True, kw_only=True, frozen=True)
class WorkFolder:
    """Where a run keeps what it can use again. A path says where a file belongs, not that it is there."""

    path: Path

    @property
    def teacher_answers(self) -> Path:
        return self.path / "teacher_answers.jsonl"

    @property
    def teacher_prompts(self) -> Path:
        return self.path / "teacher_prompts.jsonl"

    @property
    def held_out_rows(self) -> Path:
        return self.path / "heldout.jsonl"

    @property
    def teacher_caches(self) -> Path:
        """A folder with a folder for every cache."""
        return self.path / "cache"

    def layer_analysis(self, key: str) -> Path:
        """The measured layers; `key` identifies the teacher and the text that was looked at."""
        return self.path / f"boundaries-{key}.json"

    @property
    def boundary_picture(self) -> Path:
        return self.path / "boundaries.svg"

    @property
    def checkpoints(self) -> Path:
        """A folder."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def branches(self) -> "WorkFolder":
        """The folder of the training that continues every exit once per task, with its own checkpoints and log."""
        return WorkFolder(path=self.path / "branches")

    @property
    def exits(self) -> Path:
        return self.path / "exits.safetensors"

    def calibration(self, key: str) -> Path:
        """How the teacher's neurons move together; `key` identifies the teacher and the text."""
        return self.path / f"calibration-{key[:16]}.pt"

    @property
    def widths(self) -> Path:
        return self.path / "widths.safetensors"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def evaluated_exits(self) -> Path:
        """The SHA-256 of the exits or widths that `evaluation` measured."""
        return self.path / "evaluation.exits"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def ablation(self) -> Path:
        return self.path / "ablation.md"
