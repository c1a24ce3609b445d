"""Every round times every subject on the same texts, each round in another order."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.rounds import count_rounds
from bench.router.first import FirstTimes, time_first
from bench.router.policy import time_policy
from bench.router.subjects import Subject
from bench.router.texts import MIX, Sample
from router.classifier.classify import TaskClassifier
from router.training.measure import Floats

NUM_WARM_UPS = 60
"""Decisions before the timed ones: the first ones after another subject has run are slower."""


@dataclass(slots=True, kw_only=True, frozen=True)
class SubjectTimes:
    """What one round found of a subject. `each_ms` belongs to every `stride`-th sample.

    `batch_per_s` is None for a subject that takes one text at a time.
    """

    each_ms: Floats
    batch_per_s: float | None


@dataclass(slots=True, kw_only=True, frozen=True)
class Round:
    """`subjects` by prefix; `policy_ms` per text of the mix."""

    subjects: dict[str, SubjectTimes]
    policy_ms: Floats
    first: FirstTimes


def run_rounds(
    subjects: Sequence[Subject],
    samples: Sequence[Sample],
    classifier: TaskClassifier,
    file: Path,
    num_rounds: int,
    report: Callable[[str], None],
) -> list[Round]:
    mix = [sample.text for sample in samples if MIX.has(sample)]
    scores = classifier.classify_batch(mix)
    rounds = []
    for number in count_rounds(num_rounds, report):
        shift = number % len(subjects)
        order = (*subjects[shift:], *subjects[:shift])
        times = {subject.prefix: time_subject(subject, samples, mix) for subject in order}
        rounds.append(Round(subjects=times, policy_ms=time_policy(scores, mix), first=time_first(file)))
    return rounds


def time_subject(subject: Subject, samples: Sequence[Sample], mix: Sequence[str]) -> SubjectTimes:
    texts = [sample.text for sample in samples[:: subject.stride]]
    for text in mix[: NUM_WARM_UPS // subject.stride + 1]:
        subject.decide(text)
    times_ms = []
    for text in texts:
        begun_s = time.perf_counter()
        subject.decide(text)
        times_ms.append((time.perf_counter() - begun_s) * 1000)
    return SubjectTimes(each_ms=np.array(times_ms), batch_per_s=_time_batch(subject, mix))


def _time_batch(subject: Subject, mix: Sequence[str]) -> float | None:
    if subject.batch is None:
        return None
    begun_s = time.perf_counter()
    subject.batch(mix)
    return len(mix) / (time.perf_counter() - begun_s)
