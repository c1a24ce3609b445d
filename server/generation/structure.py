"""The form a chat answer must have: `response_format`, `tools` and `tool_choice` of a request as one grammar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.grammar import Grammar
from engines.schema_loosening import Followed, Loosened, Loosens, SchemaRule, whole
from models.errors import InvalidParameter
from server.generation.json_schema import held_part, refused
from server.generation.tools import argument_rules, calls_rules, functions_of
from server.settings.config import Limits
from server.students.grammars import SchemaRefused
from server.students.student import ServedStudent
from server.wire.chat import ChatRequest, FunctionDefinition, JsonObjectFormat, JsonSchemaFormat, NamedToolChoice

ANY_OBJECT: dict[str, Any] = {"type": "object"}
FORMAT_SCHEMA = "response_format.json_schema.schema"
BODY = "body"
"""The rule of the answer's text."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Form:
    """What an answer of one student keeps to, and the places of the request's schemas where that is less than asked."""

    grammar: Grammar | None = None
    loosened: tuple[Loosened, ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class Structure:
    """`rules` are the grammar's text without its schemas, None for free text. `loosened` is what is known before the
    schemas are compiled."""

    rules: str | None = None
    functions: tuple[FunctionDefinition, ...] = ()
    schemas: tuple[SchemaRule, ...] = ()
    loosened: tuple[Loosened, ...] = ()

    async def compile(self, student: ServedStudent, limits: Limits, tenant: str | None) -> Form:
        """In one student's tokens.

        Raises: InvalidParameter that names the place in the schema; QueueFull, Unavailable when too many are compiled.
        """
        if self.rules is None:
            return Form()
        time_limit_s = limits.grammar_timeout_s
        try:
            found = await student.grammars.compile(self.rules, self.schemas, tenant=tenant, time_limit_s=time_limit_s)
        except SchemaRefused as refusal:
            raise refused(refusal.where, refusal.pointer, refusal.problem) from None
        except InvalidParameter as error:
            if error.param is not None:
                raise
            param = "tools" if self.functions else "response_format"
            raise InvalidParameter(f"`{param}`: {error.message}", param=param) from error
        return Form(grammar=found.grammar, loosened=(*self.loosened, *found.loosened))


def structure_of(body: ChatRequest, limits: Limits) -> Structure:
    """Raises: InvalidParameter, UnsupportedField; each names the field."""
    functions = functions_of(body)
    wanted = _format_rule(body)
    if isinstance(body.tool_choice, NamedToolChoice) and wanted is not None:
        raise InvalidParameter(
            "`response_format` and a `tool_choice` that names a function contradict each other: a call has the form of "
            "the function's parameters",
            param="response_format",
        )
    if wanted is None and not functions:
        return Structure()
    formats = [] if wanted is None else [wanted]
    rules = _bounded([*formats, *argument_rules(functions, body.tool_choice)], limits)
    return Structure(
        rules=_rules(body, functions, has_format=wanted is not None),
        functions=functions,
        schemas=tuple(one.rule for one in rules),
        loosened=tuple(place for one in rules for place in one.loosened),
    )


def _format_rule(body: ChatRequest) -> Followed | None:
    """The schema of the answer's text; None when it is free."""
    wanted = body.response_format
    if isinstance(wanted, JsonObjectFormat):
        return Followed(rule=SchemaRule.of(ANY_OBJECT, name=BODY, where="response_format"))
    if not isinstance(wanted, JsonSchemaFormat):
        return None
    schema = wanted.json_schema.schema
    if schema is None:
        raise InvalidParameter(f"`{FORMAT_SCHEMA}` is required", param=FORMAT_SCHEMA)
    loosens = Loosens.NOTHING if wanted.json_schema.strict else Loosens.UNSUPPORTED
    held = held_part(schema, FORMAT_SCHEMA, loosens)
    rule = SchemaRule.of(held.schema, name=BODY, where=FORMAT_SCHEMA, loosens=loosens)
    return Followed(rule=rule, loosened=held.loosened)


def _bounded(rules: Sequence[Followed], limits: Limits) -> list[Followed]:
    """The schemas, no larger together than is allowed: the largest that may be loosened are, as a whole.

    Raises: InvalidParameter where they may not.
    """
    bounded, sizes = list(rules), [len(one.rule.text) for one in rules]
    while (num_bytes := sum(sizes)) > limits.max_schema_bytes:
        problem = (
            f"the request's schemas have {num_bytes} bytes, more than {limits.max_schema_bytes} "
            "(limits.max_schema_bytes)"
        )
        loose = [index for index, one in enumerate(bounded) if one.rule.loosens is Loosens.ANYTHING and sizes[index]]
        if not loose:
            where = bounded[0].rule.where
            raise InvalidParameter(f"`{where}`: {problem}", param=where)
        largest = max(loose, key=sizes.__getitem__)
        bounded[largest], sizes[largest] = whole(bounded[largest].rule, problem), 0
    return bounded


def _rules(body: ChatRequest, functions: Sequence[FunctionDefinition], *, has_format: bool) -> str:
    if not functions:
        return f"start: {BODY}"
    is_parallel = body.parallel_tool_calls is not False
    other = BODY if has_format else None
    return calls_rules(functions, body.tool_choice, is_parallel=is_parallel, other=other)
