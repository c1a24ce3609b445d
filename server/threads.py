"""Work in new daemon threads: asyncio's shared threads stay free, and the process can exit without waiting."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def run_in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run `work` in a new thread and bring its result to the running loop; dropped if nobody waits for it any more."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    threading.Thread(target=_run, args=(loop, future, [work]), name="fenhe-work", daemon=True).start()
    return future


def _run(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], box: list[Callable[[], T]]) -> None:
    try:
        result = box.pop()()  # popped: the thread outlives its work a little and must not keep an engine alive
    except Exception as error:
        _hand_over(loop, _fail, future, error)
    except BaseException as error:  # a Rust panic, for one, is no Exception; whoever waits must learn of it
        _hand_over(loop, _fail, future, RuntimeError(repr(error)))
    else:
        _hand_over(loop, settle, future, result)


def settle(future: asyncio.Future[T], result: T) -> None:
    """Give a future its result, unless nobody waits for it any more. Runs on the loop."""
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _hand_over(loop: asyncio.AbstractEventLoop, deliver: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(deliver, *arguments)
    except RuntimeError:  # the loop is closed: the server has stopped and nobody waits
        logger.debug("result dropped after the end")
