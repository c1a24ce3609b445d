"""The engine contract over vLLM: one thread that hands sequences to its process and publishes what its steps give.

Owns what vLLM does not do as the contract says (text, stop strings, when a grammar ends) and the process's life: when
it ends, its sequences end with an error that says to come back, and it is started again.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from engines.config import EngineConfig
from engines.contract import EngineStatus, PathStatus
from engines.loop.ending import ends_with_prompt, take_newest_token
from engines.loop.sequence_engine import SequenceEngine, finish_of
from engines.sequence import (
    FinishReason,
    GenerationRequest,
    Sequence,
    SequenceEvent,
    SequenceStatus,
    TokenLogprob,
    new_sequence,
)
from engines.vllm.acceptance import check_request, head_of
from engines.vllm.form import ServedForm
from engines.vllm.process import Load, ProcessEnded, RowOutput, Scores, ServingProcess, StepCounts, StepOutput
from engines.vllm.restarts import Restarts
from models.errors import EngineUnhealthy, ServingError, StepFailed
from models.student.folder import HEAD_STAGES, Student
from models.student.manifest import HeadKind

logger = logging.getLogger(__name__)

IDLE_WAIT_S = 0.25
STALL_S = 120.0
"""A process that has sequences and gives no step for so long hangs: it is ended, and started again."""
START_RETRY_S = 20.0
"""What clients are told to wait at least: about what a start takes."""

StartProcess = Callable[[], ServingProcess]
"""Slow. Raises: ProcessEnded."""


class VllmEngine(SequenceEngine):
    """`Engine` over one student. `start_process` makes a process that serves it, again whenever the last one ended."""

    def __init__(
        self,
        student: Student,
        form: ServedForm,
        config: EngineConfig,
        start_process: StartProcess,
        *,
        capacity_tokens: int,
        variant: str,
        head: HeadKind = "exact",
        stall_s: float = STALL_S,
        restarts: Restarts | None = None,
    ) -> None:
        super().__init__(student, config, thread_name="fenhe-vllm", wake=self._wake)
        self._form = form
        self._start_process = start_process
        self._capacity_tokens = capacity_tokens
        self._variant = variant
        self._head = head
        self._stall_s = stall_s
        self._restarts = restarts or Restarts()
        self._process: ServingProcess | None = None
        self._starting: Future[ServingProcess] | None = None
        self._sequences: dict[str, Sequence] = {}
        self._unsent: list[Sequence] = []
        self._heard_s = time.monotonic()
        self._load = Load()
        self._counts = Totals()
        self._kv_capacity_bytes = config.kv_bytes
        self._kv_capacity_tokens: int | None = None

    # The contract: called from any thread.

    def submit(self, request: GenerationRequest) -> None:
        check_request(request, self._manifest, self._capacity_tokens)
        sequence = new_sequence(request, self._tokenizer.token_bytes, self._head)
        sequence.head = head_of(request, self._head)
        self._living.accept(sequence)

    def status(self) -> EngineStatus:
        error, totals, load = self._living.error, self._counts, self._load
        steps, num_living = totals.steps, len(self._living)
        num_running = min(load.num_running, num_living)  # of sequences that were aborted the process says nothing
        return EngineStatus(
            student=self._manifest.name,
            is_healthy=error is None,
            error=None if error is None else error.message,
            error_detail=self._living.error_detail,
            paths=tuple(self._path_status(path.name) for path in self._manifest.paths),
            num_running=num_running,
            num_waiting=num_living - num_running,
            kv_used_bytes=int(load.kv_usage * self._kv_capacity_bytes) if num_living else 0,
            kv_capacity_bytes=self._kv_capacity_bytes,
            stage_runs=self._stages(steps.steps_by_layers, steps.head_runs),
            stage_rows=self._stages(steps.tokens_by_layers, steps.head_rows),
            prefix_query_tokens=dict(totals.prefix_query_tokens),
            prefix_hit_tokens=dict(totals.prefix_hit_tokens),
            num_prompt_tokens=totals.num_prompt_tokens,
            num_generation_tokens=totals.num_generation_tokens,
            num_accepted=self._living.num_accepted,
            num_preemptions=load.num_preemptions,
            num_steps=steps.num_steps,
            num_failed_steps=self._restarts.num_ended,
            variant=self._variant,
            head=self._head,
            kv_capacity_tokens=self._kv_capacity_tokens,
        )

    # The engine's thread.

    def _close(self) -> None:
        if self._process is not None:
            self._process.end()
        if self._starting is not None:
            self._starting.add_done_callback(_end_late)

    def _turn(self) -> None:
        """Take commands, then wait a moment for a step's output, or for a process to take them."""
        if self._process is None:
            self._take_commands(IDLE_WAIT_S)
            self._bring_up()
            return
        try:
            self._take_commands()
            self._send()
            self._hear(self._process.poll(IDLE_WAIT_S))
            self._note_steps(self._process.counts())
        except ProcessEnded as error:
            self._lose_process(str(error))

    def _bring_up(self) -> None:
        """Start a process when that is due, and take it over once it is up."""
        if self._starting is None:
            if self._restarts.is_due:
                self._starting = _in_thread(self._start_process)
            return
        if not self._starting.done():
            return
        starting, self._starting = self._starting, None
        cause = starting.exception()
        if cause is not None:
            self._lose_process(str(cause))
            return
        self._process = starting.result()
        self._kv_capacity_bytes = self._process.kv_capacity_bytes()
        self._kv_capacity_tokens = self._process.kv_capacity_tokens()
        self._restarts.note_serving()
        self._heard_s = time.monotonic()
        self._living.recover()
        logger.info("vllm serving student=%s kv_tokens=%d", self._manifest.name, self._kv_capacity_tokens)

    def _send(self) -> None:
        assert self._process is not None
        unsent, self._unsent = self._unsent, []
        if unsent and len(self._sequences) == len(unsent):
            self._heard_s = time.monotonic()
        for place, sequence in enumerate(unsent):
            try:
                self._process.add(sequence.request, sequence.head)
            except ServingError as error:
                self._end(sequence, FinishReason.ERROR, error=error)
            except ProcessEnded:
                self._unsent = unsent[place:]
                raise

    def _hear(self, output: StepOutput | None) -> None:
        if output is None:
            stalled_s = time.monotonic() - self._heard_s
            if self._sequences and stalled_s > self._stall_s:
                raise ProcessEnded(f"no step for {stalled_s:.0f} s")
            return
        self._heard_s = time.monotonic()
        self._load = output.load or self._load
        for row in output.rows:
            sequence = self._sequences.get(row.sequence_id)
            if sequence is not None:
                self._take_row(sequence, row)

    def _take_row(self, sequence: Sequence, row: RowOutput) -> None:
        if row.num_cached_tokens is not None:
            self._note_prompt(sequence, row)
        if row.prompt_scores:
            scored = [self._logprob(one, sequence.request.sampling.prompt_logprobs) for one in row.prompt_scores]
            self._events.append(SequenceEvent(sequence_id=sequence.id, logprobs=tuple(scored)))
        if ends_with_prompt(sequence) and (row.token_ids or row.is_finished):
            self._end(sequence, FinishReason.LENGTH, is_known_there=not row.is_finished)
            return
        for place, token_id in enumerate(row.token_ids):
            score = row.scores[place] if row.scores else None
            if not self._append(sequence, token_id, score, is_known_there=not row.is_finished):
                return
        if row.is_finished:  # for no reason that is ours
            self._end(sequence, FinishReason.ERROR, error=StepFailed(row.problem or "vLLM ended the answer"))

    def _append(self, sequence: Sequence, token_id: int, score: Scores | None, *, is_known_there: bool) -> bool:
        """Add the next token; False when the sequence ends with it."""
        failure = self._advance(sequence, token_id)
        if failure is not None:
            self._end(sequence, FinishReason.ERROR, error=failure, is_known_there=is_known_there)
            return False
        sequence.token_ids.append(token_id)
        sequence.num_computed_tokens = sequence.num_tokens - 1
        self._counts.num_generation_tokens += 1
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic()
        outcome = take_newest_token(
            sequence, eos_token_ids=self._tokenizer.eos_token_ids, capacity_tokens=self._capacity_tokens
        )
        logprob = None if score is None else self._logprob(score, sequence.request.sampling.logprobs)
        event = SequenceEvent(
            sequence_id=sequence.id,
            text=outcome.text,
            token_ids=(token_id,) if outcome.shows_token else (),
            logprobs=(logprob,) if logprob is not None and outcome.shows_token else (),
        )
        if outcome.reason is None:
            self._events.append(event)
            return True
        self._end(sequence, outcome.reason, last=event, is_known_there=is_known_there)
        return False

    def _note_prompt(self, sequence: Sequence, row: RowOutput) -> None:
        assert row.num_cached_tokens is not None
        sequence.status = SequenceStatus.DECODING
        sequence.num_cached_tokens = row.num_cached_tokens
        sequence.admitted_s = row.scheduled_s or time.monotonic()
        self._counts.num_prompt_tokens += sequence.num_prompt_tokens
        for module in self._manifest.path(sequence.path).modules:
            self._counts.prefix_query_tokens[module] += sequence.num_prompt_tokens
            self._counts.prefix_hit_tokens[module] += row.num_cached_tokens

    def _logprob(self, scores: Scores, num_alternatives: int | None) -> TokenLogprob:
        token_bytes = self._tokenizer.token_bytes
        alternatives = tuple(
            TokenLogprob(token_id=id, logprob=logprob, token_bytes=token_bytes(id))
            for id, logprob in scores.likeliest[: num_alternatives or 0]
        )
        return TokenLogprob(
            token_id=scores.token_id,
            logprob=scores.logprob,
            token_bytes=token_bytes(scores.token_id),
            alternatives=alternatives,
        )

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        last: SequenceEvent | None = None,
        error: ServingError | None = None,
        is_known_there: bool = False,
    ) -> None:
        """The one place where a sequence ends. With `is_known_there` the process still runs it, and is told."""
        del self._sequences[sequence.id]
        sequence.status = SequenceStatus.FINISHED
        finish = finish_of(sequence, reason, error)
        text, token_ids, logprobs = ("", (), ()) if last is None else (last.text, last.token_ids, last.logprobs)
        self._events.append(
            SequenceEvent(sequence_id=sequence.id, text=text, token_ids=token_ids, logprobs=logprobs, finish=finish)
        )
        self._living.end(sequence.id)
        if is_known_there and self._process is not None:
            self._process.abort([sequence.id])

    def _lose_process(self, cause: str) -> None:
        """Tell everybody whose sequence was in it, refuse newcomers until another one is up."""
        process, self._process = self._process, None
        if process is not None:
            process.end()
        self._restarts.note_end()
        self._load = Load()
        self._counts.begin_anew()
        retry_after_s = max(START_RETRY_S, self._restarts.wait_s)
        said = "the vLLM engine ended and is being started again"
        self._refuse(EngineUnhealthy(said, retry_after_s=retry_after_s), cause)

    def _refuse(self, error: EngineUnhealthy, detail: str) -> None:
        super()._refuse(error, detail)
        self._unsent = []

    # Commands from other threads.

    def _wake(self) -> None:
        process = self._process
        if process is not None:
            process.wake()

    def _accept(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = sequence
        self._unsent.append(sequence)

    def _abort(self, sequence_id: str) -> None:
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return
        is_unsent = sequence in self._unsent
        if is_unsent:
            self._unsent.remove(sequence)
        self._end(sequence, FinishReason.ABORT, is_known_there=not is_unsent)

    def _known(self) -> Iterable[Sequence]:
        return self._sequences.values()

    def _find_inconsistencies(self) -> list[str]:
        living, known = self._living.ids(), set(self._sequences)
        lost = [f"accepted, but nobody runs it: {id}" for id in sorted(living - known)]
        return lost + [f"runs, but was never accepted: {id}" for id in sorted(known - living)]

    # Numbers.

    def _note_steps(self, counts: StepCounts) -> None:
        self._counts.latest = counts

    def _path_status(self, path: str) -> PathStatus:
        num_stages = len(self._manifest.stages(self._manifest.path(path))) + 1
        is_up = self._kv_capacity_tokens is not None
        return PathStatus(
            path=path,
            num_loaded_stages=num_stages if is_up else 0,
            num_stages=num_stages,
            is_default=path == self._manifest.full_path.name,
        )

    def _stages(self, by_layers: Mapping[int, int], by_head: Mapping[HeadKind, int]) -> dict[str, int]:
        """Per module, what was counted by number of layers: a step of n layers ran every module within them."""
        found = {
            module.name: sum(
                count for layers, count in by_layers.items() if layers >= module.first_layer + module.num_layers
            )
            for module in self._manifest.modules
        }
        return found | {HEAD_STAGES[head]: count for head, count in by_head.items()}


class Totals:
    """What all processes of the engine did. Written by the engine's thread alone."""

    def __init__(self) -> None:
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.prefix_query_tokens: Counter[str] = Counter()
        self.prefix_hit_tokens: Counter[str] = Counter()
        self.latest = StepCounts()
        self._before = StepCounts()

    @property
    def steps(self) -> StepCounts:
        return self._before + self.latest

    def begin_anew(self) -> None:
        """The process that counted is gone; the next one counts from zero."""
        self._before, self.latest = self.steps, StepCounts()


def _end_late(starting: "Future[ServingProcess]") -> None:
    """A process that comes up when nobody wants it any more."""
    if starting.exception() is None:
        starting.result().end()


def _in_thread(start: StartProcess) -> "Future[ServingProcess]":
    """A thread of its own, which nobody waits for: a start takes as long as it takes."""
    future: Future[ServingProcess] = Future()

    def run() -> None:
        try:
            future.set_result(start())
        except BaseException as error:
            logger.exception("vllm did not start")
            future.set_exception(error)

    threading.Thread(target=run, name="fenhe-vllm-start", daemon=True).start()
    return future
