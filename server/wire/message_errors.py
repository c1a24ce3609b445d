"""Error bodies of `/v1/messages`, and which shape the errors of a path have.

Source: Anthropic API reference, errors.
"""

from typing import Literal

from msgspec import UNSET, UnsetType

from models.errors import ThreadNotFound
from server.wire.base import Reply, encoder
from server.wire.errors import MAX_MESSAGE_CHARS, error_body, shorten

MESSAGES = "/v1/messages"
TOLD_CODES = (ThreadNotFound.code,)

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
    "timeout_error",
]

TYPES: dict[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ErrorDetails(Reply, frozen=True, kw_only=True):
    error_code: str


class MessageErrorDetail(Reply, frozen=True, kw_only=True):
    """`details` has the code where clients act on it: they send the whole conversation after `thread_not_found`."""

    type: ErrorType
    message: str
    details: ErrorDetails | UnsetType = UNSET


class MessageError(Reply, frozen=True, kw_only=True, tag="error", tag_field="type"):
    """The body of an error, and the event that ends a stream which fails."""

    error: MessageErrorDetail
    request_id: str


def message_error(message: str, status: int, code: str, request_id: str) -> MessageError:
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    details = ErrorDetails(error_code=code) if code in TOLD_CODES else UNSET
    detail = MessageErrorDetail(type=kind, message=shorten(message, MAX_MESSAGE_CHARS), details=details)
    return MessageError(error=detail, request_id=request_id)


def is_messages_path(path: str) -> bool:
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def error_body_at(
    path: str, message: str, status: int, code: str, param: str | None = None, *, request_id: str
) -> bytes:
    """The body of an error in the shape of the API that a path belongs to."""
    if is_messages_path(path):
        return encoder.encode(message_error(message, status, code, request_id))
    return error_body(message, status, code, param)
