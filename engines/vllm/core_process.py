"""vLLM's engine core in a process of its own, spoken to by vLLM's own client. Imports vllm when it is started."""

import queue
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import psutil  # a dependency of vLLM's

from engines.sequence import GenerationRequest
from engines.vllm.form import HEAD_ARGUMENT, PATH_ARGUMENT
from engines.vllm.process import Load, ProcessEnded, RowOutput, Scores, StepCounts, StepOutput
from models.architecture import Architecture
from models.errors import InvalidParameter
from models.student.manifest import HeadKind

COUNTS_EVERY_S = 0.5
CLOSE_S = 10.0
TASKS = ("generate",)


class CoreProcess:
    """`ServingProcess` over vLLM's `SyncMPClient`, whose queue the engine's thread waits on.

    That client notices when its process dies, but wakes nobody: so every wait is short, and looks.
    """

    def __init__(self, arguments: Any, architecture: Architecture, eos_token_ids: frozenset[int]) -> None:
        """Starts the process and waits until it serves. Raises: ProcessEnded when it does not come up."""
        from vllm.v1.engine.core_client import SyncMPClient
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.executor import Executor

        try:
            config = arguments.create_engine_config()
            self._inputs: Any = InputProcessor(config)
            self._client: Any = SyncMPClient(config, Executor.get_class(config), log_stats=True)
        except Exception as error:
            raise ProcessEnded(f"vLLM did not start: {error}") from error
        self._config = config
        self._architecture = architecture
        self._eos_token_ids = eos_token_ids
        self._num_preemptions = 0
        self._counts = StepCounts()
        self._asked: Future[Any] | None = None
        self._asked_s = 0.0
        self._is_stale = True

    def add(self, request: GenerationRequest, head: HeadKind) -> None:
        from vllm.inputs.engine import tokens_input

        prompt = tokens_input(list(request.prompt_token_ids), cache_salt=request.cache_salt or None)
        try:
            made = self._inputs.process_inputs(request.id, prompt, self._sampling(request, head), TASKS)
        except ValueError as error:
            raise InvalidParameter(f"vLLM refuses the request: {error}") from error
        self._tell(lambda: self._client.add_request(made))
        self._is_stale = True

    def abort(self, sequence_ids: Sequence[str]) -> None:
        self._tell(lambda: self._client.abort_requests(list(sequence_ids)))

    def poll(self, wait_s: float) -> StepOutput | None:
        try:
            outputs = self._client.outputs_queue.get(timeout=wait_s)
        except queue.Empty:
            self._check()
            return None
        if isinstance(outputs, Exception):
            raise ProcessEnded(f"vLLM ended: {outputs!r}")
        if outputs is None:
            return None
        self._is_stale = True
        return StepOutput(rows=[self._row(one) for one in outputs.outputs], load=self._load(outputs.scheduler_stats))

    def wake(self) -> None:
        self._client.outputs_queue.put(None)

    def counts(self) -> StepCounts:
        if self._asked is not None and self._asked.done():
            asked, self._asked = self._asked, None
            if asked.exception() is None:
                self._counts = step_counts(asked.result()[0])
        if self._asked is None and self._is_stale and time.monotonic() - self._asked_s > COUNTS_EVERY_S:
            self._ask()
        return self._counts

    def steps(self) -> list[Mapping[str, Any]]:
        """The newest steps, as the model's runner noted them. Waits for them."""
        found: list[Mapping[str, Any]] = self._client.collective_rpc("fenhe_steps")[0]
        return found

    def kv_capacity_bytes(self) -> int:
        one = self._architecture
        bytes_each: int = self._config.model_config.dtype.itemsize
        return self.kv_capacity_tokens() * 2 * one.num_layers * one.num_kv_heads * one.head_dim * bytes_each

    def kv_capacity_tokens(self) -> int:
        cache = self._config.cache_config
        return int(cache.num_gpu_blocks * cache.block_size)

    def end(self) -> None:
        """vLLM's processes are ended first, however they are: one that is stopped would not hear a word."""
        manager = self._client.resources.engine_manager
        for process in manager.processes if manager is not None else ():
            _kill_family(process.pid)
        self._client.shutdown(timeout=1.0)
        # vLLM leaves its sockets' context behind, with threads and files: one for every restart.
        self._client.output_queue_thread.join(CLOSE_S)
        if not self._client.output_queue_thread.is_alive():
            self._client.ctx.destroy(linger=0)

    def _sampling(self, request: GenerationRequest, head: HeadKind) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        wanted = request.sampling
        ends = set(wanted.stop_token_ids) | (set() if wanted.ignore_eos else self._eos_token_ids)
        grammar = wanted.grammar
        return SamplingParams(
            max_tokens=max(wanted.max_tokens, 1),
            min_tokens=min(wanted.min_tokens, max(wanted.max_tokens, 1)),
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            top_k=wanted.top_k or 0,
            min_p=wanted.min_p,
            repetition_penalty=wanted.repetition_penalty,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            logit_bias=dict(wanted.logit_bias) or None,
            seed=None if wanted.seed is None else wanted.seed % (1 << 63),
            stop_token_ids=sorted(ends),
            ignore_eos=True,  # those that end the answer are named
            logprobs=wanted.logprobs,
            prompt_logprobs=wanted.prompt_logprobs,
            detokenize=False,
            structured_outputs=None if grammar is None else StructuredOutputsParams(grammar=grammar.source),
            extra_args={PATH_ARGUMENT: request.path, HEAD_ARGUMENT: head},
        )

    def _row(self, output: Any) -> RowOutput:
        prefill = output.prefill_stats
        return RowOutput(
            sequence_id=output.request_id,
            token_ids=tuple(output.new_token_ids),
            scores=_scores(output.new_logprobs),
            prompt_scores=_scores(output.new_prompt_logprobs_tensors),
            is_finished=output.finish_reason is not None,
            problem=None if output.finish_reason is None else f"vLLM ended the answer: {output.finish_reason}",
            num_cached_tokens=None if prefill is None else prefill.num_cached_tokens,
            scheduled_s=_scheduled_s(output.events),
        )

    def _load(self, stats: Any) -> Load | None:
        if stats is None:
            return None
        if stats.prefix_cache_stats is not None:
            self._num_preemptions += stats.prefix_cache_stats.preempted_requests
        return Load(
            num_running=stats.num_running_reqs,
            num_waiting=stats.num_waiting_reqs,
            kv_usage=stats.kv_cache_usage,
            num_preemptions=self._num_preemptions,
        )

    def _ask(self) -> None:
        """Ask the worker for its counts; the answer comes with the outputs."""
        from vllm.v1.engine import EngineCoreRequestType

        call_id = uuid.uuid1().int >> 64
        self._asked = self._client.utility_results[call_id] = Future()
        call: Any = (0, call_id, "collective_rpc", ("fenhe_counts", None, (), {}))
        self._tell(lambda: self._client._send_input(EngineCoreRequestType.UTILITY, call))
        self._asked_s, self._is_stale = time.monotonic(), False

    def _tell(self, send: Any) -> None:
        try:
            send()
        except Exception as error:
            raise ProcessEnded(f"vLLM does not listen: {error!r}") from error

    def _check(self) -> None:
        if self._client.resources.engine_dead:
            raise ProcessEnded("vLLM's process died")


