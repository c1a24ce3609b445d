"""The one map from errors to HTTP statuses, and the OpenAI shape of an error body."""

import math
from http import HTTPStatus

from models import errors
from models.errors import ServingError
from server.wire.base import ErrorDetail, ErrorReply, encoder

STATUS: dict[type[ServingError], int] = {
    errors.ServingError: 500,
    errors.ConfigError: 500,
    errors.BadRequest: 400,
    errors.UnsupportedField: 400,
    errors.ContextTooLong: 400,
    errors.InvalidParameter: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.UnknownModel: 404,
    errors.ThreadNotFound: 404,
    errors.Overloaded: 429,
    errors.QueueFull: 429,
    errors.DeadlineUnreachable: 429,
    errors.RateLimited: 429,
    errors.RequestTooLarge: 429,
    errors.UpstreamBusy: 429,
    errors.Unavailable: 503,
    errors.PathLoading: 503,
    errors.EngineUnhealthy: 503,
    errors.Stopping: 503,
    errors.UpstreamFailed: 503,
    errors.UpstreamModelMissing: 503,
    errors.LoopDetected: 508,
    errors.DeadlineExceeded: 504,
    errors.EngineFault: 500,
    errors.StepFailed: 500,
    errors.GrammarFailed: 500,
    errors.WeightsError: 500,
    errors.SequenceStateError: 500,
}

ROUTE_CODES = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout"}
ROUTE_CODES |= {413: "request_too_large", 414: "uri_too_long", 415: "unsupported_media_type"}
ROUTE_CODES |= {400: "invalid_request", 431: "headers_too_large", 503: "unavailable"}

NEVER_RETRY = (errors.DeadlineExceeded, errors.RequestTooLarge, errors.LoopDetected)
"""Errors whose status clients would retry by themselves, although the request would fail again or be too late."""

DEFAULT_RETRY_AFTER_S = 1.0
MAX_MESSAGE_CHARS = 4000
MAX_PARAM_CHARS = 200
"""A last bound: whatever a client sent, the error is short. A reload lists every mistake of a file."""
INTERNAL_MESSAGE = "the server failed on this request; its log has the details under the x-request-id of this answer"


def status_of(error: ServingError) -> int:
    """The status of an error: its own entry, or that of its nearest ancestor."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def type_of(status: int) -> str:
    """The coarse `type` OpenAI clients know, by status."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def error_body(message: str, status: int, code: str, param: str | None = None) -> bytes:
    """`{"error": {...}}` with all four keys the specification requires."""
    detail = ErrorDetail(
        message=shorten(message, MAX_MESSAGE_CHARS),
        type=type_of(status),
        param=None if param is None else param[:MAX_PARAM_CHARS],
        code=code,
    )
    return encoder.encode(ErrorReply(error=detail))


def shorten(text: str, max_chars: int) -> str:
    """The beginning and the end of a text that is too long: one of them says what is wrong."""
    half = max_chars // 2
    return text if len(text) <= max_chars else f"{text[:half]}...{text[-half:]}"


def body_of(error: ServingError) -> bytes:
    """The body of an error, for a response or for a `data:` line of a stream that has started."""
    return error_body(error.message, status_of(error), error.code, error.param)


def headers_of(error: ServingError) -> list[tuple[bytes, bytes]]:
    """`Retry-After` in whole seconds, and the milliseconds OpenAI's clients prefer, where trying again can help;
    `x-should-retry`, which they obey, says that it can or cannot; how to authenticate where that is missing."""
    if status_of(error) == HTTPStatus.UNAUTHORIZED:
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, NEVER_RETRY):
        return [(b"x-should-retry", b"false")]
    if status_of(error) not in {429, 503}:
        return []
    wait_s = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
    return [
        (b"x-should-retry", b"true"),
        (b"retry-after", str(max(1, math.ceil(wait_s))).encode()),
        (b"retry-after-ms", str(max(1, math.ceil(wait_s * 1000))).encode()),
    ]
