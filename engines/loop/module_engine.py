"""The module engine: one thread that admits, schedules, runs, samples and commits, step after step.

Owns the order of a step and publishes its events. The scheduler decides what runs, the runner how.
"""

import logging
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.answer_score import AnswerScore
from engines.answer_scoring import score_answer
from engines.config import EngineConfig
from engines.contract import EngineStatus, Publish, Runner
from engines.drawing import Chooser
from engines.loop.acceptance import check_request
from engines.loop.commands import FailToLoad, Wake
from engines.loop.counters import Counters
from engines.loop.ending import ends_with_prompt, take_newest_token
from engines.loop.integrity import find_inconsistencies
from engines.loop.loading import Loading
from engines.loop.sequence_engine import SEE_LOG, SequenceEngine, finish_of
from engines.loop.slot_moves import SlotMoves
from engines.prompt_scores import pieces, score_tokens
from engines.sampler import Sampled, Sampler
from engines.scheduling.kv_budget import KvBudget
from engines.scheduling.prefix_cache import BLOCK_TOKENS, PrefixCache
from engines.scheduling.prompt_pace import PromptPace
from engines.scheduling.row_pace import RowPace
from engines.scheduling.scheduler import Scheduler
from engines.scheduling.step_plan import Chunk, StepPlan
from engines.scheduling.turns import Turns
from engines.sequence import (
    Finish,
    FinishReason,
    GenerationRequest,
    Sequence,
    SequenceEvent,
    SequenceStatus,
    TokenLogprob,
    new_sequence,
)
from models.errors import ServingError, StepFailed
from models.student.folder import Student
from models.student.manifest import HeadKind

logger = logging.getLogger(__name__)


MAX_FAILURES_IN_A_ROW = 2
IDLE_WAIT_S = 0.5


class Scored(NamedTuple):
    """What a step found of a prompt's tokens."""

    logprobs: list[TokenLogprob]
    score: AnswerScore


