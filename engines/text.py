"""From tokens to text that may be shown: whole UTF-8 characters, stop strings cut off.

A stream never shows a part of a character, nor text that may yet turn out to be the beginning of a stop string.
"""

import codecs
from collections.abc import Callable


class TextStream:
    """Turns tokens into text, one after the other. One per sequence."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: tuple[str, ...]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.matched: str | None = None

    def push(self, token_id: int) -> str:
        """Text that a token makes showable; `matched` is set when a stop string is complete."""
        text = self._decoder.decode(self._token_bytes(token_id))
        if not self._stop:
            return text
        return self._hold_back(text)

    def finish(self) -> str:
        """What is still held when the sequence ends without a stop string. A character that was cut is not shown."""
        held, self._held = self._held, ""
        return held

    def _hold_back(self, text: str) -> str:
        pending = self._held + text
        found = [(pending.find(stop), stop) for stop in self._stop if stop in pending]
        if found:
            # The earliest match ends the text; of several there, the longest, as a reader would see it.
            position, self.matched = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return pending[:position]
        num_held = max(_overlap(pending, stop) for stop in self._stop)
        shown = pending[: len(pending) - num_held]
        self._held = pending[len(shown) :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
