"""A request on its way to upstreams: which one is tried, what comes back, and how it ends."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from engines.remote.config import RemoteConfig
from engines.remote.exchange import Patience, Try, failure_of
from engines.remote.failures import Failed, broken
from engines.remote.upstream import Upstream, choose
from engines.remote_call import RemoteCall
from engines.sequence import (
    Finish,
    FinishReason,
    GenerationRequest,
    SequenceState,
    SequenceStatus,
    Timings,
    Usage,
)
from models.errors import ServingError, StepFailed

logger = logging.getLogger(__name__)

NOTHING = Usage(num_prompt_tokens=0, num_cached_tokens=0, num_completion_tokens=0)


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """Owned by the engine's thread. `usage` is that of the last try."""

    request: GenerationRequest
    patience: Patience = field(default_factory=Patience)
    task: asyncio.Task[None] | None = None
    queued_s: float = field(default_factory=time.monotonic)
    admitted_s: float | None = None
    first_token_s: float | None = None
    usage: Usage = NOTHING
    is_aborted: bool = False

    @property
    def remote(self) -> RemoteCall:
        assert self.request.remote is not None, "a remote student is asked by `RemoteCall`"
        return self.request.remote

    def cancel(self) -> None:
        """End it, as nobody waits for it any more."""
        self.is_aborted = True
        if self.task is not None:
            self.task.cancel()

    def finish(self, reason: FinishReason, error: ServingError | None = None) -> Finish:
        return Finish(
            reason=reason,
            path=self.request.path,
            usage=self.usage,
            timings=Timings(
                queued_s=self.queued_s,
                admitted_s=self.admitted_s,
                first_token_s=self.first_token_s,
                finished_s=time.monotonic(),
            ),
            error=error,
        )

    def state(self, now_s: float) -> SequenceState:
        request = self.request
        return SequenceState(
            id=request.id,
            status=SequenceStatus.PREFILLING if self.first_token_s is None else SequenceStatus.DECODING,
            path=request.path,
            head="exact",
            slot=0,
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=0,
            num_computed_tokens=0,
            num_completion_tokens=self.usage.num_completion_tokens,
            max_completion_tokens=request.sampling.max_tokens,
            age_s=now_s - self.queued_s,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Caller:
    """Makes calls on one event loop. `emit` gets the chunks of a call as they come, `num_retries` only grows."""

    session: aiohttp.ClientSession
    config: RemoteConfig
    upstreams: Sequence[Upstream]
    emit: Callable[[Call, list[bytes]], None]
    num_retries: int = 0

    async def answer(self, call: Call) -> Finish:
        """Make a call, whatever happens."""
        try:
            return call.finish(await self._try_all(call))
        except Failed as failed:
            return call.finish(FinishReason.ERROR, failed.failure.error)
        except asyncio.CancelledError:
            return call.finish(FinishReason.ABORT)
        except Exception:  # whatever a library may raise: the request must end
            logger.exception("remote call failed id=%s", call.request.id)
            return call.finish(FinishReason.ERROR, StepFailed("the remote engine failed on this request"))

    async def _try_all(self, call: Call) -> FinishReason:
        """Raises: Failed, from the last upstream that was tried."""
        remote = call.remote
        tried: list[Upstream] = []
        last: Failed | None = None
        while len(tried) < self.config.max_tries:
            upstream = choose(self.upstreams, remote.model, remote.affinity, tried)
            if upstream is None:
                break
            self.num_retries += bool(tried)
            tried.append(upstream)
            try:
                return await self._try_afresh(call, upstream)
            except Failed as failed:
                last = failed
                self._note(upstream, failed, call)
                if not failed.failure.may_retry or call.first_token_s is not None:
                    raise
        raise last or broken("does not answer")

    async def _try_afresh(self, call: Call, upstream: Upstream) -> FinishReason:
        """Once more where the connection was one that the upstream no longer wanted. Raises: Failed."""
        try:
            return await self._try(call, upstream)
        except Failed as failed:
            if not failed.failure.was_dropped or call.first_token_s is not None:
                raise
        return await self._try(call, upstream)

    async def _try(self, call: Call, upstream: Upstream) -> FinishReason:
        """Raises: Failed."""
        sender = call.request.sender
        attempt = Try(
            session=self.session,
            config=self.config,
            upstream=upstream,
            call=call.remote,
            headers={} if sender is None else dict(sender.headers),
        )
        upstream.breaker.allows()  # of an open breaker this is the one trial
        upstream.num_running += 1
        upstream.num_requests += 1
        call.admitted_s = call.admitted_s or time.monotonic()
        try:
            await self._read(call, attempt)
        finally:
            upstream.num_running -= 1
            call.usage = attempt.usage
        upstream.succeed()
        return attempt.tally.reason

    async def _read(self, call: Call, attempt: Try) -> None:
        """Raises: Failed; CancelledError when nobody waits any more."""
        task = asyncio.current_task()
        assert task is not None
        call.patience.begin(task)
        try:
            async for chunks in attempt.run(call.patience):
                call.first_token_s = call.first_token_s or time.monotonic()
                self.emit(call, chunks)
        except asyncio.CancelledError:
            if call.is_aborted or not call.patience.is_over:
                raise
            task.uncancel()
            raise failure_of(call.patience) from None
        finally:
            call.patience.end()

    def _note(self, upstream: Upstream, failed: Failed, call: Call) -> None:
        failure, message = failed.failure, failed.failure.error.message
        logger.warning("upstream failed url=%s id=%s: %s", upstream.url, call.request.id, message)
        if failure.is_fault:
            upstream.fail(message.removeprefix("the upstream of this student "), is_gone=failure.is_gone)
