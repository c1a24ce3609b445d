"""Refusals of a chat completion that was made from another API's request name the fields of that request."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from models.errors import BadRequest

_QUOTED = re.compile(r"`([^`]+)`")
_MESSAGE = re.compile(r"messages\[(\d+)\].*", re.DOTALL)
_TOOL = re.compile(r"tools\[(\d+)\](?:\.function)?(\.parameters)?")


@dataclass(slots=True, kw_only=True, frozen=True)
class FieldNames:
    """`names` says what fields of a chat completion are called, by how they begin; `messages` and `tools` where each of
    its messages and tools came from, and `schema` what the schema of a tool is called."""

    names: Mapping[str, str]
    messages: Sequence[str]
    tools: Sequence[str] = ()
    schema: str

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        try:
            yield
        except BadRequest as error:
            error.message = _QUOTED.sub(lambda quoted: f"`{self.of(quoted[1])}`", error.message)
            error.param = None if error.param is None else self.of(error.param)
            raise

    def of(self, name: str) -> str:
        """What a field is called here."""
        if (message := _MESSAGE.fullmatch(name)) and int(message[1]) < len(self.messages):
            return self.messages[int(message[1])]
        if (tool := _TOOL.match(name)) and int(tool[1]) < len(self.tools):
            return self.tools[int(tool[1])] + (self.schema if tool[2] else "") + name[tool.end() :]
        known = next((known for known in self.names if name.startswith(known)), None)
        return name if known is None else self.names[known] + name.removeprefix(known)
