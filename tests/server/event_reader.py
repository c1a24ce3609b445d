"""A reader of event streams that knows nothing of ours.

Source: WHATWG HTML, server-sent events, sections 9.2.5 and 9.2.6.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(slots=True, frozen=True)
class ServerSentEvent:
    kind: str
    data: str


def read_events(raw: bytes) -> list[ServerSentEvent]:
    """Every event that was dispatched; one without its blank line was not."""
    events: list[ServerSentEvent] = []
    kind = ""
    data: list[str] = []
    for line in _LINE_END.split(raw.decode().removeprefix("\ufeff"))[:-1]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append(ServerSentEvent(kind or "message", "\n".join(data)))
            kind, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
    return events


def read_json_events(raw: bytes) -> list[Any]:
    """The JSON of every event of a stream that must end in `[DONE]` or an error, and say that once, at the end.

    Fails on `data:` of several lines, and on what is no JSON.
    """
    told = [event.data for event in read_events(raw)]
    assert raw.endswith(b"\n\n"), "the last event is whole"
    assert not any("\n" in data for data in told), "one line of data per event"
    is_done = [data == "[DONE]" for data in told]
    found = [json.loads(data) for data, done in zip(told, is_done, strict=True) if not done]
    is_error = [isinstance(event, dict) and "error" in event and "object" not in event for event in found]
    assert (sum(is_done), sum(is_error)) in {(1, 0), (0, 1)}, "one end"
    assert is_done[-1] or is_error[-1], "the end is last"
    return found
