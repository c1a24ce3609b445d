"""The server under load: `fenhe serve` as a process of its own, started, watched and stopped by its process id."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ADMIN_KEY = "loadtest-admin"
TENANT_KEYS = ("loadtest-one", "loadtest-two")
"""Keys of two tenants, for `KEYED`."""
_URL = re.compile(r"http://127\.0\.0\.1:\d+")


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keyed(*keys: str) -> dict[str, str]:
    """Settings of a server that asks for one of these keys; each is a tenant's."""
    return {"FENHE_KEYS__SHA256": ",".join(map(_digest, keys))}


KEYED = keyed(*TENANT_KEYS)
"""Settings of a server that asks for keys."""


@contextlib.contextmanager
def folder_until_the_end(prefix: str) -> Iterator[Path]:
    """A folder for a program's own servers. Told to end, the program leaves as usual: it stops them, and the folder
    goes.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def installed_command() -> str:
    """The `fenhe` program beside this Python, else the one on PATH.

    Raises: FileNotFoundError when there is neither.
    """
    beside = Path(sys.executable).with_name("fenhe")
    found = str(beside) if beside.exists() else shutil.which("fenhe")
    if found is None:
        raise FileNotFoundError("the command `fenhe` is not installed: `pip install -e .` in the checkout")
    return found


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class ServedProcess:
    """`fenhe serve` on a free loopback port. `settings` are `FENHE_*` variables; what it prints goes to `log`. `within`
    is a command that the server's own is given to, and that it must replace."""

    def __init__(
        self, settings: Mapping[str, str], log: Path, arguments: Sequence[str] = (), within: Sequence[str] = ()
    ) -> None:
        environ = os.environ | {"FENHE_ADMIN__KEY_SHA256": _digest(ADMIN_KEY)} | dict(settings)
        self._log = log
        self._file = log.open("wb")
        command = [*within, installed_command(), "serve", "--port", "0", *arguments]
        self._process = subprocess.Popen(command, env=environ, stdout=self._file, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_for_url(self, limit_s: float = 120.0) -> str:
        """Raises: RuntimeError with the end of its log when it does not come up."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s and self.is_alive:
            found = _URL.search(self.log_text())
            if found is not None:
                return found.group()
            time.sleep(0.1)
        raise RuntimeError(f"the server did not come up; the end of {self._log}:\n{self.log_end()}")

    def log_end(self, num_chars: int = 2000) -> str:
        return self.log_text()[-num_chars:]

    def resident_bytes(self) -> int:
        """Anonymous memory in RAM, which a leak makes grow. Mapped weights and pages of files are not counted."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"/proc/{self.pid}/status has no RssAnon")
        return int(found.group(1)) * 1024

    def num_open_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def signal_end(self) -> None:
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, limit_s: float) -> int | None:
        """Its exit status; None while it lives on."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, limit_s: float = 60.0) -> int:
        """End it as an operator would, and return its exit status."""
        self.signal_end()
        try:
            status = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._file.close()
        return status
