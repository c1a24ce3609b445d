"""Small JSON responses, encoded by msgspec."""

from collections.abc import Iterable, Mapping

import msgspec
from starlette.responses import Response

from server.wire.base import encoder


def json_response(body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encoder.encode(body), status, dict(headers or {}), media_type="application/json")


def raw_json_response(body: bytes, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
    response = Response(body, status, media_type="application/json")
    response.raw_headers.extend(headers)
    return response
