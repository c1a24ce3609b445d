"""Has finished answers scored by the full path, one at a time, while nobody waits for anything else.

Runs beside requests on the loop, and in the engine behind all of them. It never raises into a request.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engines.answer_score import AnswerScore
from engines.contract import EngineStatus
from engines.sequence import Finish, GenerationRequest, SequenceEvent
from models.errors import ServingError
from router.quality.live import PathUse
from router.tasks import Task
from server.quality.answers import Answer, Collector, answer_tokens, has_ended, plain_sampling, why_left_out
from server.quality.budget import Budget
from server.quality.holding import why_busy, why_spent, why_unable
from server.quality.online_quality import OnlineQuality
from server.students.event_bridge import EventStream
from server.students.student import ServedStudent

logger = logging.getLogger(__name__)
request_log = logging.getLogger("server.request_log")

LOOK_S = 0.2
"""Between two looks whether somebody else needs the engine."""
LIMIT_S = 120.0
"""For one sequence in the background: an engine that hangs must not hold the next answer up for ever."""
TOO_OLD_S = 600.0
"""An answer that has waited longer is left out: it says little about now."""


class GaveWay(Exception):
    """Others need the engine, or it does not answer."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Asked:
    """A request that is about to be answered. `task` None: nobody knows what it is about."""

    request_id: str
    student: ServedStudent
    task: Task | None
    request: GenerationRequest
    is_allowed: bool


