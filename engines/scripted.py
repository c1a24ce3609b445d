"""An engine without a model: it answers from a script, and fails when the script says so.

For tests of everything above the `Engine` contract, and for users who test their clients. It batches, streams,
aborts, loads and refuses like a real one; `stop` and `max_tokens` cut its lines, sampling changes nothing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engines.answer_score import AnswerScore
from engines.contract import EngineStatus, PathStatus, Publish
from engines.sequence import (
    Finish,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    SequenceEvent,
    SequenceState,
    SequenceStatus,
    Timings,
    TokenLogprob,
    Usage,
    WhileLoading,
)
from models.errors import ContextTooLong, EngineUnhealthy, QueueFull, ServingError, UnknownModel
from models.student.manifest import HeadKind

LOGPROB = -0.5
"""What every scripted token gets; its alternatives follow at one nat each."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Line:
    """What to say: one piece of text per step, `delay_s` apart.

    `first_s` given: the first piece comes exactly that long after admission and the others `delay_s` apart; else all
    lines of one speed are spoken in common steps. `refusal` is raised by `submit`. `error` ends the sequence after all
    pieces. `token_ids`, one per piece, count from 0 when not given. `num_cached_tokens` is what the usage claims.
    """

    pieces: tuple[str, ...] = ("Hello", ",", " world", "!")
    token_ids: tuple[int, ...] | None = None
    delay_s: float = 0.0
    first_s: float | None = None
    refusal: ServingError | None = None
    error: ServingError | None = None
    num_cached_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Speaker:
    """A sequence and how far its line is spoken. Owned by the engine thread once it is running."""

    request: GenerationRequest
    line: Line
    path: str
    texts: tuple[str, ...]
    reason: FinishReason
    stop: str | None
    queued_s: float
    num_spoken: int = 0
    due_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counters that only grow."""

    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_steps: int = 0
    stage_runs: Counter[str] = field(default_factory=Counter)
    stage_rows: Counter[str] = field(default_factory=Counter)


class ScriptedEngine:
    """Implements `engines.contract.Engine`.

    `script` maps a part of the prompt's text to a line, first match wins; `decode` makes that text of ids.
    `paths` maps each path to its number of stages, shallowest first. They are loaded at once, or as `load`
    says when `is_loaded` is False. With `score_of` it scores answers; what is in the background is not counted.
    """

    def __init__(
        self,
        *,
        student: str,
        paths: Mapping[str, int],
        default_path: str,
        decode: Callable[[Sequence[int]], str],
        script: Mapping[str, Line] | None = None,
        default_line: Line | None = None,
        line_of: Callable[[GenerationRequest], Line] | None = None,
        keeps_requests: bool = True,
        max_running: int = 32,
        max_waiting: int = 256,
        max_context_tokens: int = 8192,
        is_loaded: bool = True,
        head: HeadKind = "exact",
        score_of: Callable[[GenerationRequest], AnswerScore] | None = None,
    ) -> None:
        self._student = student
        self._score_of = score_of
        self._head = head
        self._stages = dict(paths)
        self._default_path = default_path
        self._decode = decode
        self._script = dict(script or {})
        self._default_line = default_line or Line()
        self._line_of = line_of or self._line_for
        self._keeps_requests = keeps_requests
        self._num_accepted = 0
        self._max_running, self._max_waiting = max_running, max_waiting
        self._max_context_tokens = max_context_tokens
        self._num_loaded = max(paths.values()) if is_loaded else 0
        self._error: str | None = None
        self._error_detail: str | None = None
        self._changed = threading.Condition()
        self._waiting: dict[str, Speaker] = {}
        self._running: dict[str, Speaker] = {}
        self._aborting: set[str] = set()
        self._tally = Tally()
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self.submitted: list[GenerationRequest] = []
        self.aborted: list[str] = []

    def load(self, num_stages: int) -> None:
        """Let `num_stages` stages be loaded; paths that need no more are servable."""
        with self._changed:
            self._num_loaded = num_stages
            self._changed.notify_all()

    def sicken(self, error: str | None, detail: str | None = None) -> None:
        """Be unhealthy for this reason, `detail` for operators alone; None is healthy again."""
        with self._changed:
            self._error, self._error_detail = error, detail

    def start(self, publish: Publish) -> None:
        self._thread = threading.Thread(target=self._run, args=(publish,), name="scripted-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        line = self._line_of(request)
        if line.refusal is not None:
            raise line.refusal
        with self._changed:
            self._check(request)
            self._num_accepted += not request.in_background
            if self._keeps_requests:
                self.submitted.append(request)
            self._waiting[request.id] = _speaker(request, line)
            self._changed.notify_all()

    def abort(self, sequence_id: str) -> None:
        with self._changed:
            if self._keeps_requests:
                self.aborted.append(sequence_id)
            self._aborting.add(sequence_id)
            self._changed.notify_all()

    def status(self) -> EngineStatus:
        with self._changed:
            num_running = _num_counted(self._running)
            tally = self._tally
            return EngineStatus(
                student=self._student,
                is_healthy=self._error is None,
                error=self._error,
                error_detail=self._error_detail,
                paths=tuple(self._path_status(path) for path in self._stages),
                num_running=num_running,
                num_waiting=_num_counted(self._waiting),
                kv_used_bytes=num_running,
                kv_capacity_bytes=self._max_running,
                stage_runs=dict(tally.stage_runs),
                stage_rows=dict(tally.stage_rows),
                num_prompt_tokens=tally.num_prompt_tokens,
                num_generation_tokens=tally.num_generation_tokens,
                num_accepted=self._num_accepted,
                num_steps=tally.num_steps,
                variant="scripted",
                head=self._head,
                can_score=self._score_of is not None,
            )

    def sequences(self, limit_s: float) -> list[SequenceState]:
        with self._changed:
            running = [self._state(speaker, slot) for slot, speaker in enumerate(self._running.values())]
            return running + [self._state(speaker, None) for speaker in self._waiting.values()]

    def audit(self, limit_s: float) -> list[str]:
        if not self._keeps_requests:
            return []
        with self._changed:
            running = {*self._running, *self._waiting}
        accepted = {request.id for request in self.submitted}
        return [f"a sequence nobody submitted runs: {name}" for name in sorted(running - accepted)]

    def stop(self, grace_s: float) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.wait_for(lambda: not _num_counted({**self._running, **self._waiting}), grace_s)
            self._aborting |= {*self._running, *self._waiting}
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self, publish: Publish) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, self._seconds_to_wait())
                if self._is_stopping and not self._running and not self._waiting:
                    return
                events = self._step()
                self._changed.notify_all()
            if events:
                publish(events)

    def _has_work(self) -> bool:
        now_s = time.monotonic()
        is_due = any(speaker.due_s <= now_s for speaker in self._running.values())
        is_idle = not self._running and not self._waiting
        return is_due or bool(self._aborting) or self._can_admit() or (self._is_stopping and is_idle)

    def _seconds_to_wait(self) -> float | None:
        due_s = min((speaker.due_s for speaker in self._running.values()), default=None)
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def _can_admit(self) -> bool:
        return len(self._running) < self._max_running and any(self._ready_path(one) for one in self._waiting.values())

    def _step(self) -> list[SequenceEvent]:
        """Abort, admit, say one piece of every line that is due."""
        events = [self._end(speaker, FinishReason.ABORT) for speaker in self._take_aborted()]
        self._admit()
        now_s = time.monotonic()
        due = [speaker for speaker in self._running.values() if speaker.due_s <= now_s]
        if due:
            self._tally.num_steps += 1
            self._count_stages(due)
        for speaker in due:
            if speaker.first_token_s is None:
                events += self._score_prompt(speaker) + self._score_answer(speaker)
            events.append(self._speak(speaker, now_s))
        return events

    def _score_prompt(self, speaker: Speaker) -> list[SequenceEvent]:
        """Log-probabilities of the prompt's tokens from the second on, where they are wanted."""
        request = speaker.request
        if request.sampling.prompt_logprobs is None:
            return []
        scored = [
            _logprob(token_id, self._decode([token_id]), request.sampling.prompt_logprobs)
            for token_id in request.prompt_token_ids[1:]
        ]
        return [SequenceEvent(sequence_id=request.id, logprobs=tuple(scored))] if scored else []

    def _score_answer(self, speaker: Speaker) -> list[SequenceEvent]:
        request = speaker.request
        if request.scored_from is None:
            return []
        assert self._score_of is not None
        return [SequenceEvent(sequence_id=request.id, score=self._score_of(request))]

    def _take_aborted(self) -> list[Speaker]:
        ids, self._aborting = self._aborting, set()
        found = [self._running.pop(id, None) or self._waiting.pop(id, None) for id in sorted(ids)]
        return [speaker for speaker in found if speaker is not None]

    def _admit(self) -> None:
        for speaker in list(self._waiting.values()):
            path = self._ready_path(speaker)
            if path is None or len(self._running) >= self._max_running:
                continue
            speaker.path = path
            speaker.admitted_s = time.monotonic()
            speaker.due_s = _first_due(speaker.admitted_s, speaker.line)
            self._running[speaker.request.id] = self._waiting.pop(speaker.request.id)
            if not speaker.request.in_background:
                self._tally.num_prompt_tokens += len(speaker.request.prompt_token_ids)

    def _ready_path(self, speaker: Speaker) -> str | None:
        """The path this sequence may run now: its own, or the deepest loaded one where it allowed that."""
        wanted = speaker.request.path
        if self._stages[wanted] <= self._num_loaded:
            return wanted
        if speaker.request.while_loading is WhileLoading.WAIT:
            return None
        loaded = [path for path, num_stages in self._stages.items() if num_stages <= self._num_loaded]
        return loaded[-1] if loaded else None

    def _speak(self, speaker: Speaker, now_s: float) -> SequenceEvent:
        index = speaker.num_spoken
        if index >= len(speaker.texts):
            return self._finish(speaker)
        speaker.num_spoken += 1
        speaker.due_s = _due_after(speaker, now_s)
        speaker.first_token_s = speaker.first_token_s or now_s
        self._tally.num_generation_tokens += not speaker.request.in_background
        token_id = index if speaker.line.token_ids is None else speaker.line.token_ids[index]
        event = SequenceEvent(
            sequence_id=speaker.request.id,
            text=speaker.texts[index],
            token_ids=(token_id,),
            logprobs=_logprobs(speaker.request.sampling, token_id, speaker.texts[index]),
        )
        is_last = speaker.num_spoken == len(speaker.texts)
        if is_last and speaker.reason is not FinishReason.ERROR:
            return replace(event, finish=self._finish(speaker).finish)
        return event

    def _finish(self, speaker: Speaker) -> SequenceEvent:
        del self._running[speaker.request.id]
        return self._end(speaker, speaker.reason)

    def _end(self, speaker: Speaker, reason: FinishReason) -> SequenceEvent:
        finish = Finish(
            reason=reason,
            path=speaker.path,
            usage=Usage(
                num_prompt_tokens=len(speaker.request.prompt_token_ids),
                num_cached_tokens=speaker.line.num_cached_tokens,
                num_completion_tokens=speaker.num_spoken,
            ),
            timings=Timings(
                queued_s=speaker.queued_s,
                admitted_s=speaker.admitted_s,
                first_token_s=speaker.first_token_s,
                finished_s=time.monotonic(),
            ),
            stop=speaker.stop if reason is FinishReason.STOP else None,
            error=speaker.line.error if reason is FinishReason.ERROR else None,
        )
        return SequenceEvent(sequence_id=speaker.request.id, finish=finish)

    def _count_stages(self, speakers: Sequence[Speaker]) -> None:
        for path in {speaker.path for speaker in speakers}:
            self._tally.stage_runs[path] += 1
        self._tally.stage_rows.update(speaker.path for speaker in speakers)

    def _line_for(self, request: GenerationRequest) -> Line:
        text = self._decode(request.prompt_token_ids) if self._script else ""
        return next((line for part, line in self._script.items() if part in text), self._default_line)

    def _check(self, request: GenerationRequest) -> None:
        if self._error is not None or self._is_stopping:
            raise EngineUnhealthy(self._error or "the engine is stopping", retry_after_s=5.0)
        if request.path not in self._stages:
            raise UnknownModel(f"{self._student} has no path {request.path!r}", param="model")
        if len(request.prompt_token_ids) + request.sampling.max_tokens > self._max_context_tokens:
            raise ContextTooLong(f"prompt and answer exceed the context of {self._max_context_tokens} tokens")
        if len(self._running) + len(self._waiting) >= self._max_running + self._max_waiting:
            raise QueueFull(f"{len(self._waiting)} sequences are waiting; try again later", retry_after_s=2.0)

    def _path_status(self, path: str) -> PathStatus:
        num_stages = self._stages[path]
        return PathStatus(
            path=path,
            num_loaded_stages=min(num_stages, self._num_loaded),
            num_stages=num_stages,
            is_default=path == self._default_path,
        )

    def _state(self, speaker: Speaker, slot: int | None) -> SequenceState:
        num_prompt_tokens = len(speaker.request.prompt_token_ids)
        return SequenceState(
            id=speaker.request.id,
            status=SequenceStatus.WAITING if slot is None else SequenceStatus.DECODING,
            path=speaker.path,
            head=speaker.request.head_on(self._head),
            slot=slot,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=speaker.line.num_cached_tokens,
            num_computed_tokens=0 if slot is None else num_prompt_tokens + speaker.num_spoken,
            num_completion_tokens=speaker.num_spoken,
            max_completion_tokens=speaker.request.sampling.max_tokens,
            age_s=time.monotonic() - speaker.queued_s,
        )


