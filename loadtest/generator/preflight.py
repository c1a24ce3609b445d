"""Before a run: whether the target answers as a run needs it to, and if not, what is wrong with it by name."""

import json
from collections.abc import Mapping
from typing import Any

import httpx

PATIENCE_S = 30.0
MOST_TEXT = 200


class TargetError(Exception):
    """The target cannot be measured; the text says why."""


def check_target(url: str, body: Mapping[str, Any], headers: Mapping[str, str], patience_s: float = PATIENCE_S) -> None:
    """Ask for one streamed answer of a few tokens.

    Raises: TargetError.
    """
    try:
        timeout = httpx.Timeout(patience_s, connect=min(patience_s, 5.0))
        sent = {**body, "max_tokens": 2}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=sent, headers=headers, timeout=timeout) as reply:
            _check(reply)
    except httpx.InvalidURL as error:
        raise TargetError(f"{url} is no address: {error}") from error
    except httpx.ConnectError as error:
        raise TargetError(f"{url} is dead, nothing listens there: {error}") from error
    except httpx.TimeoutException as error:
        raise TargetError(f"{url} is too slow: no answer of two tokens within {patience_s:g} s") from error
    except httpx.HTTPError as error:
        raise TargetError(f"{url} broke the connection: {type(error).__name__}: {error}") from error


def _check(reply: httpx.Response) -> None:
    where = str(reply.request.url)
    if reply.status_code != 200:
        wait = reply.headers.get("retry-after")
        hint = {401: "; give its API key by --key-env", 429: "; it refuses already before the run"}.get(
            reply.status_code, ""
        )
        hint += f"; it says to wait {wait} s" if wait else ""
        raise TargetError(f"{where} answers {reply.status_code}{hint}: {_text(reply)}")
    kind = reply.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        raise TargetError(f"{where} sends no stream (SSE) but {kind or 'no content type'}: {_text(reply)}")
    has_content = False
    for line in reply.iter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:"):
            continue
        if data == "[DONE]":
            break
        has_content |= _has_content(json.loads(data), where)
    else:
        raise TargetError(f"{where} ends its stream without [DONE]")
    if not has_content:
        raise TargetError(f"{where} sends no content in its stream")


def _has_content(event: dict[str, Any], where: str) -> bool:
    """Raises: TargetError when it is an error."""
    if event.get("error"):
        raise TargetError(f"{where} sends an error in its stream: {event['error']}")
    deltas = [choice.get("delta", {}) for choice in event.get("choices", ())]
    return any(delta.get("content") or delta.get("tool_calls") for delta in deltas)


def _text(reply: httpx.Response) -> str:
    return " ".join(reply.read()[:MOST_TEXT].decode(errors="replace").split())
