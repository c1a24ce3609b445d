"""Random examples, and what a tiny random teacher says about them."""

import random
from pathlib import Path

from models.distill.data.examples import Example
from models.distill.loss.objective import Teacher
from models.distill.network.decoder import Trunk
from models.distill.teacher.cache import CachedTeacher, cached_teacher, plan_cache

SHA = "5" * 64


def examples_of(*sizes: int, vocab_size: int = 320, task: str = "math", num_prompt_tokens: int = 3) -> list[Example]:
    draw = random.Random(3)
    return [
        Example(
            task=task,
            token_ids=tuple(draw.randrange(3, vocab_size) for _ in range(size)),
            num_prompt_tokens=num_prompt_tokens,
            source="test",
        )
        for size in sizes
    ]


def cache_of(
    trunk: Trunk, examples: list[Example], folder: Path, layers: tuple[int, ...] = (2, 3), top_k: int = 8
) -> CachedTeacher:
    return cached_teacher(folder, plan_cache(trunk, SHA, examples, layers, top_k), trunk, examples)


def teacher_of(trunk: Trunk, examples: list[Example], folder: Path, top_k: int = 8) -> Teacher:
    return Teacher(trunk=trunk, cache=cache_of(trunk, examples, folder, top_k=top_k))
