"""The form an answer must have: that of its text, `tools` and `tool_choice` of a request as one grammar."""

from collections.abc import Sequence
from dataclasses import dataclass

from engines.grammar import Grammar
from engines.schema_loosening import Followed, Loosened, Loosens, SchemaRule, whole
from models.errors import InvalidParameter
from server.generation.json_schema import refused
from server.generation.structured_outputs import BODY, TextForm, text_form_of
from server.generation.tools import argument_rules, calls_rules, functions_of
from server.settings.config import Limits
from server.students.grammars import SchemaRefused
from server.students.student import ServedStudent
from server.wire.chat import ChatRequest, FunctionDefinition, NamedToolChoice
from server.wire.completions import CompletionRequest


@dataclass(slots=True, kw_only=True, frozen=True)
class Form:
    """What an answer of one student keeps to, and the places of the request's schemas where that is less than asked."""

    grammar: Grammar | None = None
    loosened: tuple[Loosened, ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class Structure:
    """`rules` are the grammar's text without its schemas, None for free text. `loosened` is what is known before the
    schemas are compiled; `param` is the field that is named where the whole cannot be."""

    rules: str | None = None
    functions: tuple[FunctionDefinition, ...] = ()
    schemas: tuple[SchemaRule, ...] = ()
    loosened: tuple[Loosened, ...] = ()
    param: str = "response_format"

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
            raise InvalidParameter(f"`{self.param}`: {error.message}", param=self.param) from error
        return Form(grammar=found.grammar, loosened=(*self.loosened, *found.loosened))


def structure_of(body: ChatRequest, limits: Limits) -> Structure:
    """Raises: InvalidParameter, UnsupportedField; each names the field."""
    functions = functions_of(body)
    wanted = text_form_of(body, limits)
    if isinstance(body.tool_choice, NamedToolChoice) and wanted is not None:
        raise InvalidParameter(
            f"`{wanted.param}` and a `tool_choice` that names a function contradict each other: a call has the form of "
            "the function's parameters",
            param=wanted.param,
        )
    if wanted is None and not functions:
        return Structure()
    arguments = argument_rules(functions, body.tool_choice, limits)
    return _structure(_rules(body, functions, has_format=wanted is not None), functions, wanted, arguments, limits)


def text_structure_of(body: CompletionRequest, limits: Limits) -> Structure:
    """Of a text completion, which has no tools. Raises: InvalidParameter, UnsupportedField."""
    wanted = text_form_of(body, limits)
    return Structure() if wanted is None else _structure(f"start: {BODY}", (), wanted, [], limits)


def _structure(
    rules: str,
    functions: tuple[FunctionDefinition, ...],
    wanted: TextForm | None,
    arguments: Sequence[Followed],
    limits: Limits,
) -> Structure:
    format_schema = [] if wanted is None or wanted.schema is None else [wanted.schema]
    schemas = _bounded([*format_schema, *arguments], limits)
    return Structure(
        rules="\n".join([rules, *([] if wanted is None else wanted.rules)]),
        functions=functions,
        schemas=tuple(one.rule for one in schemas),
        loosened=tuple(place for one in schemas for place in one.loosened),
        param="tools" if functions or wanted is None else wanted.param,
    )


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