class ModuleEngine(SequenceEngine):
    """`Engine` over one student. `capacity_tokens` is the longest sequence its KV slots can hold; `head` chooses the
    tokens of sequences that do not demand the exact one, `chooser` draws them; None: numpy does."""

    def __init__(
        self,
        student: Student,
        runner: Runner,
        config: EngineConfig,
        *,
        capacity_tokens: int,
        variant: str,
        kv_precision: str = "",
        head: HeadKind = "exact",
        chooser: Chooser | None = None,
    ) -> None:
        super().__init__(student, config, thread_name="fenhe-engine")
        self._runner = runner
        self._capacity_tokens = capacity_tokens
        self._variant = variant
        self._kv_precision = kv_precision
        self._head = head
        self._kv_stages = {
            path.name: tuple(s for s in student.manifest.stages(path) if runner.kv_bytes_per_token(s))
            for path in student.manifest.paths
        }
        widths = {path.name: path.width for path in student.manifest.paths}
        bytes_per_token = {
            path: sum(runner.kv_bytes_per_token(stage) for stage in stages) for path, stages in self._kv_stages.items()
        }
        self._loading = Loading(
            student.manifest,
            runner,
            is_over=self._living.is_over,
            on_loaded=lambda: self._commands.put(Wake()),
            on_failed=self._fail_to_load,
        )
        self._kv = KvBudget(config.kv_bytes, bytes_per_token)
        self._cache = PrefixCache(config.prefix_cache_bytes)
        busy_step_s = config.busy_step_ms / 1000 or None
        self._scheduler = Scheduler(
            max_running=config.max_running,
            pace=PromptPace(
                step_tokens=config.step_tokens,
                busy_step_tokens=config.busy_step_tokens,
                busy_step_s=busy_step_s,
                hidden_size=student.manifest.architecture.hidden_size,
            ),
            turns=Turns(RowPace(busy_step_s if runner.skips_padding else None)),
            kv=self._kv,
            cache=self._cache,
            depths=student.manifest.path_ranks,
            stages=self._kv_stages,
            widths=widths,
            resolve_path=self._loading.resolve,
        )
        self._slot_moves = SlotMoves(runner, self._cache, self._kv_stages, widths)
        self._sampler = Sampler(self._tokenizer.token_bytes, self._tokenizer.eos_token_ids, chooser)
        self._counters = Counters()
        self._num_failures_in_a_row = 0

    # The contract: called from any thread.

    def start(self, publish: Publish) -> None:
        super().start(publish)
        self._loading.start()

    def submit(self, request: GenerationRequest) -> None:
        check_request(request, self._manifest, self._kv, self._capacity_tokens)
        self._living.accept(new_sequence(request, self._tokenizer.token_bytes, self._head))

    def status(self) -> EngineStatus:
        counters = self._counters
        cached = dict(self._cache.counters)
        num_running = sum(not sequence.in_background for sequence in tuple(self._scheduler.running))
        error = self._living.error
        return EngineStatus(
            student=self._manifest.name,
            is_healthy=error is None,
            error=None if error is None else error.message,
            error_detail=self._living.error_detail,
            paths=tuple(self._loading.status(path.name) for path in self._manifest.paths),
            num_running=num_running,
            num_waiting=max(len(self._living) - num_running, 0),
            kv_used_bytes=self._kv.used_bytes,
            kv_capacity_bytes=self._kv.capacity_bytes,
            stage_runs=dict(counters.stage_runs),
            stage_rows=dict(counters.stage_rows),
            prefix_query_tokens={stage: counter.query_tokens for stage, counter in cached.items()},
            prefix_hit_tokens={stage: counter.hit_tokens for stage, counter in cached.items()},
            prefix_cache_bytes=self._cache.used_bytes,
            num_prompt_tokens=counters.num_prompt_tokens,
            num_generation_tokens=counters.num_generation_tokens,
            num_accepted=self._living.num_accepted,
            num_preemptions=self._scheduler.num_preemptions,
            num_pauses=self._scheduler.num_pauses,
            num_steps=counters.num_steps,
            num_failed_steps=counters.num_failed_steps,
            variant=self._variant,
            kv_precision=self._kv_precision,
            head=self._head,
            kv_capacity_tokens=self._kv.capacity_tokens(self._manifest.full_path.name),
            busy_s=counters.busy_s,
            background_s=counters.background_s,
            num_background_tokens=counters.num_background_tokens,
            can_score=True,
            can_pause=True,
        )

    def stop(self, grace_s: float) -> None:
        super().stop(grace_s)
        self._loading.join()

    # The engine's thread.

    def _turn(self) -> None:
        if not self.step():
            self._take_commands(wait_s=IDLE_WAIT_S)

    def step(self) -> bool:
        """One step for every sequence that can run; False when there was nothing to do.

        A transaction: until `_commit`, no sequence has moved on.
        """
        self._take_commands()
        begun_s = time.perf_counter()
        plan = self._scheduler.plan()
        if not plan.is_empty:
            try:
                sampled = self._sample(plan, self._forward(plan))
                passed_s = time.perf_counter()
                scored = [(chunk.sequence, self._score(chunk)) for chunk in plan.chunks if chunk.unscored]
            except BaseException as error:  # a panic of a Rust library is no Exception
                self._fail(plan, error)
            else:
                self._commit(plan, sampled, scored)
                self._counters.count_time(plan, passed_s - begun_s, time.perf_counter() - passed_s)
        self._flush()
        return not plan.is_empty

    def _forward(self, plan: StepPlan) -> npt.NDArray[np.float32]:
        self._slot_moves.prepare(plan)
        begun_s = time.perf_counter()
        logits = self._runner.forward(self._scheduler.step_input(plan))
        self._scheduler.note_pass(plan, time.perf_counter() - begun_s)
        return logits

    def _sample(self, plan: StepPlan, logits: npt.NDArray[np.float32]) -> list[tuple[Sequence, Sampled]]:
        """The next token of every sequence whose last token was in the step."""
        rows = [(row, sequence) for row, sequence in enumerate(plan.decode) if sequence is not None]
        finished = [chunk.sequence for chunk in plan.chunks if chunk.is_last]
        rows += [(len(plan.decode) + index, one) for index, one in enumerate(finished) if not ends_with_prompt(one)]
        if not rows:
            return []
        sequences = [sequence for _, sequence in rows]
        if len(rows) < len(logits):
            logits = logits[[row for row, _ in rows]]

        def exact_logits(places: list[int]) -> npt.NDArray[np.float32]:
            return self._runner.exact_logits([rows[place][0] for place in places])

        return list(zip(sequences, self._sampler.sample(logits, sequences, exact_logits), strict=True))

    def _score(self, chunk: Chunk) -> Scored:
        """The prompt tokens that follow the chunk's unscored positions: their log-probabilities, or an answer's
        score."""
        sequence, slot, sampling = chunk.sequence, chunk.sequence.slot, chunk.sequence.request.sampling
        assert slot is not None
        logprobs: list[TokenLogprob] = []
        score = AnswerScore()
        for first, end in pieces(chunk.unscored.start, chunk.unscored.stop):
            logits, token_ids = self._runner.position_logits(slot, first, end), sequence.token_ids[first + 1 : end + 1]
            if sequence.request.scored_from is not None:
                score += score_answer(logits, token_ids, sampling)
            else:
                assert sampling.prompt_logprobs is not None
                logprobs += score_tokens(logits, token_ids, sampling.prompt_logprobs, self._tokenizer.token_bytes)
        return Scored(logprobs, score)

    def _commit(
        self,
        plan: StepPlan,
        sampled: list[tuple[Sequence, Sampled]],
        scored: list[tuple[Sequence, Scored]],
    ) -> None:
        self._num_failures_in_a_row = 0
        num_exact_rows = sum(token.took_exact_row for _, token in sampled)
        self._counters.count(plan, self._manifest, self._kv_stages, num_exact_rows)
        self._scheduler.commit(plan)
        for sequence, found in scored:
            self._add_scores(sequence, found)
        prefilled = [chunk.sequence for chunk in plan.chunks if chunk.sequence.num_uncomputed_tokens == 0]
        for sequence, token in sampled:
            self._append(sequence, token)
        for sequence in prefilled:
            if ends_with_prompt(sequence):
                self._counters.count_prompt(sequence)
                self._end(sequence, FinishReason.LENGTH)
        # Tokens first: copying a prompt's KV into the cache must not delay its first token. And chunk by chunk: all of
        # a long one at once would make every stream pause for as long as several steps.
        self._flush()
        for chunk in plan.chunks:
            if _fills_block(chunk):
                self._remember(chunk.sequence)

    def _remember(self, sequence: Sequence) -> None:
        if not sequence.in_background:  # whose prompts nobody sends
            self._slot_moves.remember(sequence)

    def _add_scores(self, sequence: Sequence, found: Scored) -> None:
        """Collect what was found of a prompt's tokens, and publish it once it is complete."""
        sequence.prompt_logprobs += found.logprobs
        sequence.score += found.score
        if sequence.num_unscored_tokens:
            return
        is_answer = sequence.request.scored_from is not None
        self._events.append(
            SequenceEvent(
                sequence_id=sequence.id,
                logprobs=tuple(sequence.prompt_logprobs),
                score=sequence.score if is_answer else None,
            )
        )

    def _append(self, sequence: Sequence, token: Sampled) -> None:
        """Add the next token to a sequence, and end it if that token is its last."""
        failure = self._advance(sequence, token.token_id)
        if failure is not None:
            self._end(sequence, FinishReason.ERROR, error=failure)
            return
        sequence.token_ids.append(token.token_id)
        sequence.num_exact_rows += token.took_exact_row
        self._counters.num_generation_tokens += not sequence.in_background
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic()
            self._counters.count_prompt(sequence)
        outcome = take_newest_token(
            sequence, eos_token_ids=self._tokenizer.eos_token_ids, capacity_tokens=self._capacity_tokens
        )
        shown = token if outcome.shows_token else None
        if outcome.reason is None:
            self._events.append(_event(sequence, shown, outcome.text))
        else:
            end_token_id = None if outcome.shows_token else token.token_id
            self._end(sequence, outcome.reason, text=outcome.text, token=shown, end_token_id=end_token_id)

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        text: str = "",
        token: Sampled | None = None,
        error: ServingError | None = None,
        end_token_id: int | None = None,
    ) -> None:
        """The one place where a sequence ends: frees all it holds and adds its final event."""
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._remember(sequence)
        # Not `num_computed_tokens`: a step that failed may have written KV for more tokens.
        num_written = sequence.num_tokens
        slot = self._scheduler.remove(sequence)
        finish = finish_of(sequence, reason, error, end_token_id)
        self._events.append(_event(sequence, token, text, finish))
        self._living.end(sequence.id)
        if slot is not None:
            self._runner.release_slot(slot, num_written)

    def _fail(self, plan: StepPlan, error: BaseException) -> None:
        """A step raised: its sequences end with the error, all others continue."""
        ids = [sequence.id for sequence in plan.touched]
        logger.error("step failed student=%s sequences=%s", self._manifest.name, ids, exc_info=error)
        self._counters.num_failed_steps += 1
        self._num_failures_in_a_row += 1
        for sequence in plan.touched:
            self._end(sequence, FinishReason.ERROR, error=StepFailed(f"a forward pass failed; {SEE_LOG}"))
        if self._num_failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._give_up(f"{self._num_failures_in_a_row} forward passes in a row failed", error)

    def _fail_to_load(self, cause: Exception) -> None:
        """Runs on the loading thread."""
        self._commands.put(FailToLoad(cause=cause))

    def _accept(self, sequence: Sequence) -> None:
        self._scheduler.add(sequence)
        if self._living.error is not None:
            self._end(sequence, FinishReason.ERROR, error=self._living.error)

    def _abort(self, sequence_id: str) -> None:
        sequence = self._scheduler.find(sequence_id)
        if sequence is not None:
            self._end(sequence, FinishReason.ABORT)

    def _known(self) -> tuple[Sequence, ...]:
        return (*self._scheduler.running, *self._scheduler.waiting)

    def _find_inconsistencies(self) -> list[str]:
        return find_inconsistencies(self._scheduler, self._kv, self._cache, self._living.ids())


def _fills_block(chunk: Chunk) -> bool:
    """Whether a chunk that is committed ended its prompt, or filled a block that the prefix cache can keep."""
    sequence = chunk.sequence
    start = sequence.num_computed_tokens - chunk.num_tokens
    is_whole = sequence.status is not SequenceStatus.PREFILLING
    return is_whole or sequence.num_computed_tokens // BLOCK_TOKENS > start // BLOCK_TOKENS


def _event(sequence: Sequence, token: Sampled | None, text: str, finish: Finish | None = None) -> SequenceEvent:
    return SequenceEvent(
        sequence_id=sequence.id,
        text=text,
        token_ids=() if token is None else (token.token_id,),
        logprobs=() if token is None or token.logprob is None else (token.logprob,),
        finish=finish,
    )
