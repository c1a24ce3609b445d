"""From scores to points: everything that an evaluation says of one path with one head at one precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.evaluation.compute import ATTENTION_CONTEXT_TOKENS, compute_share, path_bytes, request_compute_share
from models.evaluation.figures import figures_of
from models.evaluation.judging import judged
from models.evaluation.measures import measures_of
from models.evaluation.retention import retention_of, task_retentions
from models.evaluation.rows import OWN_WORDS, Passage
from models.evaluation.scores import PathHead, RowScore, Scores, agreement, mean_kl, perplexity_ratio
from models.evaluation.table import Point, RequestCompute, TaskFigures
from models.student.folder import Student

MeanRequest = tuple[int, int]
"""Mean tokens of prompt and answer."""


@dataclass(slots=True, kw_only=True, frozen=True)
class PointMaker:
    """Makes the points of a student. `requests` are the mean requests of tasks."""

    student: Student
    requests: Mapping[str, MeanRequest]
    seed: int

    def point(
        self,
        column: PathHead,
        precision: str,
        scores: Scores,
        *,
        full: Scores,
        reference: Scores,
        speeds: dict[int, float],
    ) -> Point:
        """`full` are the scores of the full path with the exact head at this precision, `reference` those at the
        reference precision."""
        manifest, rows = self.student.manifest, scores.rows
        path = manifest.path(column.path)
        measures, retention = task_retentions(rows, full.rows, self.seed)
        return Point(
            path=column.path,
            head=column.head,
            precision=precision,
            layers=manifest.num_layers_on(path),
            compute_share=compute_share(manifest, path, head=column.head),
            compute_share_with_attention=compute_share(manifest, path, ATTENTION_CONTEXT_TOKENS, head=column.head),
            agreement=agreement(rows),
            kl=mean_kl(rows),
            perplexity_ratio=perplexity_ratio(rows, reference.rows),
            tasks=_task_figures(rows, reference.rows),
            retention=dict(retention),
            reference_retention=retention_of(measures_of(rows, reference.rows, self.seed)),
            measures=measures,
            bytes=path_bytes(self.student, path, precision, column.head),
            decode_tokens_per_s=speeds,
            figures=judged(figures_of(scores, full, measures, self.seed), column, precision),
            request_compute={task: self._request_compute(column, *mean) for task, mean in self.requests.items()},
            pairs_accuracy=_pairs_accuracy(scores),
        )

    def _request_compute(self, column: PathHead, num_prompt: int, num_answer: int) -> RequestCompute:
        manifest = self.student.manifest
        share = request_compute_share(
            manifest,
            manifest.path(column.path),
            column.head,
            num_prompt_tokens=num_prompt,
            num_answer_tokens=num_answer,
        )
        return RequestCompute(num_prompt_tokens=num_prompt, num_answer_tokens=num_answer, compute_share=share)


def mean_requests(passages: Sequence[Passage]) -> dict[str, MeanRequest]:
    """Of the full path's own words, by task; rounded, and at least one token each."""
    found: dict[str, list[Passage]] = {}
    for passage in passages:
        if passage.dataset == OWN_WORDS:
            found.setdefault(passage.task, []).append(passage)
    return {
        task: (
            max(1, round(sum(one.boundary for one in own) / len(own))),
            max(1, round(sum(one.num_answer_tokens for one in own) / len(own))),
        )
        for task, own in found.items()
    }


def _pairs_accuracy(scores: Scores) -> float | None:
    return sum(pair.is_right for pair in scores.pairs) / len(scores.pairs) if scores.pairs else None


def _task_figures(rows: Sequence[RowScore], reference: Sequence[RowScore]) -> dict[str, TaskFigures]:
    figures = {}
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        base = [row for row in reference if row.task == task]
        figures[task] = TaskFigures(
            agreement=agreement(mine),
            kl=mean_kl(mine),
            perplexity_ratio=perplexity_ratio(mine, base),
            num_tokens=sum(row.num_tokens for row in mine),
        )
    return figures