def _first_due(admitted_s: float, line: Line) -> float:
    return _next_due(admitted_s, line.delay_s) if line.first_s is None else admitted_s + line.first_s


def _due_after(speaker: Speaker, now_s: float) -> float:
    """A line at set times keeps to them even when a piece was late."""
    line = speaker.line
    return _next_due(now_s, line.delay_s) if line.first_s is None else speaker.due_s + line.delay_s


def _next_due(now_s: float, delay_s: float) -> float:
    """The next multiple of the delay: lines of one speed are spoken in the same steps, as in a real engine."""
    return now_s if delay_s == 0.0 else (now_s // delay_s + 1) * delay_s


def _speaker(request: GenerationRequest, line: Line) -> Speaker:
    texts, reason, stop = _cut(request, line)
    return Speaker(
        request=request,
        line=line,
        path=request.path,
        texts=texts,
        reason=reason,
        stop=stop,
        queued_s=time.monotonic() if request.queued_s is None else request.queued_s,
    )


def _cut(request: GenerationRequest, line: Line) -> tuple[tuple[str, ...], FinishReason, str | None]:
    """The pieces as far as `max_tokens` and stop strings let them, why they end, and at which stop string."""
    pieces = line.pieces[: request.sampling.max_tokens]
    whole = "".join(pieces)
    num_spared = len("".join(pieces[: request.sampling.min_tokens]))
    found = [(whole.find(stop, max(0, num_spared + 1 - len(stop))), stop) for stop in request.sampling.stop]
    found = [(start, stop) for start, stop in found if start >= 0]
    if found:
        end, stop = min(found)
        return _shorten(pieces, end + len(stop) * request.sampling.shows_stop), FinishReason.STOP, stop
    if line.error is not None and len(pieces) == len(line.pieces):
        return pieces, FinishReason.ERROR, None
    is_cut = len(pieces) < len(line.pieces)
    return pieces, FinishReason.LENGTH if is_cut else FinishReason.STOP, None


def _shorten(pieces: tuple[str, ...], num_chars: int) -> tuple[str, ...]:
    kept = []
    for piece in pieces:
        kept.append(piece[:num_chars])
        num_chars -= len(kept[-1])
        if num_chars == 0:
            break
    return tuple(kept)


def _logprobs(sampling: SamplingParams, token_id: int, text: str) -> tuple[TokenLogprob, ...]:
    return () if sampling.logprobs is None else (_logprob(token_id, text, sampling.logprobs),)


def _logprob(token_id: int, text: str, num_alternatives: int) -> TokenLogprob:
    chosen = TokenLogprob(token_id=token_id, logprob=LOGPROB, token_bytes=text.encode())
    others = [
        TokenLogprob(token_id=token_id + i, logprob=LOGPROB - i, token_bytes=f"{text}{i}".encode())
        for i in range(1, num_alternatives)
    ]
    return replace(chosen, alternatives=(chosen, *others)[:num_alternatives])


def _num_counted(speakers: Mapping[str, Speaker]) -> int:
    """Those that are not in the background."""
    return sum(not speaker.request.in_background for speaker in speakers.values())
