"""The request log: one line per HTTP request, for people or as JSON. Never a prompt, an answer or a key."""

import logging
import time

from server.telemetry.request_record import Record

logger = logging.getLogger("server.request_log")
"""Not the module's name: operators filter by it (docs/operations.md)."""

Fields = dict[str, object]


def fields_of(record: Record, method: str, route: str, status: int) -> Fields:
    """The fields of a finished request; those that do not apply to it are left out.

    Units: `total_ms` from its arrival to its last byte, `ttft_ms` from its arrival to the first token, `queue_ms` from
    its arrival at the student's admission to its start in the engine. Tokens and compute count all choices.
    """
    fields: Fields = {
        "id": record.id,
        "method": method,
        "route": route,
        "status": status,
        "error": record.error,
        "key": None if record.api_key is None else record.api_key.name,
        "tenant": record.tenant,
        "student": record.student,
        "path": record.path,
        "task": record.task,
        "reason": record.reason,
        "confidence": record.confidence,
        "cache": record.cache,
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_cached_tokens,
        "completion_tokens": record.num_tokens,
        "compute_share": record.compute_share,
        "online_quality": "chosen" if record.is_watched else None,
        "queue_ms": _ms(record.queue_s),
        "ttft_ms": _ms(record.ttft_s),
        "total_ms": _ms(time.monotonic() - record.started_s),
    }
    return {name: value for name, value in fields.items() if value is not None}


def log_request(fields: Fields, *, is_work: bool) -> None:
    """Probes and pages are logged at DEBUG only."""
    level = logging.INFO if is_work else logging.DEBUG
    if logger.isEnabledFor(level):
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        logger.log(level, "request finished %s", text, extra={"fields": fields, "event": "request finished"})


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
