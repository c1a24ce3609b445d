"""A client's program as a process that is told what to do, one line after the other."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.clients.clients import ROOT
from tests.clients.programs.program import MARK


class ClientFailed(AssertionError):
    """The client raised; the text is its traceback."""


class ProgramProcess:
    """What it prints beside its answers goes to `log`."""

    def __init__(self, command: Sequence[str], environ: dict[str, str], log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def do(self, capability: str, **target: Any) -> dict[str, Any]:
        """Raises: ClientFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"capability": capability, **target}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise ClientFailed(answer["error"])
        found: dict[str, Any] = answer["result"]
        return found

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return answer
            self._log.write(line)
        raise ClientFailed(f"the program ended; the end of what it printed:\n{self._log_end()}")

    def _log_end(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()[-2000:]
