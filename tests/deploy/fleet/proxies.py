"""The proxies of deploy/proxies, with ports of this run in place of 8000 to 8004."""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.deploy.fleet.fleet import HEALTH_CHECK_S, free_ports, status_of
from tests.deploy.programs import ROOT, need_program

FOLDER = ROOT / "deploy" / "proxies"
DEBIAN = "make test-deploy DEBIAN=1 installs it"


def _envoy(file: Path) -> list[str]:
    program = need_program("envoy", "fleet", fix="make test-deploy installs it")
    return [program, "--config-path", str(file), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]


def _haproxy(file: Path) -> list[str]:
    return [need_program("haproxy", fix=DEBIAN), "-db", "-f", str(file)]


def _nginx(file: Path) -> list[str]:
    more = f"daemon off; pid {file.parent}/nginx.pid; error_log {file.parent}/nginx.log;"
    return [need_program("nginx", fix=DEBIAN), "-p", str(file.parent), "-c", str(file), "-g", more]


PROXIES: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "envoy": ("envoy.yaml", _envoy),
    "haproxy": ("haproxy.cfg", _haproxy),
    "nginx": ("nginx.conf", _nginx),
}


@contextlib.contextmanager
def proxy(name: str, ports: Sequence[int], folder: Path) -> Iterator[str]:
    """The URL of a proxy before these ports; the second to fourth may have nobody behind them."""
    source, command = PROXIES[name]
    (own,) = free_ports(1)
    given = dict(zip(("8000", "8001", "8002", "8003", "8004"), map(str, (own, *ports)), strict=True))
    text = re.sub(r"\b800[0-4]\b", lambda found: given[found.group()], (FOLDER / source).read_text())
    file = folder / source
    file.write_text(text.replace("http {", f"http {{ access_log off; client_body_temp_path {folder}/body;"))
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command(file), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{own}"
        end_s = time.monotonic() + 30
        while status_of(f"{url}/readyz") != 200:
            assert process.poll() is None, (folder / f"{name}.log").read_text()
            assert time.monotonic() < end_s, (folder / f"{name}.log").read_text()
            time.sleep(0.1)
        time.sleep(HEALTH_CHECK_S)
        yield url
    finally:
        process.terminate()
        process.wait(10)
