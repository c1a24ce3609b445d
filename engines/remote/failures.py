"""From what goes wrong with an upstream to the error its request ends with.

Clients read these messages: they name neither the upstream's address nor its key. `docs/remote.md` has the table.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from models.errors import (
    BadRequest,
    ContextTooLong,
    InvalidParameter,
    NotFound,
    ServingError,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamModelMissing,
)

MAX_SAID_CHARS = 1000
RETRY_AFTER_S = 1.0
LONGEST_RETRY_AFTER_S = 3600.0

_ADDRESS = re.compile(r"\b(?:https?://\S+|\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?)")
_CONTEXT = re.compile(r"context.{0,20}length|context window|prompt is too long|too many tokens", re.IGNORECASE)


@dataclass(slots=True, kw_only=True, frozen=True)
class Failure:
    """`is_fault`: the upstream is to blame, which counts against it; `may_retry`: another upstream may do better;
    `is_gone`: it cannot even be reached; `was_dropped`: the connection ended before there was an answer, as one does
    that was kept open for too long."""

    error: ServingError
    is_fault: bool = True
    may_retry: bool = True
    is_gone: bool = False
    was_dropped: bool = False


class Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


def broken(what: str, *, is_gone: bool = False, was_dropped: bool = False) -> Failed:
    """An upstream that `what` says something of, such as `did not answer`."""
    error = UpstreamFailed(f"the upstream of this student {what}", retry_after_s=RETRY_AFTER_S)
    return Failed(Failure(error=error, is_gone=is_gone, was_dropped=was_dropped))


def missing(model: str, known: frozenset[str] | None = None) -> UpstreamModelMissing:
    listed = "" if not known else f"; it has {', '.join(f'`{name}`' for name in sorted(known)[:20])}"
    return UpstreamModelMissing(
        f"the upstream of this student has no model `{model}`{listed}: fix `model` or `paths` in [student.remote]",
        retry_after_s=30.0,
    )


class Said(msgspec.Struct):
    """The error of an upstream's body, in OpenAI's shape or any other; `detail` is FastAPI's."""

    message: str | None = None
    param: str | None = None
    code: Any = None
    type: str | None = None


def refused(status: int, body: bytes, model: str, retry_after: str | None) -> Failed:
    """A status that is not 200."""
    said = read_error(body)
    message = plain(said.message) or f"status {status}"
    if status in (401, 403, 408) or 300 <= status < 400:
        return broken(_misplaced(status, message))
    if status == 429 or (status == 503 and retry_after is not None):
        busy = UpstreamBusy(f"the upstream of this student is busy: {message}", retry_after_s=_seconds(retry_after))
        return Failed(Failure(error=busy, is_fault=False))
    if status == 404 and _is_about_model(said, model):
        return Failed(Failure(error=missing(model), is_fault=False))
    if status in (404, 405, 501):
        absent = NotFound(f"the upstream of this student does not have this endpoint: {message}")
        return Failed(Failure(error=absent, is_fault=False))
    if 400 <= status < 500:
        return Failed(Failure(error=_bad_request(said, message), is_fault=False, may_retry=False))
    return broken(f"failed with status {status}: {message}")


def _misplaced(status: int, message: str) -> str:
    """Refusals that the settings cause, not the request."""
    if status == 401:
        return "refused this server's key (status 401); see `key_env` in [student.remote]"
    if status == 403:
        return f"does not allow this server this request (status 403): {message}"
    if status == 408:
        return "did not read the request in time (status 408)"
    return f"redirects (status {status}), which is not followed; put the final address into `urls`"


def _bad_request(said: Said, message: str) -> BadRequest:
    """The upstream's own words: they say what to change."""
    param = said.param if isinstance(said.param, str) else None
    if said.code == ContextTooLong.code or _CONTEXT.search(message):
        return ContextTooLong(message, param=param)
    return BadRequest(message) if param is None else InvalidParameter(message, param=param)


def _is_about_model(said: Said, model: str) -> bool:
    text = f"{said.code} {said.param} {said.message}".lower()
    return "model" in text or model.lower() in text


def read_error(body: bytes) -> Said:
    """What an error's body says, whatever its shape; nothing where it is no JSON. The error of a response that failed
    lies in that response."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Said()
    if isinstance(found, dict) and isinstance(found.get("response"), dict):
        found = found["response"]
    if isinstance(found, dict) and "error" in found:
        found = found["error"]
    if isinstance(found, str):
        return Said(message=found)
    if not isinstance(found, dict):
        return Said()
    message = found.get("message") or found.get("detail")
    texts = {name: found.get(name) for name in ("param", "type")}
    known = {name: text for name, text in texts.items() if isinstance(text, str)}
    return Said(
        message=message if isinstance(message, str) else None if message is None else str(message),
        code=found.get("code"),
        **known,
    )


def plain(text: str | None) -> str:
    """Words that clients may read: short, in one line, without addresses."""
    if not text:
        return ""
    shown = _ADDRESS.sub("(address)", " ".join(text.split()))
    return shown if len(shown) <= MAX_SAID_CHARS else f"{shown[:MAX_SAID_CHARS]}..."


def _seconds(retry_after: str | None) -> float:
    """Of a `Retry-After` header in seconds; a date counts as the default."""
    try:
        wait_s = float(retry_after or RETRY_AFTER_S)
    except ValueError:
        return RETRY_AFTER_S
    return RETRY_AFTER_S if math.isnan(wait_s) else min(max(0.0, wait_s), LONGEST_RETRY_AFTER_S)
