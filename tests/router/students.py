"""Short ways to make students to route to.

A student has four paths: a (2 layers), b (4), c (6) and full (8). Retention is written in that order, for the paths
below full.
"""

from typing import Any

import msgspec

from models.architecture import Architecture
from models.evaluation.verdicts import with_verdicts
from models.student.cut import exits_of, parse_modules, paths_of
from models.student.manifest import (
    FORMAT_VERSION,
    CheapHead,
    DepthRule,
    HeadKind,
    Manifest,
    PathFigures,
    Retention,
)
from router.decision import Health, RouteDecision, RoutePreferences, StudentState, TaskScores
from router.policy import PolicyConfig, choose_student, decide
from router.quality.live import NOTHING_KNOWN, LiveQuality
from router.tasks import Task

MODULES = parse_modules("a:2,b:2,c:2,d:2", 8)
NAMES = ("a", "b", "c", "full")
ARCHITECTURE = Architecture(
    family="llama",
    num_layers=8,
    hidden_size=8,
    intermediate_size=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    vocab_size=32,
    max_context_tokens=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)
RULES = ((128, "a"), (512, "b"), (None, "c"))
IDLE, BUSY = 0, 9


def student_manifest(
    *,
    keeps: tuple[float | None, ...] = (),
    tasks: dict[str, str] | None = None,
    rules: tuple[tuple[int | None, str], ...] = (),
    measured: tuple[str, str] = ("math", "int8"),
) -> Manifest:
    """`keeps`: retention of a, b and c on the task and variant in `measured`; None was not measured."""
    task, variant = measured
    return Manifest(
        format_version=FORMAT_VERSION,
        name="student",
        source="none",
        source_sha256="",
        licence="unknown",
        architecture=ARCHITECTURE,
        modules=MODULES,
        exits=exits_of(MODULES),
        paths=paths_of(MODULES),
        tasks={"math": "a"} if tasks is None else tasks,
        depth_rules=tuple(DepthRule(max_prompt_tokens=limit, path=path) for limit, path in rules),
        variants=(),
        retention=tuple(
            Retention(path=path, task=task, variant=variant, score=score, low=score, high=score)
            for path, score in zip(NAMES, keeps, strict=False)
            if score is not None
        ),
    )


def student(name: str = "one", *, manifest: Manifest | None = None, **fields: Any) -> StudentState:
    """Ready, with room for ten sequences."""
    values: dict[str, Any] = {"variant": "int8", "health": Health.READY, "max_running": 10} | fields
    return StudentState(name=name, manifest=manifest or student_manifest(), **values)


def scores(task: Task, confidence: float = 0.75) -> TaskScores:
    return TaskScores(task=task, confidence=confidence, probabilities={task: confidence})


def route(
    pool: list[StudentState],
    verdict: Task | None = "math",
    *,
    num_prompt_tokens: int = 10,
    config: PolicyConfig | None = None,
    language: str | None = None,
    live: LiveQuality = NOTHING_KNOWN,
    **preferences: Any,
) -> RouteDecision:
    """`verdict` is what the classifier found, None its fault."""
    found, given = None if verdict is None else scores(verdict), RoutePreferences(**preferences)
    return decide(
        scores=found,
        preferences=given,
        num_prompt_tokens=num_prompt_tokens,
        candidates=choose_student(found, given, pool),
        config=config or PolicyConfig(),
        language=language,
        live=live,
    )


HEADS: tuple[HeadKind, ...] = ("cheap", "exact")
CHEAP_HEAD = CheapHead(rank=2, num_frequent=2, num_candidates=2, sha256="0" * 64)
"""Of the vocabulary's 32 logits at 8 dimensions it costs 112 multiply-adds instead of 256; a layer costs 448."""

GOOD: dict[str, Any] = {
    "perplexity_ratio_own": 1.1,
    "perplexity_ratio_human": 1.1,
    "perplexity_ratio_plain": 1.1,
    "information_kept": 0.96,
    "accuracy_kept": 0.97,
    "blimp_kept": 0.97,
}
FAIR = GOOD | {"perplexity_ratio_own": 1.14, "perplexity_ratio_human": 1.24}
"""Passes the gate and not fidelity; `GOOD` passes both, `POOR` neither."""
POOR = GOOD | {"perplexity_ratio_human": 2.0}
FIGURES = {"good": GOOD, "fair": FAIR, "poor": POOR}


def path_figures(
    path: str, head: HeadKind, kind: str, *, task: Task = "math", language: str = "en", variant: str = "int8"
) -> PathFigures:
    """Figures that are known exactly. `kind`: good, fair or poor."""
    values = FIGURES[kind]
    return with_verdicts(
        PathFigures(
            path=path,
            head=head,
            task=task,
            variant=variant,
            language=language,
            intervals={name: (value, value) for name, value in values.items()},
            **values,
        )
    )


def measured_manifest(
    figures: str, *, task: Task = "math", language: str = "en", variant: str = "int8", **manifest: Any
) -> Manifest:
    """`figures` such as "a:poor b:fair/good full:fair/-": of a path with the cheap head and, behind a slash, with the
    exact one; - was not measured."""
    found = []
    for word in figures.split():
        path, _, kinds = word.partition(":")
        for head, kind in zip(HEADS, kinds.split("/"), strict=False):
            if kind != "-":
                found.append(path_figures(path, head, kind, task=task, language=language, variant=variant))
    made = student_manifest(**manifest)
    return msgspec.structs.replace(made, figures=tuple(found), cheap_head=CHEAP_HEAD)
