"""The same requests to an upstream directly and through a remote student of it: what must be equal is equal.

As a program: `python -m tests.server.generation.same_answers DIRECT_URL MODEL THROUGH_URL STUDENT`.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx

USER = [{"role": "user", "content": "Name three colours, with commas."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CHAT, COMPLETIONS = "chat/completions", "completions"
GREEDY = {"temperature": 0, "max_tokens": 12}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": USER, **GREEDY}),
    "chat stream": (CHAT, {"messages": USER, **GREEDY, "stream": True}),
    "chat stream with usage": (
        CHAT,
        {"messages": USER, **GREEDY, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "stop": (CHAT, {"messages": USER, **GREEDY, "stop": [","]}),
    "logprobs": (CHAT, {"messages": USER, **GREEDY, "logprobs": True, "top_logprobs": 2}),
    "bias": (CHAT, {"messages": USER, **GREEDY, "logit_bias": {"30": -100}}),
    "tools": (CHAT, {"messages": USER, **GREEDY, "tools": [TOOL]}),
    "json": (CHAT, {"messages": USER, **GREEDY, "response_format": {"type": "json_object"}}),
    "text": (COMPLETIONS, {"prompt": "The capital of France is", **GREEDY}),
    "text stream": (COMPLETIONS, {"prompt": "The capital of France is", **GREEDY, "stream": True}),
    "texts": (COMPLETIONS, {"prompt": ["One, two,", "Red, green,"], **GREEDY}),
    "tokens": (COMPLETIONS, {"prompt": [10, 20, 30], **GREEDY}),
    "text logprobs": (COMPLETIONS, {"prompt": "The capital", **GREEDY, "logprobs": 2}),
    "a bad value": (CHAT, {"messages": USER, "temperature": -5}),
    "no messages": (CHAT, {"messages": []}),
}
OWN = ("id", "created", "model", "system_fingerprint")


def compare(direct: httpx.Client, model: str, through: httpx.Client, student: str) -> Iterator[str]:
    """A sentence for every difference. Of an upstream that answers differently each time only the status counts."""
    for name, (endpoint, body) in REQUESTS.items():
        before = direct.post(endpoint, json=body | {"model": model})
        found = through.post(endpoint, json=body | {"model": student, "fenhe": {"cache": False}})
        after = direct.post(endpoint, json=body | {"model": model})
        is_steady = _said(before) == _said(after)
        if is_steady and _said(before) != _said(found):
            yield f"{name}: {_shown(before)}, through fenhe {_shown(found)}"
        elif not is_steady and before.status_code != found.status_code:
            yield f"{name}: status {before.status_code}, through fenhe {found.status_code}"


def _shown(response: httpx.Response) -> str:
    return f"{response.status_code} {response.text[:400]!r}"


def _said(response: httpx.Response) -> Any:
    """An answer without names and times; of a refusal, that it is one, and whose fault it is."""
    if response.status_code != 200:
        return "refused" if response.status_code < 500 else "failed"
    if not response.headers["content-type"].startswith("text/event-stream"):
        return _plain(response.json())
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else _plain(json.loads(line)) for line in lines]


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in OWN and value is not None}


def main() -> int:
    direct_url, model, through_url, student = sys.argv[1:]
    with (
        httpx.Client(base_url=direct_url, timeout=120) as direct,
        httpx.Client(base_url=through_url, timeout=120) as through,
    ):
        found = list(compare(direct, model, through, student))
    print(*found, f"{len(REQUESTS) - len(found)} of {len(REQUESTS)} the same", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
