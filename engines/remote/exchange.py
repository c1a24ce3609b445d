"""One try: a request is sent to one upstream, and what comes back is read.

Runs on the engine's loop. Redirects are not followed, cookies are not kept, and nothing is decoded but what must be.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from engines.remote.chunks import DONE, EventReader, Garbled, Tally, glance
from engines.remote.config import RemoteConfig
from engines.remote.failures import Failed, broken, plain, read_error, refused
from engines.remote.upstream import Upstream
from engines.remote_call import RemoteCall
from engines.sequence import Usage

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
STREAM, JSON = "text/event-stream", "application/json"


@dataclass(slots=True, eq=False)
class Patience:
    """How long a try may wait for the next thing: `due_s` on the `time.monotonic` clock, `what` it then has not done.
    The engine looks after all tries at once, which spares a timer per chunk."""

    due_s: float = float("inf")
    what: str = ""
    is_over: bool = False
    task: "asyncio.Task[Any] | None" = None

    def begin(self, task: "asyncio.Task[Any]") -> None:
        self.task, self.is_over = task, False

    def wait(self, seconds: float, what: str) -> None:
        self.due_s, self.what = time.monotonic() + seconds, what

    def check(self, now_s: float) -> None:
        """Cut the try off if it is late."""
        if now_s > self.due_s and self.task is not None and not self.is_over:
            self.is_over = True
            self.task.cancel()

    def end(self) -> None:
        self.due_s, self.task = float("inf"), None


@dataclass(slots=True, kw_only=True, eq=False)
class Try:
    """`tally` has what the answer has come to."""

    session: aiohttp.ClientSession
    config: RemoteConfig
    upstream: Upstream
    call: RemoteCall
    headers: dict[str, str]
    tally: Tally = field(default_factory=Tally)

    @property
    def usage(self) -> Usage:
        """As the upstream counts, or estimated where it does not."""
        tally = self.tally
        prompt = self.call.num_prompt_tokens if tally.num_prompt_tokens is None else tally.num_prompt_tokens
        return Usage(
            num_prompt_tokens=prompt,
            num_cached_tokens=tally.num_cached_tokens,
            num_completion_tokens=tally.num_tokens,
        )

    async def run(self, patience: Patience) -> AsyncIterator[list[bytes]]:
        """The chunks of a stream as they come, or a whole answer as the only one; at least one.

        Raises: Failed.
        """
        patience.wait(self.config.first_token_timeout_s if self.call.is_stream else float("inf"), "begin to answer")
        was_dropped = True
        try:
            async with self._send() as response:
                was_dropped = False
                await self._check(response)
                parts = self._stream(response, patience) if self.call.is_stream else self._whole(response)
                async for chunks in parts:
                    yield chunks
        except Garbled as error:
            raise broken(f"does not speak OpenAI's API: {error}") from None
        except aiohttp.ClientConnectorError as error:
            raise broken(f"cannot be reached: {_why(error)}", is_gone=True) from None
        except aiohttp.ConnectionTimeoutError:
            seconds = self.config.connect_timeout_s
            raise broken(f"cannot be reached: no connection within {seconds:g} s", is_gone=True) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as error:
            what = "closed the connection" if was_dropped else "broke off its answer"
            raise broken(f"{what} ({type(error).__name__})", was_dropped=was_dropped) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise broken(f"broke off its answer ({type(error).__name__})") from None

    def _send(self) -> "aiohttp.client._RequestContextManager":
        return self.session.post(
            f"{self.upstream.url}/{self.call.endpoint}",
            data=self.call.body,
            headers=self.headers | self.upstream.headers,
            allow_redirects=False,
        )

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raises: Failed for a status other than 200, or a content-type other than the one asked for."""
        if response.status != 200:
            body = await response.content.read(MAX_ERROR_BYTES)
            raise refused(response.status, body, self.call.model, response.headers.get("retry-after"))
        wanted = STREAM if self.call.is_stream else JSON
        if response.content_type != wanted:
            raise broken(f"answered with the content-type {response.content_type[:100]!r} instead of {wanted!r}")

    async def _stream(self, response: aiohttp.ClientResponse, patience: Patience) -> AsyncIterator[list[bytes]]:
        reader, tally = EventReader(), self.tally
        async for piece in response.content.iter_any():
            chunks = self._read(reader.feed(piece))
            if chunks:
                patience.wait(self.config.token_timeout_s, "go on with its answer")
                yield chunks
        chunks = self._read(reader.close())
        if chunks:
            yield chunks
        if not tally.is_over:
            raise broken("ended its answer before it was whole" if tally.num_chunks else "sent an empty answer")

    def _read(self, events: list[bytes]) -> list[bytes]:
        """The chunks among the events. Raises: Garbled; Failed for an error inside a stream."""
        chunks = []
        for data in events:
            if data == DONE:
                self.tally.is_over = True
                continue
            seen = glance(data)
            if seen.is_failure:
                raise broken(f"failed: {plain(read_error(data).message) or 'it did not say why'}")
            self.tally.add(seen)
            chunks.append(data if b"\n" not in data else data.replace(b"\n", b" "))
        return chunks

    async def _whole(self, response: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise Garbled(f"its answer is longer than {MAX_BODY_BYTES} bytes")
        yield self._read([bytes(body)])


def _why(error: aiohttp.ClientConnectorError) -> str:
    """Without the address, which is nothing for clients."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is unknown"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "its certificate or TLS is not accepted"
    return (error.os_error.strerror or type(error.os_error).__name__).lower()


def failure_of(patience: Patience) -> Failed:
    """For a try that was cut off because it was late."""
    return broken(f"did not {patience.what} in time")
