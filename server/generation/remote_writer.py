"""Writes the answers of remote students: their upstream's chunks as they are, under our id and model."""

import msgspec

from models.errors import ServingError
from server.generation.plan import Job, Part
from server.generation.remote_body import HAVE_STREAM_OPTIONS, MESSAGES, RESPONSES, relabelled, value_of
from server.wire import sse
from server.wire.base import UsageReply, encoder
from server.wire.errors import body_of, status_of
from server.wire.message_errors import message_error


class RemoteBodyWriter:
    """Implements `BodyWriter`. The text of its parts is JSON, one line per chunk."""

    def __init__(self, job: Job, endpoint: str, request_id: str) -> None:
        self._job = job
        self._endpoint = endpoint
        self._request_id = request_id

    def opening(self) -> bytes:
        return b""

    def text(self, index: int, text: str) -> bytes:
        return b"".join(self._chunk(line) for line in text.encode().split(b"\n") if line)

    def part(self, part: Part) -> bytes:
        return self.text(part.index, part.text)

    def usage(self, usage: UsageReply) -> bytes:
        return b""  # the upstream's own chunk has it

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        return encoder.encode(relabelled(parts[0].text.encode(), self._job.id, self._job.model))

    def failed(self, error: ServingError) -> bytes:
        if self._endpoint == MESSAGES:
            body = encoder.encode(message_error(error.message, status_of(error), error.code, self._request_id))
            return sse.typed_frame("error", body)
        if self._endpoint == RESPONSES:
            fault = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
            return sse.typed_frame("error", encoder.encode(fault))
        return sse.frame(body_of(error))

    def _chunk(self, line: bytes) -> bytes:
        fields = relabelled(line, self._job.id, self._job.model)
        if self._endpoint in HAVE_STREAM_OPTIONS:
            return b"" if self._is_unasked_usage(fields) else sse.frame(encoder.encode(fields))
        kind = value_of(fields, "type", "")
        return sse.typed_frame(str(kind), encoder.encode(fields))

    def _is_unasked_usage(self, fields: dict[str, msgspec.Raw]) -> bool:
        """Whether a chunk says nothing but the usage, which the client did not ask for; it is taken out of others."""
        if self._job.includes_usage or "usage" not in fields:
            return False
        usage = fields.pop("usage")
        return bytes(usage) != b"null" and bytes(fields.get("choices", b"")).replace(b" ", b"") == b"[]"
