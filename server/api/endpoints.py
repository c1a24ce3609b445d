"""Every endpoint of the server, once: the application's routes and the OpenAPI document are made from this table."""

from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any

import msgspec

from router.tasks import TASKS
from server.api.admin import (
    add_handler,
    drain_handler,
    flush_handler,
    reload_handler,
    remove_handler,
    resume_handler,
    students_handler,
)
from server.api.chat import chat_handler
from server.api.completions import completion_handler
from server.api.console import facts_handler, state_handler
from server.api.debug import debug_handler
from server.api.embeddings import embeddings_handler
from server.api.handler import Handler
from server.api.messages import count_handler, message_handler
from server.api.model_list import model_handler, models_handler
from server.api.online_quality import pin_handler, unpin_handler
from server.api.probes import health_handler, metrics_handler, ready_handler, startup_handler, version_handler
from server.api.responses import response_handler
from server.api.route import route_handler
from server.api.shelf import add_from_shelf_handler, shelf_handler
from server.api.tokenize import detokenize_handler, tokenize_handler
from server.context import Context
from server.generation.preferences import TASK_HEADER
from server.lifecycle.student_changes import StudentChanges
from server.students.admission_gate import DEADLINE_HEADER
from server.wire.base import ErrorReply
from server.wire.chat import ChatChunk, ChatCompletion, ChatRequest
from server.wire.completions import CompletionRequest, TextCompletion
from server.wire.console import FactsReply, LiveReply, ShelfReply, ShelfRequest
from server.wire.debug import DebugReply
from server.wire.message_errors import MessageError
from server.wire.messages import CountReply, CountRequest, MessageEvent, MessageReply, MessageRequest
from server.wire.online_quality import PinList, PinRequest
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
HandlerMaker = Callable[[Context, StudentChanges], Handler]
DONE = "[DONE]"


@dataclass(slots=True, kw_only=True, frozen=True)
class Endpoint:
    """A method of a path, what handles it, and what the document says about it.

    `route` is the path as the application matches it where the document writes it differently. `chunk` is what an event
    of a stream holds, one kind or several. `refusals` are the statuses of errors, whose body is `error`; `unready` is
    the body of a 503 that is no error, `parameters` are what it reads beside the body and x-request-id, `example` is a
    body that any server answers, `end` the last event of its streams.
    """

    method: str
    path: str
    make_handler: HandlerMaker
    id: str
    summary: str
    reply: type[msgspec.Struct] | None
    body: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | UnionType | None = None
    refusals: tuple[int, ...] = ()
    error: type[msgspec.Struct] = ErrorReply
    unready: type[msgspec.Struct] | None = None
    status: int = 200
    is_routed: bool = False
    parameters: tuple[Schema, ...] = ()
    needs_admin_key: bool = False
    example: Schema | None = None
    route: str | None = None
    end: str = f"`{DONE}`"

    @property
    def has_done(self) -> bool:
        return self.end == f"`{DONE}`"


def _with_context(make: Callable[[Context], Handler]) -> HandlerMaker:
    """For handlers that neither add nor remove students."""
    return lambda context, changes: make(context)


def parameter(name: str, where: str, *, is_required: bool = False, **schema: Any) -> Schema:
    """A parameter as OpenAPI describes it; `where` is header, path or query."""
    return {"name": name, "in": where, "required": is_required, "schema": {"type": "string", **schema}}


_TASK = parameter(TASK_HEADER, "header", enum=list(TASKS))
_DEADLINE = parameter(DEADLINE_HEADER, "header", type="integer", minimum=1, maximum=999_999_999_999)
_MODEL = parameter("model", "path", is_required=True)
_STUDENT = parameter("name", "path", is_required=True)
_BODY = (400, 408, 413, 415, 503)
_ADMIN = (400, 401, 403, 404)
_WORK = (400, 403, 404, 408, 413, 415, 429, 500, 503, 504, 508)

