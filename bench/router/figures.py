"""Figures from rounds: each is computed within a round, and its figure is the median over rounds."""

from collections.abc import Sequence

import numpy as np

from bench.rounds import RoundFigures, gather
from bench.router.rounds import Round
from bench.router.subjects import Subject
from bench.router.texts import CLASSES, LengthClass, Sample
from router.training.corpus import Row
from router.training.measure import figures as quality_figures

FORMULAS = {
    "p50_*_ms, p99_*_ms": "percentiles over the texts of a class, each timed once a round; no class: all up to 2,000",
    "sklearn_*, minilm_*": "the same for a peer, on every 2nd and every 20th of the texts",
    "ratio_*": "the peer's median over ours on the same texts of the same round; higher is better for us",
    "batch_per_s": "texts up to 2,000 in one call, over its seconds",
    "decide_*_ms": "the policy alone, for scores that are there",
    "first_decision_ms": "the first decision of a new process; start_ms is what came before: importing and loading",
}


def compute_figures(subjects: Sequence[Subject], samples: Sequence[Sample], rounds: Sequence[Round]) -> RoundFigures:
    return gather([_round_figures(subjects, samples, one) for one in rounds])


def _round_figures(subjects: Sequence[Subject], samples: Sequence[Sample], one: Round) -> dict[str, float]:
    found: dict[str, float] = {}
    for length_class in CLASSES:
        for subject in subjects:
            found |= _class_figures(subject, length_class, samples, one)
    for subject in subjects:
        per_s = one.subjects[subject.prefix].batch_per_s
        if per_s is not None:
            found[f"{subject.prefix}batch_per_s"] = per_s
    found["decide_p50_ms"], found["decide_p99_ms"] = np.percentile(one.policy_ms, (50, 99)).tolist()
    return found | {"first_decision_ms": one.first.decision_ms, "start_ms": one.first.start_ms}


def _class_figures(
    subject: Subject, length_class: LengthClass, samples: Sequence[Sample], one: Round
) -> dict[str, float]:
    """Nothing for a class none of whose texts the subject was timed on."""
    is_in = np.array([length_class.has(sample) for sample in samples[:: subject.stride]])
    if not is_in.any():
        return {}
    times_ms = one.subjects[subject.prefix].each_ms[is_in]
    p50, p99 = np.percentile(times_ms, (50, 99)).tolist()
    suffix = length_class.suffix
    found = {f"{subject.prefix}p50{suffix}_ms": p50, f"{subject.prefix}p99{suffix}_ms": p99}
    if subject.prefix:
        ours_ms = one.subjects[""].each_ms[:: subject.stride][is_in]
        found[f"ratio_{subject.prefix.rstrip('_')}{suffix}"] = p50 / float(np.median(ours_ms))
    return found


def compute_quality(subjects: Sequence[Subject], rows: Sequence[Row]) -> RoundFigures:
    """How right the subjects are on labelled rows, as `router.training.measure` defines it; one value each."""
    return {
        f"{subject.prefix}{name}": [value]
        for subject in subjects
        if subject.judge is not None
        for name, value in quality_figures(subject.judge(rows)).items()
        if value is not None
    }
