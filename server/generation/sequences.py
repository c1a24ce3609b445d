"""What chat and text completions share: a request's sequences, the model's name, how ends and tokens are written."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from engines.sequence import FinishReason, GenerationRequest, SamplingParams
from router.decision import Target
from server.generation.sampling import seed_of_choice, while_loading
from server.students.student import ServedStudent
from server.wire.base import SamplingBody


def choice_requests(
    body: SamplingBody,
    key: str,
    prompts: Sequence[tuple[int, ...]],
    samplings: Sequence[SamplingParams],
    target: Target,
) -> tuple[GenerationRequest, ...]:
    """`n` sequences per prompt for a target's path and head, called `{key}-{index}` by the index of their choice."""
    n = body.n or 1
    requests = []
    for index in range(n * len(prompts)):
        sampling = samplings[index // n]
        requests.append(
            GenerationRequest(
                id=f"{key}-{index}",
                prompt_token_ids=prompts[index // n],
                path=target.path,
                sampling=dataclasses.replace(sampling, seed=seed_of_choice(sampling.seed, index % n)),
                while_loading=while_loading(body),
                needs_exact_head=target.head == "exact",
            )
        )
    return tuple(requests)


def answered_model(model: str, student: ServedStudent) -> str:
    """The model id an answer carries: the one asked for if it names a path of the student, else the student's name."""
    return model if model.startswith(f"{student.name}:") else student.name


def finish_reason(reason: FinishReason) -> Literal["stop", "length"]:
    """The API's word for the end of an answer; all other ends are errors."""
    return "length" if reason is FinishReason.LENGTH else "stop"
