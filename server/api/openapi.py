"""`GET /openapi.json`, generated from the endpoints and the wire structs: what it says is what the decoders accept."""

from types import UnionType
from typing import Any

import msgspec

from server.access.keys import API_KEY_HEADER, OPEN_PATHS
from server.api.endpoints import DONE, ENDPOINTS, Endpoint, parameter
from server.generation.delivery import ANSWER_HEADERS
from server.wire.base import ErrorReply, LooseBody, RequestBody

Schema = dict[str, Any]
Kind = type[msgspec.Struct] | UnionType
Refs = dict[Kind, Schema]

REQUEST_ID = parameter(
    "x-request-id",
    "header",
    description="Comes back with the answer if it is 1 to 128 letters, digits and `._:-`; else the server makes one.",
)


def openapi_document(version: str) -> Schema:
    kinds: list[Kind] = [ErrorReply]
    for endpoint in ENDPOINTS:
        told = (endpoint.body, endpoint.reply, endpoint.chunk, endpoint.unready, endpoint.error)
        kinds += [kind for kind in told if kind]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs: Refs = dict(zip(kinds, schemas, strict=True))
    _open_bodies(RequestBody, components)
    paths: Schema = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _describe(endpoint, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fenhe",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "adminKey": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "http", "scheme": "bearer", "description": "Where the server has keys."},
                "apiKeyHeader": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER, "description": "As well."},
            },
        },
    }


def _open_bodies(kind: type[RequestBody], components: Schema) -> None:
    """Say what bodies may have beside their fields: anything where it is ignored, elsewhere nothing but nulls."""
    if kind.__name__ in components:
        is_loose = issubclass(kind, LooseBody)
        components[kind.__name__]["additionalProperties"] = True if is_loose else {"type": "null"}
    for inner in kind.__subclasses__():
        _open_bodies(inner, components)


def _describe(endpoint: Endpoint, refs: Refs) -> Schema:
    answer: Schema = {"description": "The answer.", "content": _content(endpoint, refs)}
    if endpoint.is_routed:
        answer["headers"] = {name: {"schema": {"type": "string"}} for name in ANSWER_HEADERS}
    described: Schema = {
        "operationId": endpoint.id,
        "summary": endpoint.summary,
        "parameters": [REQUEST_ID, *endpoint.parameters],
        "responses": {str(endpoint.status): answer},
    }
    if endpoint.body is not None:
        described["requestBody"] = {"required": True, "content": _json(refs[endpoint.body])}
        if endpoint.example is not None:
            described["requestBody"]["content"]["application/json"]["example"] = endpoint.example
    refusals = {400, *endpoint.refusals}  # 400: a request that is not valid HTTP
    if endpoint.needs_admin_key:
        described["security"] = [{"adminKey": []}]
    elif endpoint.path not in OPEN_PATHS:
        described["security"] = [{}, {"apiKey": []}, {"apiKeyHeader": []}]
        refusals |= {401, 429} if endpoint.body is not None else {401}
    for status in sorted(refusals):
        described["responses"][str(status)] = {"description": "An error.", "content": _json(_error(endpoint, refs))}
    if endpoint.unready is not None:
        described["responses"]["503"] = {"description": "Not yet.", "content": _json(refs[endpoint.unready])}
    return described


def _error(endpoint: Endpoint, refs: Refs) -> Schema:
    """What is refused before its path is known has the same shape everywhere."""
    own = refs[endpoint.error]
    return own if endpoint.error is ErrorReply else {"anyOf": [own, refs[ErrorReply]]}


def _content(endpoint: Endpoint, refs: Refs) -> Schema:
    if endpoint.reply is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content = _json(refs[endpoint.reply])
    if endpoint.chunk is not None:
        content["text/event-stream"] = {"itemSchema": _event(endpoint, refs)}
    return content


def _event(endpoint: Endpoint, refs: Refs) -> Schema:
    """One event of a stream. Source: OpenAPI 3.2, section 4.14, which readers of 3.1 know too."""
    assert endpoint.chunk is not None
    body = {"anyOf": [refs[endpoint.chunk], refs[endpoint.error]]}
    data = [{"type": "string", "contentMediaType": "application/json", "contentSchema": body}]
    if endpoint.has_done:
        data.insert(0, {"const": DONE})
    return {
        "type": "object",
        "description": f"The last event is {endpoint.end}, or an error.",
        "properties": {"event": {"type": "string"}, "data": {"anyOf": data}},
        "required": ["data"],
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
