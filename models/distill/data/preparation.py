"""From training files to the examples that are trained on and the rows that are kept for evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from models.distill.data.deduplicate import deduplicate, split_heldout
from models.distill.data.examples import Example, encode_rows
from models.distill.data.labels import Answerer, LabelSettings, Progress, is_wanted, label
from models.distill.data.mixture import GENERAL, mix
from models.distill.data.report import DataReport, report_of
from models.distill.data.rows import Row, Tally, evaluation_files, filter_rows, read_prompts, read_rows
from models.distill.work_folder import WorkFolder
from models.errors import ConfigError
from models.file_writing import write_whole
from models.student.cut import TASKS
from models.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True, frozen=True)
class DataSettings:
    """Which text is trained on.

    `task` keeps the rows of one task, beside the general ones. `task_share` 0.7 is 7 parts task to 3 general; None
    takes all there is. `max_train_tokens` bounds what is trained on (None: all), `task_tokens` what of some tasks.
    `heldout_share` of the prompts is never trained on, nor is what resembles the `evaluation` files (or files in such
    folders) or the `eval_*` files in the folders of `files`. `max_tokens` is where an example is cut.
    """

    files: tuple[str, ...] = ()
    task: str | None = None
    task_share: float | None = None
    max_train_tokens: int | None = None
    task_tokens: Mapping[str, int] = field(default_factory=dict)
    heldout_share: float = 0.05
    evaluation: tuple[str, ...] = ()
    max_tokens: int = 512

    def evaluation_files(self) -> list[Path]:
        """What is measured with, and so never trained on. Raises: ConfigError for a place without such files."""
        return evaluation_files([Path(file) for file in self.files], [Path(place) for place in self.evaluation])

    def problems(self) -> list[str]:
        """Everything wrong with the values, as sentences; empty when they are sound."""
        found = [] if self.files else ["data names no training file or folder"]
        for name in ("task_share", "heldout_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                found.append(f"text.{name} must be from 0 to below 1, not {value}")
        if self.max_tokens < 16:
            found.append(f"text.max_tokens must be at least 16, not {self.max_tokens}")
        found += [
            f"text.task_tokens.{task} must not be negative, not {budget}"
            for task, budget in self.task_tokens.items()
            if budget < 0
        ]
        if self.max_train_tokens is not None and self.max_train_tokens < 1:
            found.append(f"text.max_train_tokens must be at least 1, not {self.max_train_tokens}")
        return found


@dataclass(slots=True, kw_only=True, frozen=True)
class Prepared:
    """`held_out` rows have an answer: their own, or the teacher's. `num_by_teacher` training rows have the latter."""

    examples: list[Example]
    held_out: list[Row]
    num_by_teacher: int
    report: DataReport


@dataclass(slots=True, kw_only=True, frozen=True)
class Cleaned:
    """The rows of the files, and which side of the held-out split they are on. Some may have no answer yet.

    `avoided` are the prompts of evaluation sets, which no training row resembles.
    """

    read: list[Row]
    training: list[Row]
    held_out: list[Row]
    dropped: list[Tally]
    avoided: list[str]

    def with_prompts(self, rows: Sequence[Row]) -> "Cleaned":
        """The same with further training rows."""
        return replace(self, read=[*self.read, *rows], training=[*self.training, *rows])


def clean(settings: DataSettings, seed: int) -> Cleaned:
    """Read, filter, de-duplicate and split; does not ask the teacher.

    Raises: ConfigError for files that cannot be read or hold nothing to train on, and for a task that no row has.
    """
    read = read_rows(Path(file) for file in settings.files)
    _check_tasks(settings, {row.task for row in read})
    rows = [row for row in read if settings.task in (None, row.task) or row.task == "general"]
    rows, bad = filter_rows(rows)
    avoided = read_prompts(settings.evaluation_files())
    rows, doubles = deduplicate(rows, against=avoided)
    split = split_heldout(rows, settings.heldout_share, seed)
    if not split.training:
        wanted = "" if settings.task is None else f" of task {settings.task!r}"
        raise ConfigError(f"no training rows{wanted} are left in {', '.join(settings.files)}")
    return Cleaned(read=read, training=split.training, held_out=split.held_out, dropped=[bad, doubles], avoided=avoided)