class Scorer:
    """Owned by the loop. `students` are those of the pool, `is_stopping` says whether the server is."""

    def __init__(
        self,
        quality: OnlineQuality,
        students: Callable[[], Sequence[ServedStudent]],
        is_stopping: Callable[[], bool],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._quality = quality
        self._students = students
        self._is_stopping = is_stopping
        self._chance = chance
        self._waiting: deque[Answer] = deque()
        self._arrived = asyncio.Event()
        self._budgets: dict[str, Budget] = {}
        self._numbers = itertools.count()
        self._has_failed = False
        self.is_scoring = False

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def watch(self, stream: EventStream, asked: Asked) -> bool:
        """Perhaps have the answer scored when it has ended; whether it was chosen."""
        config = self._quality.config
        if config.mode == "off" or self._is_stopping() or self._has_failed or self._chance() >= config.share:
            return False
        if not asked.is_allowed:
            return self._leave_out("opted_out")
        if asked.student.remote is not None or not asked.student.fixed.can_score:
            return self._leave_out("no_scorer")
        if asked.task is None:
            return self._leave_out("no_task")
        why = why_left_out(asked.request, config)
        if why is not None:
            return self._leave_out(why)
        task = asked.task
        stream.watcher = Collector(
            max_tokens=config.max_answer_tokens,
            done=lambda token_ids, finish: self._take(asked, task, token_ids, finish),
        )
        return True

    def why_held(self, held: Mapping[str, str | None]) -> str | None:
        """Why nothing is scored now, in words; None where something may be, in some student. `held`: by student."""
        if self._has_failed:
            return "the scorer has failed; the log says why"
        if self._is_stopping():
            return "the server is stopping"
        if not held:
            return "this server has no student"
        reasons = [why for why in held.values() if why is not None]
        return "; ".join(reasons) if len(reasons) == len(held) else None

    def held_by_student(self) -> dict[str, str | None]:
        return {student.name: self._why_held(student) for student in self._students()}

    async def run(self) -> None:
        """Never returns unless it fails, and then says so."""
        try:
            await self._run()
        except Exception:
            logger.exception("the scorer failed: no more answers are scored")
            self._has_failed = True

    async def _run(self) -> None:
        while True:
            self._arrived.clear()
            answer = self._next()
            if answer is None:
                waits = asyncio.wait_for(self._arrived.wait(), LOOK_S) if self._waiting else self._arrived.wait()
                with contextlib.suppress(TimeoutError):
                    await waits
                continue
            await self._score_safely(answer)

    async def _score_safely(self, answer: Answer) -> None:
        self.is_scoring = True
        try:
            await self._score(answer)
        except GaveWay:
            self._leave_out("gave_way")
        except ServingError as error:
            logger.info("answer not scored id=%s error=%s", answer.request_id, error)
            self._leave_out("failed")
        except Exception:
            logger.exception("scoring an answer failed id=%s", answer.request_id)
            self._leave_out("failed")
        finally:
            self.is_scoring = False

    def _take(self, asked: Asked, task: Task, token_ids: tuple[int, ...], finish: Finish) -> None:
        """An answer has ended."""
        config = self._quality.config
        if not has_ended(finish):
            self._leave_out("cut_short")
        elif len(token_ids) < config.min_answer_tokens:
            self._leave_out("short")
        elif len(self._waiting) >= config.max_queued:
            self._leave_out("queue_full")
        else:
            head = asked.request.head_on(asked.student.fixed.head)
            answer = Answer(
                request_id=asked.request_id,
                use=PathUse(asked.student.name, task, finish.path, head),
                prompt_token_ids=asked.request.prompt_token_ids,
                token_ids=token_ids,
                sampling=asked.request.sampling,
                at_s=time.monotonic(),
            )
            self._waiting.append(answer)
            self._arrived.set()

    def _next(self) -> Answer | None:
        """The first answer whose student is free for it. Those that nobody can score any more are left out."""
        if self._quality.config.mode == "off" or self._is_stopping():
            self._waiting.clear()
        now_s, held = time.monotonic(), self.held_by_student() if self._waiting else {}
        for answer in list(self._waiting):
            is_there = answer.use.student in held
            if not is_there or now_s - answer.at_s > TOO_OLD_S:
                self._waiting.remove(answer)
                self._leave_out("too_old" if is_there else "failed")
            elif held[answer.use.student] is None:
                self._waiting.remove(answer)
                return answer
        return None

    def _why_held(self, student: ServedStudent) -> str | None:
        config, status = self._quality.config, student.engine.status()
        return (
            why_unable(student, status)
            or why_busy(student, status, config)
            or why_spent(student, self._left_s(student.name, status), config)
        )

    def _left_s(self, name: str, status: EngineStatus) -> float:
        budget = self._budgets.setdefault(name, Budget())
        return budget.look(status.busy_s, status.background_s, self._quality.config.engine_share)

    async def _score(self, answer: Answer) -> None:
        """Raises: GaveWay; ServingError."""
        student = next(one for one in self._students() if one.name == answer.use.student)
        score = await self._score_of(student, answer)
        figure = self._quality.add(answer.use, score, is_shadow=answer.is_shadow)
        _log(answer, score, None if figure is None else figure.kept)
        shadow = None if answer.is_shadow else self._quality.shadow_of(student, answer.use.task)
        if shadow is not None:
            written = await self._write_shadow(student, answer, shadow)
            if written is not None and len(self._waiting) < self._quality.config.max_queued:
                self._waiting.append(written)

    async def _score_of(self, student: ServedStudent, answer: Answer) -> AnswerScore:
        request = answer.scoring(self._id(), student.manifest.full_path.name)
        events = await self._in_background(student, request)
        score = next((event.score for event in events if event.score is not None), None)
        if score is None or not has_ended(_finish(events)):
            raise _finish(events).error or GaveWay
        return score

    async def _write_shadow(self, student: ServedStudent, answer: Answer, use: PathUse) -> Answer | None:
        """What a path that is not taken answers to the same prompt. Raises: GaveWay; ServingError."""
        config = self._quality.config
        sampling = plain_sampling(answer.sampling)
        max_tokens = min(sampling.max_tokens, config.max_answer_tokens)
        request = GenerationRequest(
            id=self._id(),
            prompt_token_ids=answer.prompt_token_ids,
            path=use.path,
            sampling=dataclasses.replace(sampling, max_tokens=max_tokens, seed=secrets.randbits(63)),
            needs_exact_head=use.head == "exact",
            in_background=True,
        )
        events = await self._in_background(student, request)
        finish = _finish(events)
        if not has_ended(finish):
            raise finish.error or GaveWay
        collected = [token for event in events for token in event.token_ids]
        token_ids = answer_tokens(collected, finish, config.max_answer_tokens)
        if len(token_ids) < config.min_answer_tokens:
            self._leave_out("short")
            return None
        return dataclasses.replace(answer, use=use, token_ids=token_ids, is_shadow=True, at_s=time.monotonic())

    async def _in_background(self, student: ServedStudent, request: GenerationRequest) -> list[SequenceEvent]:
        """Raises: GaveWay when somebody waits meanwhile or nothing happens; ServingError."""
        work = asyncio.get_running_loop().create_task(student.bridge.run_in_background(request))
        until_s = time.monotonic() + LIMIT_S
        try:
            while not (await asyncio.wait([work], timeout=LOOK_S))[0]:
                status = student.engine.status()
                is_in_the_way = why_busy(student, status, self._quality.config) is not None
                if is_in_the_way or not status.is_healthy or time.monotonic() > until_s:
                    raise GaveWay
            return work.result()
        finally:
            work.cancel()

    def _id(self) -> str:
        return f"online-quality {next(self._numbers)}"

    def _leave_out(self, why: str) -> bool:
        self._quality.left_out[why] += 1
        return False


def _finish(events: Sequence[SequenceEvent]) -> Finish:
    finish = events[-1].finish
    assert finish is not None
    return finish


def _log(answer: Answer, score: AnswerScore, kept: float | None) -> None:
    """In the request log, by the id of the request that was answered; nothing of its text."""
    use = answer.use
    fields = {
        "id": answer.request_id,
        "student": use.student,
        "task": use.task,
        "path": use.path,
        "head": use.head,
        "shadow": answer.is_shadow,
        "tokens": score.num_tokens,
        "gap_nats": round((score.nats - score.expected_nats) / score.num_tokens, 4),
        "agreement": round(score.num_agreed / score.num_tokens, 4),
        "kept": None if kept is None else round(kept, 4),
    }
    text = " ".join(f"{name}={value}" for name, value in fields.items())
    request_log.info("answer scored %s", text, extra={"fields": fields, "event": "answer scored"})
