"""A subject's process, from the bench's side: a new one per subject and round, and a time limit for every task."""

import contextlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import IO

from bench import protocol
from bench.protocol import Answer, Failed, Task

STDERR_LINES = 6
CLOSE_TIMEOUT_S = 15.0


class SubjectProcess:
    """A context manager around `python -m bench.host TARGET`."""

    def __init__(self, target: str, *, environ: Mapping[str, str], timeout_s: float) -> None:
        self._command = [sys.executable, "-m", "bench.host", target]
        self._environ = dict(environ)
        self._timeout_s = timeout_s
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_lost = False

    def __enter__(self) -> "SubjectProcess":
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._environ,
        )
        self._reader = threading.Thread(target=self._read_lines, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._is_lost or kind is not None:
            self._process.kill()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._stderr.close()

    def ask(self, task: Task) -> Answer:
        """Send a task and wait. A subject that dies or takes too long answers `Failed` to this and every later task."""
        if self._is_lost:
            return Failed(error="the subject is gone")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(protocol.encode(task) + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=self._timeout_s)
        except BrokenPipeError:
            line = b""
        except queue.Empty:
            self._is_lost = True
            return Failed(error=f"no answer within {self._timeout_s:g} s")
        if not line:
            self._is_lost = True
            return Failed(error=f"the process ended: {self._describe_exit()}")
        return protocol.answer_decoder.decode(line)

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _describe_exit(self) -> str:
        code = self._process.wait(CLOSE_TIMEOUT_S)
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return f"exit code {code}; " + " | ".join(lines[-STDERR_LINES:])
