"""What the user types in `fenhe chat`: lines with a history, several lines at once, Ctrl-C and Ctrl-D."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self, TextIO

PROMPT, MORE = "> ", "… "
BLOCK = '"""'
HISTORY_LINES = 1000


class Prompt:
    """The questions of a conversation, one by one. A line that ends in a backslash goes on in the next one; so does
    everything between two lines of three double quotes. Ctrl-C drops what is being typed, Ctrl-D ends.
    """

    def __init__(self, lines: TextIO, out: TextIO, *, is_terminal: bool) -> None:
        self._lines, self._out, self.is_terminal = lines, out, is_terminal

    @classmethod
    @contextlib.contextmanager
    def on(cls, lines: TextIO, out: TextIO, environ: Mapping[str, str] = os.environ) -> Iterator[Self]:
        """At a terminal with the history of earlier conversations, in a file of the user's own."""
        is_terminal = lines.isatty()
        with _history(history_file(environ)) if is_terminal else contextlib.nullcontext():
            yield cls(lines, out, is_terminal=is_terminal)

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                text = self._read_all()
            except KeyboardInterrupt:
                self._out.write("\n")
                continue
            except EOFError:
                if self.is_terminal:
                    self._out.write("\n")
                return
            if text.strip():
                yield text.strip()

    def _read_all(self) -> str:
        """Raises: EOFError at the end of the input, with nothing typed before it."""
        line = self._read(PROMPT)
        if line.strip() == BLOCK:
            return "\n".join(self._block())
        parts = []
        while line.endswith("\\"):
            parts.append(line[:-1])
            try:
                line = self._read(MORE)
            except EOFError:
                line = ""
        return "\n".join([*parts, line])

    def _block(self) -> Iterator[str]:
        with contextlib.suppress(EOFError):
            while (line := self._read(MORE)).strip() != BLOCK:
                yield line

    def _read(self, prompt: str) -> str:
        """Raises: EOFError."""
        if self.is_terminal:
            return input(prompt)
        line = self._lines.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")


def history_file(environ: Mapping[str, str]) -> Path:
    """Where the XDG base directory specification puts state."""
    state = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "fenhe" / "chat_history"


@contextlib.contextmanager
def _history(file: Path) -> Iterator[None]:
    """Line editing with what was typed before. Where the file cannot be used, there is no history, and no error."""
    try:
        import readline
    except ImportError:  # Python on Windows has none
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            readline.write_history_file(file)
