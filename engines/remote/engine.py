"""The remote engine: sequences are HTTP requests to upstreams, their events the chunks that come back.

A thread of its own runs one event loop for all of them.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import aiohttp

from engines.contract import EngineStatus, PathStatus, Publish
from engines.remote.calls import Call, Caller
from engines.remote.config import RemoteConfig
from engines.remote.failures import missing
from engines.remote.health import watch
from engines.remote.student import VARIANT, RemoteStudent
from engines.remote.upstream import Upstream, make_upstream
from engines.sequence import Finish, FinishReason, GenerationRequest, SequenceEvent, SequenceState
from models.errors import EngineUnhealthy, Stopping, UnknownModel

logger = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often tries that are late are looked for."""
POLL_S = 0.02
LAST_S = 2.0
"""How long cancelled calls may take to end."""


class RemoteEngine:
    """Implements `engines.contract.Engine` for a remote student. `keys` has the key of every upstream, or None."""

    def __init__(self, student: RemoteStudent, config: RemoteConfig, keys: Sequence[str | None]) -> None:
        self._student = student
        self._config = config
        self.upstreams: tuple[Upstream, ...] = tuple(
            make_upstream(url, key, config.max_failures, config.pause_s)
            for url, key in zip(config.urls, keys, strict=True)
        )
        self._calls: dict[str, Call] = {}
        self._lock = threading.Lock()
        self._pending: list[SequenceEvent] = []
        self._num_prompt_tokens = self._num_generation_tokens = 0
        self._num_accepted = self._num_steps = self._num_failed = 0
        self._publish: Publish | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._caller: Caller | None = None
        self._thread: threading.Thread | None = None
        self._end: asyncio.Event | None = None
        self._is_stopping = False
        self._error: str | None = None

    def start(self, publish: Publish) -> None:
        self._publish = publish
        started: Future[None] = Future()
        name = f"remote-{self._student.name}"
        self._thread = threading.Thread(target=self._run, args=(started,), name=name, daemon=True)
        self._thread.start()
        started.result()

    def submit(self, request: GenerationRequest) -> None:
        """Raises: EngineUnhealthy, UpstreamModelMissing, UnknownModel, Stopping."""
        call = Call(request=request, queued_s=request.queued_s or time.monotonic())
        if request.path not in self._student.models:
            raise UnknownModel(f"the student `{self._student.name}` has no path `{request.path}`", param="path")
        with self._lock:
            self._check(call.remote.model)
            self._calls[request.id] = call
            self._num_accepted += 1
        self._on_loop(self._begin, call)

    def abort(self, sequence_id: str) -> None:
        self._on_loop(self._abort, sequence_id)

    def status(self) -> EngineStatus:
        error = self._why_unhealthy()
        return EngineStatus(
            student=self._student.name,
            is_healthy=error is None,
            error=error,
            error_detail=None if error is None else self._detail(),
            paths=self._paths(),
            num_running=len(self._calls),
            num_waiting=0,
            kv_used_bytes=0,
            kv_capacity_bytes=0,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_generation_tokens,
            num_accepted=self._num_accepted,
            num_steps=self._num_steps,
            num_failed_steps=self._num_failed,
            variant=VARIANT,
        )

    def sequences(self, limit_s: float) -> list[SequenceState]:
        now_s = time.monotonic()
        return [call.state(now_s) for call in tuple(self._calls.values())]

    def audit(self, limit_s: float) -> list[str]:
        found: Future[list[str]] = Future()
        if not self._on_loop(lambda: found.set_result(self._inconsistent())):
            return []
        try:
            return found.result(limit_s)
        except TimeoutError:
            return [f"the remote engine's thread did not answer within {limit_s:g} s"]

    def stop(self, grace_s: float) -> None:
        with self._lock:
            self._is_stopping = True
        if self._thread is None:
            return
        end_s = time.monotonic() + grace_s
        while self._calls and time.monotonic() < end_s:
            time.sleep(POLL_S)
        if self._end is not None:
            self._on_loop(self._end.set)
        self._thread.join(2 * LAST_S)

    @property
    def num_retries(self) -> int:
        """How often a request was tried at another upstream."""
        return 0 if self._caller is None else self._caller.num_retries

    def _check(self, model: str) -> None:
        """Raises: EngineUnhealthy, UpstreamModelMissing, Stopping."""
        if self._is_stopping or self._loop is None:
            raise Stopping("this student is being stopped; send the request again", retry_after_s=1.0)
        able = [upstream for upstream in self.upstreams if upstream.can_be_asked]
        if not able:
            raise EngineUnhealthy(self._why_unhealthy() or "its upstream does not answer", retry_after_s=1.0)
        if not any(upstream.has(model) for upstream in able):
            raise missing(model, frozenset[str]().union(*(upstream.models or () for upstream in able)))

    def _why_unhealthy(self) -> str | None:
        if self._error is not None:
            return self._error
        if any(upstream.can_be_asked for upstream in self.upstreams):
            return None
        reasons = dict.fromkeys(upstream.reason or "does not answer" for upstream in self.upstreams)
        whose = "its upstream" if len(self.upstreams) == 1 else f"each of its {len(self.upstreams)} upstreams"
        return f"{whose} {', or '.join(reasons)}"

    def _detail(self) -> str:
        return "; ".join(f"{upstream.url}: {upstream.reason or 'up'}" for upstream in self.upstreams)

    def _paths(self) -> tuple[PathStatus, ...]:
        """A path is there when an upstream has its model."""
        full = self._student.manifest.full_path.name
        able = [upstream for upstream in self.upstreams if upstream.can_be_asked]
        return tuple(
            PathStatus(
                path=path,
                num_loaded_stages=int(any(upstream.has(model) for upstream in able)),
                num_stages=1,
                is_default=path == full,
            )
            for path, model in self._student.models.items()
        )

    def _inconsistent(self) -> list[str]:
        num_running = sum(upstream.num_running for upstream in self.upstreams)
        if num_running <= len(self._calls):
            return []
        return [f"upstreams count {num_running} requests, the engine has {len(self._calls)}"]

    def _on_loop(self, work: Callable[..., None], *arguments: object) -> bool:
        """Whether there is a loop to do it."""
        loop = self._loop
        if loop is None:
            return False
        try:
            loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:  # it was closed meanwhile
            return False
        return True

    def _run(self, started: "Future[None]") -> None:
        """The engine's thread."""
        try:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(self._serve(started))
        except Exception as error:
            logger.exception("remote engine failed student=%s", self._student.name)
            self._error = f"the remote engine failed ({type(error).__name__})"
            if not started.done():
                started.set_result(None)
        finally:
            with self._lock:
                self._is_stopping, self._loop = True, None
            for call in tuple(self._calls.values()):
                self._finish(call, call.finish(FinishReason.ABORT))
            self._flush()

    async def _serve(self, started: "Future[None]") -> None:
        """Until `stop` ends it, or the thread fails."""
        self._end = asyncio.Event()
        async with _make_session(self._config) as session:
            self._caller = Caller(session=session, config=self._config, upstreams=self.upstreams, emit=self._emit)
            interval_s = self._config.health_interval_s
            models = self._student.models.values()
            tasks = [asyncio.create_task(watch(session, one, interval_s, models)) for one in self.upstreams]
            tasks.append(asyncio.create_task(self._look_for_late()))
            self._loop = asyncio.get_running_loop()
            started.set_result(None)
            await self._end.wait()
            for task in tasks:
                task.cancel()
            for call in tuple(self._calls.values()):
                call.cancel()
            tasks += [call.task for call in self._calls.values() if call.task is not None]
            await asyncio.wait(tasks, timeout=LAST_S)

    async def _look_for_late(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = time.monotonic()
            for call in tuple(self._calls.values()):
                call.patience.check(now_s)

    def _begin(self, call: Call) -> None:
        assert self._caller is not None
        call.task = asyncio.get_running_loop().create_task(self._answer(self._caller, call))
        call.task.add_done_callback(partial(self._make_sure, call))

    async def _answer(self, caller: Caller, call: Call) -> None:
        self._finish(call, await caller.answer(call))

    def _make_sure(self, call: Call, task: "asyncio.Task[None]") -> None:
        """A task that is cancelled before it has begun runs nothing of its own."""
        if call.request.id in self._calls:
            self._finish(call, call.finish(FinishReason.ABORT))

    def _abort(self, sequence_id: str) -> None:
        call = self._calls.get(sequence_id)
        if call is not None:
            call.cancel()

    def _emit(self, call: Call, chunks: list[bytes]) -> None:
        text = b"\n".join(chunks).decode("utf-8", "replace") + "\n"
        self._queue(SequenceEvent(sequence_id=call.request.id, text=text, num_chunks=len(chunks)))

    def _finish(self, call: Call, finish: Finish) -> None:
        with self._lock:
            self._calls.pop(call.request.id, None)
        self._num_prompt_tokens += finish.usage.num_prompt_tokens
        self._num_generation_tokens += finish.usage.num_completion_tokens
        self._num_failed += finish.error is not None
        self._queue(SequenceEvent(sequence_id=call.request.id, finish=finish))

    def _queue(self, event: SequenceEvent) -> None:
        """What comes in one turn of the loop is published together: one wake-up for all streams."""
        if not self._pending and self._loop is not None:
            self._loop.call_soon(self._flush)
        self._pending.append(event)

    def _flush(self) -> None:
        events, self._pending = self._pending, []
        if events and self._publish is not None:
            self._num_steps += 1
            self._publish(events)


def _make_session(config: RemoteConfig) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        read_bufsize=256 * 1024,
    )


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
