"""How many training rows were read, dropped, held out and used, by task; `--dry-run` prints it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.distill.data.examples import Example
from models.distill.data.rows import Row, Tally


@dataclass(slots=True, kw_only=True, frozen=True)
class TaskCounts:
    """Units: rows, except `num_tokens` and `num_answer_tokens`. `dropped` is by reason."""

    task: str
    num_read: int
    dropped: Mapping[str, int]
    num_held_out: int
    num_examples: int
    num_tokens: int
    num_answer_tokens: int


@dataclass(slots=True, kw_only=True, frozen=True)
class DataReport:
    """`sources` are those of the examples that are trained on, with their licences, for the model card."""

    tasks: tuple[TaskCounts, ...]
    sources: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """A table with one line per task, the reasons below it."""
        table = [_HEADINGS, *(_cells(counts) for counts in self.tasks), _cells(_total(self.tasks))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [_line(cells, widths) for cells in table]
        return "\n".join([*lines, *_reasons(self.tasks)])


_HEADINGS = ("task", "read", "dropped", "held out", "examples", "tokens", "answer tokens")


def report_of(
    *, read: Iterable[Row], dropped: Iterable[Tally], held_out: Iterable[Row], examples: Iterable[Example]
) -> DataReport:
    """Count. `dropped` are the tallies of filter, deduplication and encoding; `examples` are what is trained on."""
    read, examples = list(read), list(examples)
    fates = sum(dropped, Tally())
    num_read = Counter(row.task for row in read)
    num_held_out = Counter(row.task for row in held_out)
    by_task: dict[str, list[Example]] = {task: [] for task in sorted(num_read)}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    tasks = (
        TaskCounts(
            task=task,
            num_read=num_read[task],
            dropped={reason: count for (of, reason), count in sorted(fates.items()) if of == task},
            num_held_out=num_held_out[task],
            num_examples=len(members),
            num_tokens=sum(example.num_tokens for example in members),
            num_answer_tokens=sum(example.num_tokens - example.num_prompt_tokens for example in members),
        )
        for task, members in by_task.items()
    )
    return DataReport(tasks=tuple(tasks), sources=_sources(read, {example.source for example in examples}))


def _sources(read: Iterable[Row], used: set[str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({(row.source, row.licence) for row in read if row.source in used}))


def _total(tasks: Iterable[TaskCounts]) -> TaskCounts:
    tasks = list(tasks)
    return TaskCounts(
        task="total",
        num_read=sum(counts.num_read for counts in tasks),
        dropped={"": sum(sum(counts.dropped.values()) for counts in tasks)},
        num_held_out=sum(counts.num_held_out for counts in tasks),
        num_examples=sum(counts.num_examples for counts in tasks),
        num_tokens=sum(counts.num_tokens for counts in tasks),
        num_answer_tokens=sum(counts.num_answer_tokens for counts in tasks),
    )


def _cells(counts: TaskCounts) -> tuple[str, ...]:
    numbers = (
        counts.num_read,
        sum(counts.dropped.values()),
        counts.num_held_out,
        counts.num_examples,
        counts.num_tokens,
        counts.num_answer_tokens,
    )
    return (counts.task, *(f"{number:,}" for number in numbers))


def _line(cells: Iterable[str], widths: list[int]) -> str:
    first, *rest = cells
    return "  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))])


def _reasons(tasks: Iterable[TaskCounts]) -> list[str]:
    return [
        f"dropped from {counts.task}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.dropped.items())
        for counts in tasks
        if counts.dropped
    ]
