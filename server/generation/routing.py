"""How a request gets to a student and a path: it is classified, tokenised for the student, and the router decides."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from models.errors import ContextTooLong, ServingError
from router.conversation import Conversation
from router.decision import Candidates, RouteDecision, RoutePreferences, Target, TaskScores
from router.language import find_language
from router.policy import needs_language, needs_task
from server.context import Context
from server.generation.envelope import Envelope
from server.generation.plan import Plan
from server.generation.prompts import Prompt
from server.generation.remote import remote_plan, remote_prompts
from server.students.student import ServedStudent

T = TypeVar("T")


class Order(Protocol):
    """A request that any student can be asked to answer."""

    @property
    def envelope(self) -> Envelope: ...

    @property
    def preferences(self) -> RoutePreferences: ...

    async def conversations(self) -> list[Conversation]:
        """What is classified, one for each prompt."""
        ...

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        """All prompts in the student's tokens. Raises: BadRequest and its kinds."""
        ...

    def plan(self, routed: "Routed") -> Plan:
        """What to generate, and how to write it; called beside the loop for a long body.

        Raises: ContextTooLong, InvalidParameter.
        """
        ...


@dataclass(slots=True, kw_only=True, frozen=True)
class Routed:
    """Where a request goes: `target`, of `student`, with the prompts in that student's tokens.

    `decision` is what the router decided, `scores` are those of the prompt that decided it; `seconds` is the time of
    classifying and deciding alone.
    """

    decision: RouteDecision
    target: Target
    student: ServedStudent
    prompts: list[Prompt]
    scores: TaskScores | None
    seconds: float


@dataclass(slots=True, kw_only=True, frozen=True)
class Read:
    """What the texts of a request say: an entry for each, or one for all. `seconds` is the time of finding it."""

    scores: Sequence[TaskScores | None] = (None,)
    languages: Sequence[str | None] = (None,)
    seconds: float = 0.0


async def route(context: Context, order: Order) -> Routed:
    """Decide where a request goes. Raises: UnknownModel, Unavailable; BadRequest and its kinds from tokenising."""
    preferences = order.preferences
    read = await _read(context, order)
    begun_s = time.perf_counter()
    candidates = context.router.choose(read.scores[0], preferences, context.pool.states())
    choose_s = time.perf_counter() - begun_s
    candidates, student, prompts = await _encode(context, order, candidates)
    begun_s = time.perf_counter()
    index, decision = _decide(context, read, preferences, prompts, candidates)
    decide_s = time.perf_counter() - begun_s
    return Routed(
        decision=decision,
        target=decision.target,
        student=student,
        prompts=prompts,
        scores=_per_prompt(read.scores, prompts)[index],
        seconds=read.seconds + choose_s + decide_s,
    )


async def reroute(context: Context, order: Order, routed: Routed, target: Target) -> Routed:
    """The same decision with another target in place of its own.

    Raises: NotFound for a student that is gone; BadRequest and its kinds from tokenising.
    """
    student = context.pool.find(target.student)
    return replace(routed, target=target, student=student, prompts=await prompts_of(order, student))


def _decide(
    context: Context,
    read: Read,
    preferences: RoutePreferences,
    prompts: Sequence[Prompt],
    candidates: Candidates,
) -> tuple[int, RouteDecision]:
    """One decision for all prompts, and the index of the prompt it is made for."""
    decisions = [
        context.router.decide(score, preferences, prompt.num_tokens, candidates, language)
        for score, language, prompt in zip(
            _per_prompt(read.scores, prompts), _per_prompt(read.languages, prompts), prompts, strict=True
        )
    ]
    return context.router.decide_together(decisions, candidates)


def _per_prompt(found: Sequence[T], prompts: Sequence[Prompt]) -> Sequence[T]:
    """What was found of every prompt; where that is one thing for all, it once for each."""
    return found if len(found) == len(prompts) else [found[0]] * len(prompts)


async def plan_of(context: Context, order: Order, routed: Routed) -> Plan:
    """Raises: ContextTooLong, InvalidParameter."""
    envelope = order.envelope

    def plan() -> Plan:
        if routed.student.remote is None:
            return order.plan(routed)
        return remote_plan(context, envelope, routed.target, routed.student)

    return await context.long_work.run(envelope.num_bytes, plan, envelope.tenant)


async def prompts_of(order: Order, student: ServedStudent) -> list[Prompt]:
    """All prompts of a request in a student's tokens, as far as they are known here.

    Raises: BadRequest and its kinds.
    """
    return await order.encode(student) if student.remote is None else remote_prompts(order.envelope)


async def _encode(
    context: Context, order: Order, candidates: Candidates
) -> tuple[Candidates, ServedStudent, list[Prompt]]:
    """The prompts in the tokens of the first candidate whose context holds them; of the first when none does.

    Raises: ContextTooLong when none does and that is known without tokenising; what the order's `encode` raises.
    """
    first: tuple[ServedStudent, list[Prompt]] | None = None
    refusal: ContextTooLong | None = None
    unable: dict[str, str] = {}
    for state in candidates.students:
        try:
            student = context.pool.find(state.name)
            prompts = await prompts_of(order, student)
        except ContextTooLong as error:
            refusal = refusal or error
            unable[state.name] = error.message
            continue
        except ServingError as error:
            if first is None and refusal is None:
                raise
            unable[state.name] = error.message
            continue
        why = _why_too_long(student, prompts) if len(candidates.students) > 1 else None
        if why is None:
            return candidates.without(unable), student, prompts
        first = first or (student, prompts)
        unable[state.name] = why
    if refusal is not None:
        raise refusal
    assert first is not None
    return candidates, *first


def _why_too_long(student: ServedStudent, prompts: Sequence[Prompt]) -> str | None:
    longest, max_context = max(prompt.num_tokens for prompt in prompts), student.max_context_tokens
    return None if longest < max_context else f"the prompt has {longest} of its tokens, its context only {max_context}"


async def _read(context: Context, order: Order) -> Read:
    """The scores and languages of the prompts, as far as they have a say."""
    wants_scores = needs_task(order.preferences, len(context.students))
    wants_languages = needs_language(order.preferences)
    if not (wants_scores or wants_languages):
        return Read()
    conversations = await order.conversations()
    begun_s = time.perf_counter()
    return Read(
        languages=[find_language(one.last) for one in conversations] if wants_languages else (None,),
        scores=await _classify(context, order.envelope, conversations) if wants_scores else (None,),
        seconds=time.perf_counter() - begun_s,
    )


async def _classify(
    context: Context, envelope: Envelope, conversations: Sequence[Conversation]
) -> list[TaskScores | None]:
    return await context.long_work.run(
        envelope.num_bytes,
        lambda: [context.router.classify(conversation) for conversation in conversations],
        envelope.tenant,
    )
