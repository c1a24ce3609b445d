"""A request's way to a student and a path: classified, tokenised by the student it is meant for, decided."""

import time
from dataclasses import dataclass
from typing import Protocol

from router.conversation import Conversation
from router.decision import Quality, RouteDecision, TaskScores, Wishes
from router.policy import choose_student
from server.context import Context, run_beside
from server.prompts import Prompt
from server.student import ServedStudent

LONG_CONVERSATION_CHARS = 200_000
"""Longer ones are classified in a thread; up to here it takes less than what a thread costs."""


class Routable(Protocol):
    """A request as the router sees it."""

    @property
    def wishes(self) -> Wishes: ...

    async def conversation(self) -> Conversation: ...

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        """All prompts in the student's tokens; the first one decides the way."""
        ...


@dataclass(slots=True, kw_only=True, frozen=True)
class Routed:
    """A decision, and what it was made of. `seconds` is the time of classifying and deciding alone."""

    decision: RouteDecision
    scores: TaskScores | None
    student: ServedStudent
    prompts: list[Prompt]
    seconds: float


async def route(context: Context, request: Routable) -> Routed:
    """Raises: UnknownModel, Unavailable; BadRequest and its kinds from tokenising."""
    wishes = request.wishes
    scores, classify_s = None, 0.0
    if _needs_task(context, wishes):
        scores, classify_s = await _classify(context, await request.conversation())
    begun_s = time.perf_counter()
    pool = context.pool.states()
    candidates, _ = choose_student(scores, wishes, pool)
    choose_s = time.perf_counter() - begun_s
    student = context.pool.find(candidates[0].name)
    prompts = await request.encode(student)
    begun_s = time.perf_counter()
    decision = context.router.decide(scores, wishes, len(prompts[0].token_ids), pool)
    decide_s = time.perf_counter() - begun_s
    return Routed(
        decision=decision,
        scores=scores,
        student=student,
        prompts=prompts,
        seconds=classify_s + choose_s + decide_s,
    )


def _needs_task(context: Context, wishes: Wishes) -> bool:
    """Whether the task has a say: not when a wish names it, or when student and path are settled without it."""
    if wishes.task is not None:
        return False
    is_student_settled = wishes.student is not None or len(context.students) < 2
    is_path_settled = wishes.path is not None or wishes.quality is Quality.FULL
    return not (is_student_settled and is_path_settled)


async def _classify(context: Context, conversation: Conversation) -> tuple[TaskScores | None, float]:
    texts = (conversation.last, *conversation.earlier, *conversation.system)
    begun_s = time.perf_counter()
    scores = await run_beside(
        sum(len(text) for text in texts),
        lambda: context.router.classify(conversation),
        limit_chars=LONG_CONVERSATION_CHARS,
    )
    return scores, time.perf_counter() - begun_s