def _scores(lists: Any) -> tuple[Scores, ...]:
    """The first column is the token that came, the others are the likeliest, in order."""
    if lists is None:
        return ()
    ids, logprobs = lists[0].tolist(), lists[1].tolist()
    return tuple(
        Scores(token_id=row[0], logprob=values[0], likeliest=tuple(zip(row[1:], values[1:], strict=True)))
        for row, values in zip(ids, logprobs, strict=True)
    )


def _scheduled_s(events: Any) -> float | None:
    from vllm.v1.engine import EngineCoreEventType

    return next((one.timestamp for one in events or () if one.type == EngineCoreEventType.SCHEDULED), None)


def step_counts(counts: Mapping[str, int]) -> StepCounts:
    """From what the worker counted, by `layers:N`, `tokens:N`, `HEAD:runs` and `HEAD:rows`."""
    heads: dict[HeadKind, str] = {"exact": "head", "cheap": "cheap_head"}
    return StepCounts(
        num_steps=counts.get("steps", 0),
        steps_by_layers=_by_layers(counts, "layers"),
        tokens_by_layers=_by_layers(counts, "tokens"),
        head_runs={head: counts.get(f"{name}:runs", 0) for head, name in heads.items()},
        head_rows={head: counts.get(f"{name}:rows", 0) for head, name in heads.items()},
    )


def _by_layers(counts: Mapping[str, int], kind: str) -> dict[int, int]:
    return {int(name.partition(":")[2]): count for name, count in counts.items() if name.startswith(f"{kind}:")}


def _kill_family(pid: int | None) -> None:
    """A process and what it started, which would outlive it where it is stopped."""
    if pid is None:
        return
    try:
        family = [psutil.Process(pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
