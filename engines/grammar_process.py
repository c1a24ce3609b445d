"""The server's end of a process that tries grammars out (`grammar_trial.py`): started at need, ended at will."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO, cast

import msgspec

from engines.config import MIB
from engines.grammar_trial import Outcome, Trial, Words, read_message, write_message

PROGRAM = "engines.grammar_trial"
MAX_REPLY_BYTES = 8 * MIB
"""More than all schemas of a request, which come back where they were loosened."""
KILLED = (-signal.SIGKILL, -signal.SIGTERM)
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
START_S = 60.0
"""Longer than a process needs to read the vocabulary on any machine."""


class TrialTooLong(Exception):
    """The time was over, and the process was ended."""


class TrialDied(Exception):
    """The process ended. `blames_trial`: by itself, in the trial (out of memory, a fault in the library); otherwise it
    was killed, perhaps by `end`, or could not start."""

    def __init__(self, message: str, *, blames_trial: bool) -> None:
        super().__init__(message)
        self.blames_trial = blames_trial


class TrialProcess:
    """One process for one vocabulary. `run` is called by one thread at a time, `end` and `close` by any.

    `words` is called when a process is started: at the first trial, and after one has ended.
    """

    def __init__(self, words: Callable[[], Words]) -> None:
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def run(self, trial: Trial) -> Outcome:
        """Try a grammar out. Its time begins once the process is ready. Raises: TrialTooLong, TrialDied."""
        process = self._process or self._start()
        outcome = self._exchange(process, trial, trial.time_limit_s)
        if outcome.is_last:
            self._discard(process)
        return outcome

    def end(self) -> None:
        """End the process now; a trial in it dies, and the next one starts another."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process now, for good: no other is started, and nothing of it stays."""
        with self._lock:
            self._is_closed = True
            process = self._process
        if process is not None:
            self._discard(process)

    def _start(self) -> "subprocess.Popen[bytes]":
        words = self._words()
        with self._lock:
            if self._is_closed:
                raise TrialDied("it is closed", blames_trial=False)
            try:
                process = self._process = _open()
            except OSError as error:
                raise TrialDied(f"it did not start: {error}", blames_trial=False) from error
        try:
            self._exchange(process, words, START_S)
        except (TrialDied, TrialTooLong) as error:
            raise TrialDied(f"it did not get ready: {error}", blames_trial=False) from error
        return process

    def _exchange(self, process: "subprocess.Popen[bytes]", message: Words | Trial, limit_s: float) -> Outcome:
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(limit_s, _kill, (process, late))
        timer.daemon = True
        timer.start()
        try:
            write_message(cast(BinaryIO, process.stdin), message)
            return read_message(cast(BinaryIO, process.stdout), Outcome, MAX_REPLY_BYTES)
        except (EOFError, OSError, ValueError, msgspec.MsgspecError):  # it ended, or another thread closed its pipes
            status = self._discard(process)
            if late.is_set():
                raise TrialTooLong(f"longer than {limit_s:g} s") from None
            raise TrialDied(f"it ended with status {status}", blames_trial=status not in KILLED) from None
        finally:
            timer.cancel()

    def _discard(self, process: "subprocess.Popen[bytes]") -> int:
        """End a process so that nothing stays, no pipe and no zombie. Returns its exit status."""
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert isinstance(pipe, io.IOBase)
            with contextlib.suppress(OSError):  # what is left in the buffer has no reader
                pipe.close()
        status = process.wait()
        with self._lock:
            if self._process is process:
                self._process = None
        return status


def _open() -> "subprocess.Popen[bytes]":
    # A group of its own: what interrupts the server in a terminal is for the server alone to handle. No session of its
    # own: Linux shares the processor between sessions first (autogroup), and niceness would count for nothing.
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        process_group=0,
    )


def _kill(process: "subprocess.Popen[bytes]", late: threading.Event) -> None:
    late.set()
    process.kill()


def _environment() -> dict[str, str]:
    """The same modules as here, no secrets, and one thread: threads reserve address space, which is bounded there."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
