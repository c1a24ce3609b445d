"""`GET /openapi.json`, generated from the wire structs: what it says is what the decoders accept."""

from dataclasses import dataclass
from typing import Any

import msgspec

from server.schema import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    ErrorReply,
    HealthReply,
    ModelList,
    ModelReply,
    ProgressReply,
    TextCompletion,
    TokenizeRequest,
    TokenizeResponse,
    VersionReply,
)

Schema = dict[str, Any]
Refs = dict[type[msgspec.Struct], Schema]


@dataclass(slots=True, kw_only=True, frozen=True)
class Operation:
    """One route as the document tells it. `refusals` are the error statuses with an OpenAI error body."""

    method: str
    path: str
    id: str
    summary: str
    reply: type[msgspec.Struct] | None
    body: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | None = None
    refusals: tuple[int, ...] = ()
    unready: type[msgspec.Struct] | None = None


_BODY = (400, 408, 413, 415, 503)
_WORK = (400, 404, 408, 413, 415, 429, 500, 503, 504)

OPERATIONS = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        id="create_chat_completion",
        summary="Answer a conversation, whole or as a stream of events.",
        body=ChatRequest,
        reply=ChatCompletion,
        chunk=ChatChunk,
        refusals=_WORK,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        id="create_completion",
        summary="Continue a text, whole or as a stream of events.",
        body=CompletionRequest,
        reply=TextCompletion,
        chunk=TextCompletion,
        refusals=_WORK,
    ),
    Operation(
        method="get",
        path="/v1/models",
        id="list_models",
        summary="Every model id.",
        reply=ModelList,
        refusals=(503,),
    ),
    Operation(
        method="get",
        path="/v1/models/{model}",
        id="get_model",
        summary="One model id.",
        reply=ModelReply,
        refusals=(404, 503),
    ),
    Operation(
        method="post",
        path="/tokenize",
        id="tokenize",
        summary="Token ids of a text or a conversation.",
        body=TokenizeRequest,
        reply=TokenizeResponse,
        refusals=(*_BODY, 404),
    ),
    Operation(
        method="post",
        path="/detokenize",
        id="detokenize",
        summary="Text of token ids.",
        body=DetokenizeRequest,
        reply=DetokenizeResponse,
        refusals=(*_BODY, 404),
    ),
    Operation(
        method="get",
        path="/health",
        id="health",
        summary="Is the process well?",
        reply=HealthReply,
        unready=HealthReply,
    ),
    Operation(
        method="get",
        path="/readyz",
        id="ready",
        summary="May this server get requests? 503 with load progress until it may.",
        reply=ProgressReply,
        unready=ProgressReply,
    ),
    Operation(method="get", path="/startup", id="startup", summary="How far loading is.", reply=ProgressReply),
    Operation(method="get", path="/version", id="show_version", summary="Versions.", reply=VersionReply),
    Operation(method="get", path="/metrics", id="metrics", summary="Prometheus metrics.", reply=None),
)


def openapi_document(version: str) -> Schema:
    structs: list[type[msgspec.Struct]] = [ErrorReply]
    for operation in OPERATIONS:
        structs += [kind for kind in (operation.body, operation.reply, operation.chunk, operation.unready) if kind]
    schemas, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    refs: Refs = dict(zip(structs, schemas, strict=True))
    paths: Schema = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fenhe",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _describe(operation: Operation, refs: Refs) -> Schema:
    described: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [_parameter("x-request-id", "header", is_required=False)],
        "responses": {"200": {"description": "The answer.", "content": _content(operation, refs)}},
    }
    if "{model}" in operation.path:
        described["parameters"].append(_parameter("model", "path", is_required=True))
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(refs[operation.body])}
    for status in sorted({400, *operation.refusals}):  # 400: a bad x-request-id
        described["responses"][str(status)] = {"description": "An error.", "content": _json(refs[ErrorReply])}
    if operation.unready is not None:
        described["responses"]["503"] = {"description": "Not yet.", "content": _json(refs[operation.unready])}
    return described


def _content(operation: Operation, refs: Refs) -> Schema:
    if operation.reply is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content = _json(refs[operation.reply])
    if operation.chunk is not None:
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": "`data:` lines; each holds one chunk, the last is `[DONE]`",
            },
            "x-event-schema": refs[operation.chunk],
        }
    return content


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _parameter(name: str, where: str, *, is_required: bool) -> Schema:
    schema: Schema = {"type": "string"}
    if where == "header":
        schema |= {"pattern": "^[A-Za-z0-9._:-]{1,128}$"}
    return {"name": name, "in": where, "required": is_required, "schema": schema}
