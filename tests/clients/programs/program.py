"""What the Python programs share. A program speaks for one client: it reads commands from stdin, one JSON object a
line, does each with its client, and answers with one line. It lives on between two commands, so that a cancelled stream
ends by the client's doing and not with the process.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import Any

MARK = "reply: "
"""Begins the lines that are answers; whatever else a client's library prints is left alone."""

WEATHER = "12 degrees, light rain"
"""What the tool of every program returns."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Target:
    """Where to send, and what. `prompts` are the suite's, by name, the same for all clients; `tokenizer` is the folder
    of the default student's.
    """

    url: str
    key: str
    model: str
    prompts: Mapping[str, str]
    tokenizer: str = ""

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


Result = dict[str, Any]
Capability = Callable[[Target], Result]


def run(capabilities: Mapping[str, Capability], *packages: str, **versions: str) -> None:
    """Do what stdin asks for until it ends. The versions of `packages`, and `versions` that are known otherwise, are
    told before the first command.
    """
    _reply({"versions": {package: version(package) for package in packages} | versions})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            result = capabilities[command.pop("capability")](Target(**command))
        except Exception:
            _reply({"error": traceback.format_exc()})
        else:
            _reply({"result": result})


def _reply(content: Mapping[str, Any]) -> None:
    print(MARK + json.dumps(content), flush=True)


def failure_of(call: Callable[[], object]) -> Result:
    """What a call raises: its class, the HTTP status that the client made known, and its text."""
    try:
        call()
    except Exception as error:
        status = getattr(error, "status_code", None)
        return {"type": type(error).__name__, "status": status, "message": str(error)}
    raise AssertionError("the call raised nothing")


def first(pieces: Iterator[str], number: int = 2) -> list[str]:
    """As many pieces with text in them as asked for."""
    return list(islice((piece for piece in pieces if piece), number))


def get_weather(city: str) -> str:
    """The weather in a city"""
    return WEATHER
