"""`GET /openapi.json`, generated from the wire structs: what it says is what the decoders accept."""

from dataclasses import dataclass
from typing import Any

import msgspec

from router.tasks import TASKS
from server.access.keys import OPEN_PATHS
from server.generation.delivery import CACHE_HEADERS, ROUTE_HEADERS
from server.generation.preferences import TASK_HEADER
from server.students.admission_gate import DEADLINE_HEADER
from server.wire.base import ErrorReply
from server.wire.chat import ChatChunk, ChatCompletion, ChatRequest
from server.wire.completions import CompletionRequest, TextCompletion
from server.wire.debug import DebugReply
from server.wire.responses import ResponseEvent, ResponseReply, ResponseRequest
from server.wire.status import (
    FlushReply,
    HealthReply,
    ModelList,
    ModelReply,
    ProgressReply,
    ReloadReply,
    RouteReply,
    RouteRequest,
    StudentList,
    StudentReply,
    StudentRequest,
    VersionReply,
)
from server.wire.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

Schema = dict[str, Any]
Refs = dict[type[msgspec.Struct], Schema]
DONE = "[DONE]"


@dataclass(slots=True, kw_only=True, frozen=True)
class Operation:
    """One route as the document tells it. `refusals` are the error statuses with an OpenAI error body, `parameters`
    what it reads beside the body and x-request-id, `example` a body that any server answers, `end` the last event of
    its streams."""

    method: str
    path: str
    id: str
    summary: str
    reply: type[msgspec.Struct] | None
    body: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | None = None
    refusals: tuple[int, ...] = ()
    unready: type[msgspec.Struct] | None = None
    status: int = 200
    is_routed: bool = False
    parameters: tuple[Schema, ...] = ()
    needs_key: bool = False
    example: Schema | None = None
    end: str = f"`{DONE}`"

    @property
    def has_done(self) -> bool:
        return self.end == f"`{DONE}`"


def _parameter(name: str, where: str, *, is_required: bool = False, **schema: Any) -> Schema:
    return {"name": name, "in": where, "required": is_required, "schema": {"type": "string", **schema}}


_REQUEST_ID = _parameter(
    "x-request-id",
    "header",
    description="Comes back with the answer if it is 1 to 128 letters, digits and `._:-`; else the server makes one.",
)
_TASK = _parameter(TASK_HEADER, "header", enum=list(TASKS))
_DEADLINE = _parameter(DEADLINE_HEADER, "header", type="integer", minimum=1, maximum=999_999_999_999)
_MODEL = _parameter("model", "path", is_required=True)
_STUDENT = _parameter("name", "path", is_required=True)
_BODY = (400, 408, 413, 415, 503)
_ADMIN = (400, 401, 403, 404)
_WORK = (400, 403, 404, 408, 413, 415, 429, 500, 503, 504)

