"""The sessions of a run: the i-th one is the same whoever asks for it, so that several workers can share a run."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

from loadtest.traffic.prompts import compose, draw_length, system_prompt
from loadtest.traffic.workload import Tenant, Workload

BLOCK = 20
"""Sessions among which the share of repeats is exact."""
GOLDEN = 0.6180339887498949
Key = TypeVar("Key")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "score": {"type": "integer"}, "is_sure": {"type": "boolean"}},
    "required": ["title", "score", "is_sure"],
    "additionalProperties": False,
}
BOUND = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


@dataclass(slots=True, kw_only=True, frozen=True)
class Session:
    """`texts` are what the user says, one per turn, `answer_tokens` how long the answers are. Turns in `leaves` end
    after their first token."""

    index: int
    task: str
    language: str
    texts: tuple[str, ...]
    answer_tokens: tuple[int, ...]
    is_repeat: bool = False
    is_bound: bool = False
    leaves: frozenset[int] = frozenset()
    tenant: str | None = None


class SessionPlan:
    """Every session of one run. `seed` decides what is new in it."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self.workload = workload
        self._seed = seed
        self._repeats_of = cache(self._repeats_in_block)

    def session(self, index: int) -> Session:
        task = self._task_of(index)
        if index % BLOCK in self._repeats_of(index // BLOCK):
            return self.repeated(self._choose_repeated(task, self._rng("choice", index)), index)
        return self._draw(index, task, self._rng("session", index))

    def repeated(self, number: int, index: int = -1) -> Session:
        """The prompt of this number among those that are repeated, as the session of this index. No seed changes it, so
        that a server is asked them once for many runs.
        """
        return self._draw(index, self._task_of(number), random.Random(f"repeated {number}"), is_repeat=True)

    @property
    def population(self) -> int:
        """How many prompts are repeated."""
        return 0 if self.workload.repeats is None else self.workload.repeats.population

    @cached_property
    def tenants(self) -> Mapping[str, Tenant]:
        return {tenant.name: tenant for tenant in self.workload.tenants}

    def body(self, session: Session, turn: int, said: list[str]) -> dict[str, Any]:
        """Of the turn's request; `said` are the answers so far."""
        workload = self.workload
        fields: dict[str, Any] = {
            "model": workload.model,
            "messages": self._messages(session, turn, said),
            "max_tokens": session.answer_tokens[turn],
            "temperature": workload.answers.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if session.is_bound:
            fields["response_format"] = BOUND
        elif workload.answers.ignore_eos:
            fields["ignore_eos"] = True
        return fields | workload.body

    def _messages(self, session: Session, turn: int, said: list[str]) -> list[dict[str, str]]:
        messages = []
        if self.workload.prompts.system_tokens:
            messages.append({"role": "system", "content": system_prompt(self.workload.prompts.system_tokens)})
        for number in range(turn + 1):
            messages.append({"role": "user", "content": session.texts[number]})
            if number < turn:
                messages.append({"role": "assistant", "content": said[number]})
        return messages

    def _task_of(self, index: int) -> str:
        """Steps of the golden ratio, so that every stretch of sessions has close to the shares of the workload."""
        weights = self.workload.prompts.tasks
        left = ((index + 1) * GOLDEN) % 1.0 * sum(weights.values())
        for task, weight in weights.items():
            left -= weight
            if left < 0:
                return task
        return list(weights)[-1]

    def _choose_repeated(self, task: str, rng: random.Random) -> int:
        """One of the repeated prompts of this task: its i-th with a weight of i ** -exponent."""
        assert self.workload.repeats is not None
        numbers = self._repeated_by_task.get(task) or list(range(self.population))
        weights = [rank**-self.workload.repeats.exponent for rank in range(1, len(numbers) + 1)]
        return rng.choices(numbers, weights)[0]

    @cached_property
    def _repeated_by_task(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number in range(self.population):
            found.setdefault(self._task_of(number), []).append(number)
        return found

    def _draw(self, index: int, task: str, rng: random.Random, *, is_repeat: bool = False) -> Session:
        workload = self.workload
        language = _pick(workload.prompts.languages, rng)
        turns = range(workload.sessions.turns)
        lengths = [draw_length(workload.prompts.tokens, rng) for _ in turns]
        return Session(
            index=index,
            task=task,
            language=language,
            texts=tuple(compose(task, language, length, rng) for length in lengths),
            answer_tokens=tuple(draw_length(workload.answers.tokens, rng) for _ in turns),
            is_repeat=is_repeat,
            is_bound=not is_repeat and rng.random() < workload.behaviour.bound_share,
            leaves=frozenset(
                turn for turn in turns if not is_repeat and rng.random() < workload.behaviour.cancel_share
            ),
            tenant=_pick({tenant.name: tenant.share for tenant in workload.tenants}, rng) if workload.tenants else None,
        )

    def _repeats_in_block(self, block: int) -> frozenset[int]:
        """The positions in this block that repeat a prompt; over several blocks, their share is exact too."""
        repeats = self.workload.repeats
        if repeats is None:
            return frozenset()
        count = int((block + 1) * BLOCK * repeats.share + 1e-9) - int(block * BLOCK * repeats.share + 1e-9)
        return frozenset(self._rng("block", block).sample(range(BLOCK), count))

    def _rng(self, what: str, number: int) -> random.Random:
        return random.Random(f"{what} {self._seed} {number}")


def _pick(weights: Mapping[Key, float], rng: random.Random) -> Key:
    return rng.choices(list(weights), list(weights.values()))[0]