ENDPOINTS = (
    Endpoint(
        method="post",
        path="/v1/chat/completions",
        make_handler=_with_context(chat_handler),
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
    Endpoint(
        method="post",
        path="/v1/completions",
        make_handler=_with_context(completion_handler),
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
    Endpoint(
        method="post",
        path="/v1/responses",
        make_handler=_with_context(response_handler),
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
    Endpoint(
        method="post",
        path="/v1/messages",
        make_handler=_with_context(message_handler),
        id="create_message",
        summary="Answer a conversation in Anthropic's format, whole or as a stream of typed events.",
        body=MessageRequest,
        example={
            "model": "auto",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "How many legs have three spiders?"}],
        },
        reply=MessageReply,
        chunk=MessageEvent,
        refusals=_WORK,
        error=MessageError,
        parameters=(_TASK, _DEADLINE),
        is_routed=True,
        end="`message_stop`",
    ),
    Endpoint(
        method="post",
        path="/v1/messages/count_tokens",
        make_handler=_with_context(count_handler),
        id="count_message_tokens",
        summary="How many tokens the prompt of a message has.",
        body=CountRequest,
        example={"model": "auto", "messages": [{"role": "user", "content": "How many legs have three spiders?"}]},
        reply=CountReply,
        refusals=(*_BODY, 404),
        error=MessageError,
    ),
    Endpoint(
        method="post",
        path="/v1/embeddings",
        make_handler=_with_context(embeddings_handler),
        id="create_embedding",
        summary="Refused: this server has no embeddings, and says why.",
        reply=ErrorReply,
        status=404,
        refusals=(429, 503),
    ),
    Endpoint(
        method="post",
        path="/v1/route",
        make_handler=_with_context(route_handler),
        id="create_route",
        summary="Where a request would go and why, without generating.",
        body=RouteRequest,
        example={"prompt": "How many legs have three spiders?"},
        reply=RouteReply,
        refusals=(*_BODY, 404, 500),
        parameters=(_TASK,),
    ),
    Endpoint(
        method="get",
        path="/v1/models",
        make_handler=_with_context(models_handler),
        id="list_models",
        summary="Every model id.",
        reply=ModelList,
        refusals=(503,),
    ),
    Endpoint(
        method="get",
        path="/v1/models/{model}",
        route="/v1/models/{model:path}",
        make_handler=_with_context(model_handler),
        id="get_model",
        summary="One model id.",
        reply=ModelReply,
        refusals=(404, 503),
        parameters=(_MODEL,),
    ),
    Endpoint(
        method="post",
        path="/tokenize",
        make_handler=_with_context(tokenize_handler),
        id="tokenize",
        summary="Token ids of a text or a conversation.",
        body=TokenizeRequest,
        example={"prompt": "Three spiders"},
        reply=TokenizeResponse,
        refusals=(*_BODY, 404),
    ),
    Endpoint(
        method="post",
        path="/detokenize",
        make_handler=_with_context(detokenize_handler),
        id="detokenize",
        summary="Text of token ids.",
        body=DetokenizeRequest,
        example={"tokens": [1, 2, 3]},
        reply=DetokenizeResponse,
        refusals=(*_BODY, 404),
    ),
    Endpoint(
        method="get",
        path="/health",
        make_handler=_with_context(health_handler),
        id="health",
        summary="Whether the process is healthy.",
        reply=HealthReply,
        unready=HealthReply,
    ),
    Endpoint(
        method="get",
        path="/readyz",
        make_handler=_with_context(ready_handler),
        id="ready",
        summary="Whether this server may get requests; 503 with the load progress until then.",
        reply=ProgressReply,
        unready=ProgressReply,
    ),
    Endpoint(
        method="get",
        path="/startup",
        make_handler=_with_context(startup_handler),
        id="startup",
        summary="How far loading is.",
        reply=ProgressReply,
    ),
    Endpoint(
        method="get",
        path="/version",
        make_handler=_with_context(version_handler),
        id="show_version",
        summary="Versions.",
        reply=VersionReply,
        refusals=(404,),
        parameters=(parameter("model", "query"),),
    ),
    Endpoint(
        method="get",
        path="/metrics",
        make_handler=_with_context(metrics_handler),
        id="metrics",
        summary="Prometheus metrics.",
        reply=None,
    ),
    Endpoint(
        method="get",
        path="/console/state",
        make_handler=_with_context(state_handler),
        id="show_console_state",
        summary="What the server does now, for its page: rows by path, queues, rates; nothing of any request's text.",
        reply=LiveReply,
        refusals=(404,),
    ),
    Endpoint(
        method="get",
        path="/console/facts",
        make_handler=_with_context(facts_handler),
        id="show_console_facts",
        summary="What the students of the pool are made of, and what was measured of their paths, for its page.",
        reply=FactsReply,
        refusals=(404,),
    ),
    Endpoint(
        method="get",
        path="/debug/state",
        make_handler=_with_context(debug_handler),
        id="show_state",
        summary="What engines, queues and caches are doing now; ids and numbers, nothing of prompts.",
        reply=DebugReply,
        refusals=_ADMIN,
        needs_admin_key=True,
    ),
    Endpoint(
        method="get",
        path="/admin/students",
        make_handler=students_handler,
        id="list_students",
        summary="The students of the pool, and those being added or removed.",
        reply=StudentList,
        refusals=_ADMIN,
        needs_admin_key=True,
    ),
    Endpoint(
        method="post",
        path="/admin/students",
        make_handler=add_handler,
        id="add_student",
        summary="Add a student; it is opened and loaded in the background.",
        body=StudentRequest,
        reply=StudentReply,
        status=202,
        refusals=(*_ADMIN, 408, 413, 415, 503),
        needs_admin_key=True,
    ),
    Endpoint(
        method="post",
        path="/admin/students/{name}/drain",
        make_handler=drain_handler,
        id="drain_student",
        summary="Give a student no new requests; what it runs may finish.",
        reply=StudentReply,
        refusals=_ADMIN,
        parameters=(_STUDENT,),
        needs_admin_key=True,
    ),
    Endpoint(
        method="post",
        path="/admin/students/{name}/resume",
        make_handler=resume_handler,
        id="resume_student",
        summary="Undo a drain: the student gets new requests again.",
        reply=StudentReply,
        refusals=_ADMIN,
        parameters=(_STUDENT,),
        needs_admin_key=True,
    ),
    Endpoint(
        method="delete",
        path="/admin/students/{name}",
        make_handler=remove_handler,
        id="remove_student",
        summary="Remove a student; one that runs sequences must be drained first.",
        reply=StudentReply,
        status=202,
        refusals=_ADMIN,
        parameters=(_STUDENT,),
        needs_admin_key=True,
    ),
    Endpoint(
        method="get",
        path="/admin/shelf",
        make_handler=_with_context(shelf_handler),
        id="list_shelf",
        summary="The students that lie in the folders of `[console] folders`.",
        reply=ShelfReply,
        refusals=_ADMIN,
        needs_admin_key=True,
    ),
    Endpoint(
        method="post",
        path="/admin/shelf",
        make_handler=add_from_shelf_handler,
        id="add_from_shelf",
        summary="Add one of them by its name; it is opened and loaded in the background.",
        body=ShelfRequest,
        reply=StudentReply,
        status=202,
        refusals=(*_ADMIN, 408, 413, 415, 503),
        needs_admin_key=True,
    ),
    Endpoint(
        method="delete",
        path="/admin/cache",
        make_handler=_with_context(flush_handler),
        id="flush_cache",
        summary="Remove cached answers: of a student, of all keys with a prefix, or all.",
        reply=FlushReply,
        refusals=(*_ADMIN, 503),
        parameters=(parameter("student", "query"), parameter("prefix", "query")),
        needs_admin_key=True,
    ),
    Endpoint(
        method="post",
        path="/admin/online-quality/pins",
        make_handler=_with_context(pin_handler),
        id="pin_path",
        summary="Keep a path in default routing of a task, or out of it, whatever its live quality.",
        body=PinRequest,
        reply=PinList,
        refusals=(*_ADMIN, 408, 413, 415),
        needs_admin_key=True,
    ),
    Endpoint(
        method="delete",
        path="/admin/online-quality/pins",
        make_handler=_with_context(unpin_handler),
        id="unpin_path",
        summary="Undo a pin: live quality decides again.",
        reply=PinList,
        refusals=_ADMIN,
        parameters=(parameter("task", "query"), parameter("path", "query"), parameter("student", "query")),
        needs_admin_key=True,
    ),
    Endpoint(
        method="post",
        path="/admin/reload",
        make_handler=_with_context(reload_handler),
        id="reload_settings",
        summary="Read settings and keys again and apply all that may change at run time, or none.",
        reply=ReloadReply,
        refusals=_ADMIN,
        needs_admin_key=True,
    ),
)
