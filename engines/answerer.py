"""Writes training answers with an engine: prompts in, token ids out, at the speed of a full batch."""

import hashlib
import queue
from collections.abc import Iterator, Sequence

from engines.contract import Engine
from engines.sequence import FinishReason, GenerationRequest, SamplingParams, SequenceEvent
from models.errors import StepFailed

MAX_SUBMITTED = 256
"""How many prompts are in the engine at a time: enough to fill every batch."""


class EngineAnswerer:
    """`models.distill.data.labels.Answerer` on an engine that has not been started; use it as a context manager.

    Answers are those of the exact head, unless it is told otherwise, whichever the engine would use.

    Each prompt's seed is derived from its tokens, so its answer does not depend on the other prompts: a resumed run,
    which has fewer of them left, gets the same answers.
    """

    def __init__(
        self, engine: Engine, path: str, end_token_ids: frozenset[int], *, needs_exact_head: bool = True
    ) -> None:
        self._engine = engine
        self._path = path
        self._needs_exact_head = needs_exact_head
        self._end_token_ids = end_token_ids
        self._events: queue.SimpleQueue[SequenceEvent] = queue.SimpleQueue()

    def __enter__(self) -> "EngineAnswerer":
        self._engine.start(self._publish)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop(grace_s=0.0)

    def on(self, path: str, *, needs_exact_head: bool) -> "EngineAnswerer":
        """The same engine, started or not, on another path or with another head; one of them answers at a time."""
        other = EngineAnswerer(self._engine, path, self._end_token_ids, needs_exact_head=needs_exact_head)
        other._events = self._events
        return other

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield (index of the prompt, token ids of its answer) in the order in which the answers end.

        Raises: StepFailed when a sequence ends with an error; whatever `Engine.submit` raises.
        """
        waiting = iter(enumerate(prompts))
        answers: dict[int, list[int]] = {}
        num_open = 0
        while True:
            while num_open < MAX_SUBMITTED and (entry := next(waiting, None)) is not None:
                sampling = SamplingParams(
                    max_tokens=max_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=_seed_of(entry[1], seed),
                    stop_token_ids=self._end_token_ids,
                )
                request = GenerationRequest(
                    id=str(entry[0]),
                    prompt_token_ids=entry[1],
                    path=self._path,
                    sampling=sampling,
                    needs_exact_head=self._needs_exact_head,
                )
                self._engine.submit(request)
                answers[entry[0]] = []
                num_open += 1
            if not num_open:
                return
            event = self._events.get()
            index = int(event.sequence_id)
            answers[index] += event.token_ids
            if event.finish is not None:
                num_open -= 1
                if event.finish.error is not None:
                    raise StepFailed(f"the teacher could not answer a prompt: {event.finish.error}")
                yield index, tuple(self._ended(answers.pop(index), event.finish.reason))

    def _ended(self, token_ids: list[int], reason: FinishReason) -> list[int]:
        """The answer with its end token, which events leave out; an answer that was cut short has none."""
        has_end = bool(token_ids) and token_ids[-1] in self._end_token_ids
        if reason is FinishReason.STOP and not has_end:
            token_ids.append(min(self._end_token_ids))
        return token_ids

    def _publish(self, events: Sequence[SequenceEvent]) -> None:
        for event in events:
            self._events.put(event)


def _seed_of(prompt: tuple[int, ...], seed: int) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, prompt)).encode()).digest()[:8], "big") >> 1
