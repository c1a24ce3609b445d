"""The form that a request gives its answer's text: `response_format`, or one of vLLM's `structured_outputs`, also under
their older names (`guided_json`, `guided_regex`, ...).

Source: vLLM, `StructuredOutputsParams`: one of json, regex, choice, grammar and json_object.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from engines.grammar import choice_body, grammar_body, regex_body
from engines.schema_loosening import Followed, Loosens, SchemaRule
from models.errors import InvalidParameter
from server.generation.json_schema import held_part
from server.settings.config import Limits
from server.wire.base import StructuredOutputs, any_decoder
from server.wire.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat
from server.wire.completions import CompletionRequest

ANY_OBJECT: dict[str, Any] = {"type": "object"}
FORMAT_SCHEMA = "response_format.json_schema.schema"
BODY = "body"
"""The rule of the answer's text."""

FormedBody = ChatRequest | CompletionRequest


@dataclass(slots=True, kw_only=True, frozen=True)
class TextForm:
    """`param` is the field that asks for it. It is a schema, or else a rule's text."""

    param: str
    schema: Followed | None = None
    rule: str | None = None

    @property
    def rules(self) -> list[str]:
        """The lines of a grammar that define it, beside its schema."""
        return [] if self.rule is None else [f"{BODY}: {self.rule}"]


def text_form_of(body: FormedBody, limits: Limits) -> TextForm | None:
    """The form of the answer's text; None when it is free. Raises: InvalidParameter, UnsupportedField."""
    wanted = [*_formats(body), *_outputs(body.structured_outputs or StructuredOutputs(), "structured_outputs.")]
    wanted += _outputs(_older(body), "guided_")
    if len(wanted) > 1:
        (first, _), (param, _) = wanted[:2]
        raise InvalidParameter(f"`{first}` and `{param}` contradict each other; send one", param=param)
    return _form(*wanted[0], limits) if wanted else None


def _older(body: FormedBody) -> StructuredOutputs:
    return StructuredOutputs(
        json=body.guided_json,
        regex=body.guided_regex,
        choice=body.guided_choice,
        grammar=body.guided_grammar,
        json_object=body.guided_json_object,
    )


def _formats(body: FormedBody) -> Iterator[tuple[str, object]]:
    if isinstance(body.response_format, JsonObjectFormat | JsonSchemaFormat):
        yield "response_format", body.response_format


def _outputs(outputs: StructuredOutputs, prefix: str) -> Iterator[tuple[str, object]]:
    """What is asked for, by its field."""
    for name in outputs.__struct_fields__:
        value = getattr(outputs, name)
        if value is not None and value is not False:
            yield f"{prefix}{name}", value


def _form(param: str, value: Any, limits: Limits) -> TextForm:
    kind = param.removeprefix("structured_outputs.").removeprefix("guided_")
    _check_size(value if isinstance(value, str) else "", param, limits)  # before anything goes through it
    match kind:
        case "json":
            return _schema_form(param, _schema_in(value, param), Loosens.UNSUPPORTED, limits)
        case "json_object":
            return _schema_form(param, ANY_OBJECT, Loosens.NOTHING, limits)
        case "response_format":
            return _format_form(value, limits)
    rule = _rule(kind, value, param)
    _check_size(rule, param, limits)
    return TextForm(param=param, rule=rule)


def _check_size(text: str, param: str, limits: Limits) -> None:
    if len(text) > limits.max_schema_bytes:
        raise InvalidParameter(
            f"`{param}` has more than {limits.max_schema_bytes} bytes (limits.max_schema_bytes)", param=param
        )


def _rule(kind: str, value: Any, param: str) -> str:
    match kind:
        case "regex":
            return regex_body(value)
        case "choice":
            return choice_body(value)
    try:
        return grammar_body(value)
    except InvalidParameter as error:
        raise InvalidParameter(f"`{param}`: {error.message}", param=param) from None


def _schema_in(value: Mapping[str, Any] | str, param: str) -> Mapping[str, Any]:
    """A schema, or the text of one."""
    try:
        schema = any_decoder.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, RecursionError):
        schema = None
    if not isinstance(schema, Mapping):
        raise InvalidParameter(f"`{param}` must be a JSON schema, or the text of one", param=param)
    return schema


def _format_form(wanted: JsonObjectFormat | JsonSchemaFormat, limits: Limits) -> TextForm:
    if isinstance(wanted, JsonObjectFormat):
        if wanted.schema is not None:
            return _schema_form("response_format.schema", wanted.schema, Loosens.UNSUPPORTED, limits)
        return _schema_form("response_format", ANY_OBJECT, Loosens.NOTHING, limits)
    schema = wanted.json_schema.schema
    if schema is None:
        raise InvalidParameter(f"`{FORMAT_SCHEMA}` is required", param=FORMAT_SCHEMA)
    loosens = Loosens.NOTHING if wanted.json_schema.strict else Loosens.UNSUPPORTED
    return _schema_form(FORMAT_SCHEMA, schema, loosens, limits)


def _schema_form(param: str, schema: Mapping[str, Any], loosens: Loosens, limits: Limits) -> TextForm:
    held = held_part(schema, param, loosens, limits.max_schema_bytes)
    rule = SchemaRule.of(held.schema, name=BODY, where=param, loosens=loosens)
    return TextForm(param=param.partition(".json_schema")[0], schema=Followed(rule=rule, loosened=held.loosened))
