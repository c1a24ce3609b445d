"""From the text of an answer to the calls in it, piece by piece as the text comes."""

import json
import re
import secrets
from dataclasses import dataclass

from models.errors import GrammarFailed
from server.generation.tools import ARGUMENTS_START, CALL_END, CALL_START, OPEN_MARK
from server.wire.chat import TOOL_NAME, CallDelta, Delta, FunctionCall, FunctionDelta, ToolCall

_HEAD = re.compile(re.escape(CALL_START) + f"({TOOL_NAME})" + re.escape(ARGUMENTS_START))
MAX_HEAD_CHARS = len(CALL_START) + 128 + len(ARGUMENTS_START)


@dataclass(slots=True, kw_only=True)
class Call:
    """A call, and its arguments as far as they have been read."""

    id: str
    name: str
    arguments: str = ""
    is_whole: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class CallPiece:
    """What a piece of text adds to call `index`; `opens` is the call when it begins here."""

    index: int
    arguments: str = ""
    opens: Call | None = None


Piece = str | CallPiece
"""Text of the message itself, or a part of a call."""


class CallReader:
    """Reads the text of one choice. It holds back text that may become a mark, and blanks before a call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._held = ""
        self._is_in_call = False

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls and none of them is cut off."""
        return bool(self.calls) and self.calls[-1].is_whole and not self._is_in_call

    def push(self, text: str) -> list[Piece]:
        """Raises: GrammarFailed for text that begins like a call but is none, which the grammar should prevent."""
        self._held += text
        pieces: list[Piece] = []
        while self._read(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        if not self._is_in_call:
            return [held] if held and not self.calls else []
        if self.calls and not self.calls[-1].is_whole and held and not is_json(self.calls[-1].arguments):
            return [self._add_arguments(held)]
        return []  # a head that was cut off, or the end of a call

    def _read(self, pieces: list[Piece]) -> bool:
        """Take one thing from what is held; False when more text must come first."""
        if not self._is_in_call:
            return self._read_text(pieces)
        if not self.calls or self.calls[-1].is_whole:
            return self._read_head(pieces)
        return self._read_arguments(pieces)

    def _read_text(self, pieces: list[Piece]) -> bool:
        before, mark, after = self._held.partition(OPEN_MARK)
        if not mark:
            before = before[: len(before) - overlap(before, OPEN_MARK)]
        shown = before.rstrip()
        if shown:
            pieces.append(shown)
        self._is_in_call = bool(mark)
        self._held = after if mark else self._held[len(shown) :]
        return self._is_in_call

    def _read_head(self, pieces: list[Piece]) -> bool:
        match = _HEAD.match(self._held)
        if match is None:
            if len(self._held) > MAX_HEAD_CHARS:
                raise GrammarFailed("the answer began a tool call but did not write one")
            return False
        self._held = self._held[match.end() :]
        self.calls.append(Call(id=f"call_{secrets.token_hex(12)}", name=match[1]))
        pieces.append(CallPiece(index=len(self.calls) - 1, opens=self.calls[-1]))
        return True

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        # No JSON value holds this end: a line break inside a string is always escaped.
        arguments, end, after = self._held.partition(CALL_END)
        if not end:
            arguments = arguments[: len(arguments) - overlap(arguments, CALL_END)]
            after = self._held[len(arguments) :]
        if arguments:
            pieces.append(self._add_arguments(arguments))
        self._held = after
        self.calls[-1].is_whole = bool(end)
        self._is_in_call = not end
        return bool(end)

    def _add_arguments(self, arguments: str) -> CallPiece:
        self.calls[-1].arguments += arguments
        return CallPiece(index=len(self.calls) - 1, arguments=arguments)


def is_json(text: str) -> bool:
    """False also for what is nested too deeply to be read."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` are a beginning of `mark`."""
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)


def delta_of(piece: Piece) -> Delta:
    """Source: OpenAI API reference, chat streaming: id, type and name come once, then pieces of the arguments."""
    if isinstance(piece, str):
        return Delta(content=piece)
    if piece.opens is None:
        return Delta(tool_calls=[CallDelta(index=piece.index, function=FunctionDelta(arguments=piece.arguments))])
    function = FunctionDelta(name=piece.opens.name, arguments="")
    return Delta(tool_calls=[CallDelta(index=piece.index, id=piece.opens.id, type="function", function=function)])


def whole_calls(calls: list[Call]) -> list[ToolCall]:
    return [ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments)) for call in calls]
