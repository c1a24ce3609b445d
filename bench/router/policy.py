"""The time of the policy: `decide` for scores that the classifier found, over two students of the default shape."""

import time
from collections.abc import Sequence

import numpy as np

from models.architecture import Architecture
from models.student.cut import default_modules, exits_of, paths_of
from models.student.manifest import FORMAT_VERSION, DepthRule, Manifest, Retention
from router.decision import Health, RoutePreferences, StudentState, TaskScores
from router.policy import PolicyConfig, choose_student, decide
from router.tasks import SUBJECTS
from router.training.measure import Floats

NUM_LAYERS = 30
CHARS_PER_TOKEN = 4
VARIANT = "int8"


def default_pool() -> list[StudentState]:
    """Two students with measured paths, depth rules and a path per task; one of them is half busy."""
    manifest = _manifest()
    return [
        StudentState(name=name, manifest=manifest, variant=VARIANT, health=Health.READY, max_running=32, num_running=at)
        for name, at in (("one", 16), ("two", 4))
    ]


def _manifest() -> Manifest:
    modules = default_modules(NUM_LAYERS)
    paths = paths_of(modules)
    shallow = paths[0].name
    return Manifest(
        format_version=FORMAT_VERSION,
        name="bench",
        source="none",
        source_sha256="",
        licence="unknown",
        architecture=Architecture(
            family="llama",
            num_layers=NUM_LAYERS,
            hidden_size=8,
            intermediate_size=8,
            num_heads=1,
            num_kv_heads=1,
            head_dim=8,
            vocab_size=32,
            max_context_tokens=64,
            norm_eps=1e-5,
            rope_theta=1e4,
        ),
        modules=modules,
        exits=exits_of(modules),
        paths=paths,
        tasks=dict.fromkeys(SUBJECTS, shallow),
        depth_rules=tuple(
            DepthRule(max_prompt_tokens=limit, path=path.name)
            for limit, path in zip((128, 512, None), paths, strict=True)
        ),
        variants=(),
        retention=tuple(
            Retention(path=path.name, task=task, variant=VARIANT, score=0.9, low=0.88, high=0.92)
            for path in paths[:-1]
            for task in SUBJECTS
        ),
    )


def time_policy(scores: Sequence[TaskScores], texts: Sequence[str]) -> Floats:
    """Shapes: [texts]. Units: milliseconds."""
    pool, config, preferences = default_pool(), PolicyConfig(), RoutePreferences()
    times_ms = []
    for score, text in zip(scores, texts, strict=True):
        num_tokens = len(text) // CHARS_PER_TOKEN
        begun_s = time.perf_counter()
        candidates = choose_student(score, preferences, pool)
        decide(
            scores=score,
            preferences=preferences,
            num_prompt_tokens=num_tokens,
            candidates=candidates,
            config=config,
        )
        times_ms.append((time.perf_counter() - begun_s) * 1000)
    return np.array(times_ms)
