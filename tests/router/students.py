"""Short ways to make students to route to.

A student has four paths: a (2 layers), b (4), c (6) and full (8). Retention is written in that order, for the paths
below full.
"""

from typing import Any

from models.architecture import Architecture
from models.student.cut import exits_of, parse_modules, paths_of
from models.student.manifest import FORMAT_VERSION, DepthRule, Manifest, Retention
from router.decision import Health, RouteDecision, RoutePreferences, StudentState, TaskScores
from router.policy import PolicyConfig, choose_student, decide
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
    )
