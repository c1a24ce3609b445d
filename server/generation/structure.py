"""The form a chat answer must have: `response_format`, `tools` and `tool_choice` of a request as one grammar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.grammar import Grammar, json_body
from models.errors import InvalidParameter
from server.generation.json_schema import check_schema, refused
from server.generation.tools import calls_rules, functions_of, parameters_of
from server.settings.config import Limits
from server.students.grammars import SchemaRefused
from server.students.student import ServedStudent
from server.wire.base import encoder
from server.wire.chat import ChatRequest, FunctionDefinition, JsonObjectFormat, JsonSchemaFormat, NamedToolChoice

ANY_OBJECT: dict[str, Any] = {"type": "object"}
FORMAT_SCHEMA = "response_format.json_schema.schema"


@dataclass(slots=True, kw_only=True, frozen=True)
class Structure:
    """`source` is the grammar's text, None for free text. `schemas` are those in it, by the field they came in."""

    source: str | None = None
    functions: tuple[FunctionDefinition, ...] = ()
    schemas: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    async def compile(self, student: ServedStudent, limits: Limits, tenant: str | None) -> Grammar | None:
        """The grammar in one student's tokens, None for free text.

        Raises: InvalidParameter that names the place in the schema; QueueFull, Unavailable when too many are compiled.
        """
        if self.source is None:
            return None
        time_limit_s = limits.grammar_timeout_s
        try:
            return await student.grammars.compile(self.source, self.schemas, tenant=tenant, time_limit_s=time_limit_s)
        except SchemaRefused as found:
            raise refused(found.where, found.pointer, found.problem) from None
        except InvalidParameter as error:
            if error.param is not None:
                raise
            param = "tools" if self.functions else "response_format"
            raise InvalidParameter(f"`{param}`: {error.message}", param=param) from error


def structure_of(body: ChatRequest, limits: Limits) -> Structure:
    """Raises: InvalidParameter, UnsupportedField; each names the field."""
    _check_size(_given(body), limits)  # before anything goes through them
    functions = functions_of(body)
    schema = _format_schema(body)
    if isinstance(body.tool_choice, NamedToolChoice) and schema is not None:
        raise InvalidParameter(
            "`response_format` and a `tool_choice` that names a function contradict each other: a call has the form of "
            "the function's parameters",
            param="response_format",
        )
    if schema is None and not functions:
        return Structure()
    if body.ignore_eos:
        raise InvalidParameter("`ignore_eos`: an answer with a form ends where the form does", param="ignore_eos")
    schemas = [(FORMAT_SCHEMA, schema)] if schema is not None else []
    schemas += [(f"tools[{i}].function.parameters", parameters_of(one)) for i, one in enumerate(functions)]
    return Structure(source=_source(body, functions, schema), functions=functions, schemas=tuple(schemas))


def _given(body: ChatRequest) -> list[tuple[str, Mapping[str, Any]]]:
    """The schemas that count, by the field they came in, none of them checked."""
    wanted, tools = body.response_format, () if body.tool_choice == "none" else body.tools or ()
    schema = wanted.json_schema.schema if isinstance(wanted, JsonSchemaFormat) else None
    schemas: list[tuple[str, Mapping[str, Any]]] = [] if schema is None else [(FORMAT_SCHEMA, schema)]
    return schemas + [(f"tools[{i}].function.parameters", parameters_of(tool.function)) for i, tool in enumerate(tools)]


def _format_schema(body: ChatRequest) -> Mapping[str, Any] | None:
    """The schema of the answer's text; None when it is free."""
    wanted = body.response_format
    if isinstance(wanted, JsonObjectFormat):
        return ANY_OBJECT
    if not isinstance(wanted, JsonSchemaFormat):
        return None
    schema = wanted.json_schema.schema
    if schema is None:
        raise InvalidParameter(f"`{FORMAT_SCHEMA}` is required", param=FORMAT_SCHEMA)
    check_schema(schema, FORMAT_SCHEMA)
    return schema


def _check_size(schemas: Sequence[tuple[str, Mapping[str, Any]]], limits: Limits) -> None:
    num_bytes = sum(len(encoder.encode(schema)) for _, schema in schemas)
    if num_bytes > limits.max_schema_bytes:
        where = schemas[0][0]
        raise InvalidParameter(
            f"`{where}`: the request's schemas have {num_bytes} bytes, more than {limits.max_schema_bytes} "
            "(limits.max_schema_bytes)",
            param=where,
        )


def _source(body: ChatRequest, functions: tuple[FunctionDefinition, ...], schema: Mapping[str, Any] | None) -> str:
    content = None if schema is None else json_body(schema)
    if not functions:
        return f"start: body\nbody: {content}"
    is_parallel = body.parallel_tool_calls is not False
    return calls_rules(functions, body.tool_choice, is_parallel=is_parallel, other=content)
