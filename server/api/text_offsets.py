"""Where tokens begin in the text that they are reported with."""

import codecs

from engines.sequence import TokenLogprob
from server.api.logprobs import TokenName


class TextOffsets:
    """Where the tokens of one choice begin in its text, in characters: first those of an echoed prompt, then those of
    the answer. A token that goes on with a character begins where that character does."""

    def __init__(self, echo: str, num_echoed: int, name: TokenName) -> None:
        self._echo = echo
        self._num_echoed = num_echoed
        self._name = name
        self._end = 0
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def place(self, token: TokenLogprob) -> int:
        """The offset of the next token."""
        if self._num_echoed:
            return self._place_in_echo(token)
        begin = self._end
        self._end += len(self._characters.decode(token.token_bytes))
        return begin

    def _place_in_echo(self, token: TokenLogprob) -> int:
        if not token.token_bytes:  # before a special token the text has whatever was begun
            self._end += len(self._characters.decode(b"", final=True))
        begin = min(self._end, len(self._echo))
        self._end += self._num_in_echo(token)
        self._num_echoed -= 1
        if not self._num_echoed:
            self._end = len(self._echo)
            self._characters.reset()
        return begin

    def _num_in_echo(self, token: TokenLogprob) -> int:
        """How many characters of the prompt a token is. The prompt may lack the blank of its first word, and special
        tokens that were added to it."""
        if not token.token_bytes:
            name = self._name(token.token_id)
            return len(name) if self._echo.startswith(name, self._end) else 0
        text = self._characters.decode(token.token_bytes)
        has_blank = text.startswith(" ") and not self._echo.startswith(" ", self._end)
        return len(text) - has_blank