def _check_tasks(settings: DataSettings, present: set[str]) -> None:
    """A budget may name a known task without rows, so that one config serves more than one set of data."""
    known = ", ".join(sorted(present))
    if settings.task is not None and settings.task not in present:
        raise ConfigError(
            f"no training rows are of task {settings.task!r} in {', '.join(settings.files)}; there is {known}"
        )
    if unknown := sorted(settings.task_tokens.keys() - present - {*TASKS, GENERAL}):
        raise ConfigError(f"text.task_tokens: no training row is of task {', '.join(unknown)}; there is {known}")


def prepare(
    cleaned: Cleaned,
    settings: DataSettings,
    labels: LabelSettings,
    tokenizer: Tokenizer,
    answerer: Answerer,
    work: WorkFolder,
    *,
    teacher: str,
    teacher_tokenizer: Tokenizer,
    seed: int,
    progress: Progress | None = None,
) -> Prepared:
    """From clean rows to examples: those without an answer get the teacher's. Answers and held-out rows are kept in
    `work`.

    `tokenizer` is the student's, `teacher_tokenizer` belongs to the model that writes the answers.
    Raises: ConfigError as `label` does, StepFailed when the teacher stops early.
    """
    # One call for both sides: the held-out rows' own answers stay, since those are what the task is measured by.
    wanted = [row for row in cleaned.held_out if row.answer is None]
    kept = [row for row in cleaned.held_out if row.answer is not None]
    answered = label(
        [*cleaned.training, *wanted],
        answerer,
        teacher_tokenizer,
        work.teacher_answers,
        labels,
        teacher=teacher,
        progress=progress,
    )
    held_out_prompts = {row.prompt for row in wanted}
    training, repetitive = filter_rows([row for row in answered.rows if row.prompt not in held_out_prompts])
    references, _ = filter_rows([row for row in answered.rows if row.prompt in held_out_prompts])
    examples, too_long = encode_rows(training, tokenizer, settings.max_tokens)
    examples = _chosen(examples, settings, seed)
    held_out = [*kept, *references]
    write_rows(work.held_out_rows, held_out)
    report = report_of(
        read=cleaned.read, dropped=[*cleaned.dropped, repetitive, too_long], held_out=held_out, examples=examples
    )
    num_by_teacher = sum(is_wanted(row, labels) for row in cleaned.training)
    return Prepared(examples=examples, held_out=held_out, num_by_teacher=num_by_teacher, report=report)


def refuse_unwritten(num_by_teacher: int) -> None:
    """Raises: ConfigError for sequence-level distillation over text that no teacher wrote."""
    if not num_by_teacher:
        raise ConfigError(
            'transfer = "sequence" trains on what teachers[0] writes, and every training row has an answer already; '
            "give rows without answers, or set labels.share_of_answered"
        )


def _chosen(examples: list[Example], settings: DataSettings, seed: int) -> list[Example]:
    for task, budget in settings.task_tokens.items():
        members = [example for example in examples if example.task == task]
        few = mix(members, budget=budget, size=_size, seed=seed)
        examples = [*(example for example in examples if example.task != task), *few]
    if settings.task_share is None and settings.max_train_tokens is None:
        return examples
    share = 1.0 if settings.task_share is None else settings.task_share
    pool = examples
    if settings.task_share is None:  # a budget alone: general text counts as one more task
        pool = [replace(example, task=f"{example.task} ") for example in examples]
    chosen = mix(pool, task_share=share, budget=settings.max_train_tokens, size=_size, seed=seed)
    return [replace(example, task=example.task.rstrip()) for example in chosen]


def _size(example: Example) -> int:
    return example.num_tokens


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """One JSON object a line, as `read_rows` reads them."""
    write_whole(file, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