OPERATIONS = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        id="create_chat_completion",
        summary="Answer a conversation, whole or as a stream of events.",
        body=ChatRequest,
        example={"model": "auto", "messages": [{"role": "user", "content": "How many legs have three spiders?"}]},
        reply=ChatCompletion,
        chunk=ChatChunk,
        refusals=_WORK,
        parameters=(_TASK, _DEADLINE),
        is_routed=True,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        id="create_completion",
        summary="Continue a text, whole or as a stream of events.",
        body=CompletionRequest,
        example={"model": "auto", "prompt": "Three spiders have", "max_tokens": 8},
        reply=TextCompletion,
        chunk=TextCompletion,
        refusals=_WORK,
        parameters=(_TASK, _DEADLINE),
        is_routed=True,
    ),
    Operation(
        method="post",
        path="/v1/responses",
        id="create_response",
        summary="Answer an input, whole or as a stream of typed events. Nothing is stored.",
        body=ResponseRequest,
        example={"model": "auto", "input": "How many legs have three spiders?"},
        reply=ResponseReply,
        chunk=ResponseEvent,
        refusals=_WORK,
        parameters=(_TASK, _DEADLINE),
        is_routed=True,
        end="`response.completed`, `response.incomplete` or `response.failed`",
    ),
    Operation(
        method="post",
        path="/v1/embeddings",
        id="create_embedding",
        summary="Refused: this server has no embeddings, and says why.",
        reply=ErrorReply,
        status=404,
        refusals=(429, 503),
    ),
    Operation(
        method="post",
        path="/v1/route",
        id="create_route",
        summary="Where a request would go and why, without generating.",
        body=RouteRequest,
        example={"prompt": "How many legs have three spiders?"},
        reply=RouteReply,
        refusals=(*_BODY, 404, 500),
        parameters=(_TASK,),
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
        parameters=(_MODEL,),
    ),
    Operation(
        method="post",
        path="/tokenize",
        id="tokenize",
        summary="Token ids of a text or a conversation.",
        body=TokenizeRequest,
        example={"prompt": "Three spiders"},
        reply=TokenizeResponse,
        refusals=(*_BODY, 404),
    ),
    Operation(
        method="post",
        path="/detokenize",
        id="detokenize",
        summary="Text of token ids.",
        body=DetokenizeRequest,
        example={"tokens": [1, 2, 3]},
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
    Operation(
        method="get",
        path="/version",
        id="show_version",
        summary="Versions.",
        reply=VersionReply,
        refusals=(404,),
        parameters=(_parameter("model", "query"),),
    ),
    Operation(method="get", path="/metrics", id="metrics", summary="Prometheus metrics.", reply=None),
    Operation(
        method="get",
        path="/debug/state",
        id="show_state",
        summary="What engines, queues and caches are doing now; ids and numbers, nothing of prompts.",
        reply=DebugReply,
        refusals=_ADMIN,
        needs_key=True,
    ),
    Operation(
        method="get",
        path="/admin/students",
        id="list_students",
        summary="The students of the pool, and those on their way in or out.",
        reply=StudentList,
        refusals=_ADMIN,
        needs_key=True,
    ),
    Operation(
        method="post",
        path="/admin/students",
        id="add_student",
        summary="Add a student; it is opened and loaded in the background.",
        body=StudentRequest,
        reply=StudentReply,
        status=202,
        refusals=(*_ADMIN, 408, 413, 415, 503),
        needs_key=True,
    ),
    Operation(
        method="post",
        path="/admin/students/{name}/drain",
        id="drain_student",
        summary="Give a student no new requests; what it runs may finish.",
        reply=StudentReply,
        refusals=_ADMIN,
        parameters=(_STUDENT,),
        needs_key=True,
    ),
    Operation(
        method="post",
        path="/admin/students/{name}/resume",
        id="resume_student",
        summary="Undo a drain: the student gets new requests again.",
        reply=StudentReply,
        refusals=_ADMIN,
        parameters=(_STUDENT,),
        needs_key=True,
    ),
    Operation(
        method="delete",
        path="/admin/students/{name}",
        id="remove_student",
        summary="Remove a student; one that runs sequences must be drained first.",
        reply=StudentReply,
        status=202,
        refusals=_ADMIN,
        parameters=(_STUDENT,),
        needs_key=True,
    ),
    Operation(
        method="delete",
        path="/admin/cache",
        id="flush_cache",
        summary="Forget kept answers: of a student, of all keys that begin so, or all.",
        reply=FlushReply,
        refusals=(*_ADMIN, 503),
        parameters=(_parameter("student", "query"), _parameter("prefix", "query")),
        needs_key=True,
    ),
    Operation(
        method="post",
        path="/admin/reload",
        id="reload_settings",
        summary="Read settings and keys again; all that may change do so at once, or none.",
        reply=ReloadReply,
        refusals=_ADMIN,
        needs_key=True,
    ),
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
        "components": {
            "schemas": components,
            "securitySchemes": {
                "adminKey": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "http", "scheme": "bearer", "description": "Where the server has keys."},
            },
        },
    }


def _describe(operation: Operation, refs: Refs) -> Schema:
    answer: Schema = {"description": "The answer.", "content": _content(operation, refs)}
    if operation.is_routed:
        answer["headers"] = {name: {"schema": {"type": "string"}} for name in (*ROUTE_HEADERS, *CACHE_HEADERS)}
    described: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [_REQUEST_ID, *operation.parameters],
        "responses": {str(operation.status): answer},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(refs[operation.body])}
        if operation.example is not None:
            described["requestBody"]["content"]["application/json"]["example"] = operation.example
    refusals = {400, *operation.refusals}  # 400: what is no HTTP
    if operation.needs_key:
        described["security"] = [{"adminKey": []}]
    elif operation.path not in OPEN_PATHS:
        described["security"] = [{}, {"apiKey": []}]
        refusals |= {401, 429} if operation.body is not None else {401}
    for status in sorted(refusals):
        described["responses"][str(status)] = {"description": "An error.", "content": _json(refs[ErrorReply])}
    if operation.unready is not None:
        described["responses"]["503"] = {"description": "Not yet.", "content": _json(refs[operation.unready])}
    return described


def _content(operation: Operation, refs: Refs) -> Schema:
    if operation.reply is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content = _json(refs[operation.reply])
    if operation.chunk is not None:
        content["text/event-stream"] = {"itemSchema": _event(operation, refs)}
    return content


def _event(operation: Operation, refs: Refs) -> Schema:
    """One event of a stream. Source: OpenAPI 3.2, section 4.14, which readers of 3.1 know too."""
    assert operation.chunk is not None
    told = {"anyOf": [refs[operation.chunk], refs[ErrorReply]]}
    data = [{"type": "string", "contentMediaType": "application/json", "contentSchema": told}]
    if operation.has_done:
        data.insert(0, {"const": DONE})
    return {
        "type": "object",
        "description": f"The last event is {operation.end}, or tells an error.",
        "properties": {"event": {"type": "string"}, "data": {"anyOf": data}},
        "required": ["data"],
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
