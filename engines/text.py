"""From tokens to text that may be shown: whole UTF-8 characters, stop strings cut off.

A stream never shows a part of a character, nor text that may yet turn out to be the beginning of a stop string.
"""

import codecs
import re
from collections.abc import Callable


class TextStream:
    """Turns tokens into text, one after the other. One per sequence. With `shows_stop` a stop string that ends the text
    is part of it."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: tuple[str, ...], *, shows_stop: bool = False) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._shows_stop = shows_stop
        self._first = re.compile("|".join({re.escape(one[0]) for one in stop})) if stop else None
        self._held = ""
        self.matched: str | None = None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Text that a token makes showable; `matched` is set when a stop string is complete, if it `may_stop` here."""
        text = self._decoder.decode(self._token_bytes(token_id))
        if not self._stop:
            return text
        return self._hold_back(text, may_stop=may_stop)

    def finish(self) -> str:
        """What is still held when the sequence ends without a stop string. A character that was cut is not shown."""
        held, self._held = self._held, ""
        return held

    def _hold_back(self, text: str, *, may_stop: bool = True) -> str:
        pending = self._held + text
        found = [(pending.find(stop), stop) for stop in self._stop if stop in pending] if may_stop else []
        if found:
            # The earliest match ends the text; of several there, the longest, as a reader would see it.
            position, self.matched = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return pending[: position + len(self.matched) if self._shows_stop else position]
        shown = pending[: self._first_possible(pending)]
        self._held = pending[len(shown) :]
        return shown

    def _first_possible(self, pending: str) -> int:
        """Where the text that may yet turn out to be the beginning of a stop string begins."""
        assert self._first is not None
        for match in self._first.finditer(pending):
            tail = pending[match.start() :]
            if any(len(tail) < len(stop) and stop.startswith(tail) for stop in self._stop):
                return match.start()
        return len(pending)
