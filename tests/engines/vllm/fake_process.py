"""A process that computes nothing: it says what it is told to, ends and hangs when it is told to."""

import queue
import threading
from collections.abc import Callable, Sequence

from engines.sequence import GenerationRequest
from engines.vllm.process import Load, ProcessEnded, RowOutput, StepCounts, StepOutput
from models.errors import ServingError
from models.student.manifest import HeadKind


class FakeProcess:
    """`ServingProcess`. `outputs` is what `poll` gives, one after the other; an exception in it is raised."""

    def __init__(self) -> None:
        self.outputs: queue.Queue[StepOutput | Exception | None] = queue.Queue()
        self.added: list[tuple[GenerationRequest, HeadKind]] = []
        self.aborted: list[str] = []
        self.refusal: ServingError | None = None
        self.ended = threading.Event()
        self.was_added = threading.Event()
        self.counted = StepCounts()

    def say(self, *rows: RowOutput, num_running: int = 1) -> None:
        self.outputs.put(StepOutput(rows=rows, load=Load(num_running=num_running, kv_usage=0.25)))

    def die(self) -> None:
        self.outputs.put(ProcessEnded("killed"))

    def add(self, request: GenerationRequest, head: HeadKind) -> None:
        self._check()
        if self.refusal is not None:
            raise self.refusal
        self.added.append((request, head))
        self.was_added.set()

    def abort(self, sequence_ids: Sequence[str]) -> None:
        self._check()
        self.aborted += sequence_ids

    def poll(self, wait_s: float) -> StepOutput | None:
        try:
            output = self.outputs.get(timeout=min(wait_s, 0.02))
        except queue.Empty:
            return None
        if isinstance(output, Exception):
            raise output
        return output

    def wake(self) -> None:
        self.outputs.put(None)

    def counts(self) -> StepCounts:
        return self.counted

    def kv_capacity_bytes(self) -> int:
        return 4096

    def kv_capacity_tokens(self) -> int:
        return 1024

    def end(self) -> None:
        self.ended.set()

    def _check(self) -> None:
        if self.ended.is_set():
            raise ProcessEnded("it was ended")


class FakeProcesses:
    """Starts them: `fail` makes the next starts fail, `gate` holds them up."""

    def __init__(self) -> None:
        self.all: list[FakeProcess] = []
        self.num_to_fail = 0
        self.gate = threading.Event()
        self.gate.set()
        self._changed = threading.Condition()
        self.prepare: Callable[[FakeProcess], None] = lambda process: None

    def start(self) -> FakeProcess:
        self.gate.wait(30)
        if self.num_to_fail:
            self.num_to_fail -= 1
            raise ProcessEnded("no room for it")
        process = FakeProcess()
        self.prepare(process)
        with self._changed:
            self.all.append(process)
            self._changed.notify_all()
        return process

    def nth(self, number: int) -> FakeProcess:
        """The process of this number, from 0, once it is there."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) > number, 30), "it was not started"
            return self.all[number]
