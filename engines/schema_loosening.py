"""What of a schema a grammar can hold: a place that it cannot is loosened where that is allowed, and named.

Never tightens: every value of the schema as it came is a value of the loosened one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from engines.alternatives import are_apart
from engines.grammar_words import Explanation, explain
from engines.schema_parts import at, definitions_of, locate, replaced

MAX_LOOSENED = 32
"""Places of one schema that are loosened one by one; what has more of them is loosened as a whole."""
MAX_CALLS = 1000
"""How often the library is asked about one schema, which may take 9 ms each time: more is not looked at one by one."""

Schema = Mapping[str, Any]
ProblemOf = Callable[[Schema], str | None]


class Loosens(StrEnum):
    """What may be left out of a schema: nothing; what is not supported; also what is wrong in itself, which is for the
    arguments of tools."""

    NOTHING = "nothing"
    UNSUPPORTED = "unsupported"
    ANYTHING = "anything"


class Loosened(msgspec.Struct, frozen=True, kw_only=True):
    """A place that an answer need not keep to: the request's field, the JSON pointer in its schema, and why."""

    where: str
    pointer: str
    problem: str


class SchemaRule(msgspec.Struct, frozen=True, kw_only=True):
    """A schema in a grammar: the name of its rule, the request's field it came in, and how far it may be loosened.

    It travels as the text of its JSON, which holds numbers of any size.
    """

    name: str
    where: str
    text: str
    loosens: Loosens = Loosens.NOTHING

    @classmethod
    def of(cls, schema: Schema, *, name: str, where: str, loosens: Loosens = Loosens.NOTHING) -> "SchemaRule":
        return cls(name=name, where=where, text=json.dumps(schema), loosens=loosens)

    @property
    def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found

    def with_schema(self, schema: Schema) -> "SchemaRule":
        return msgspec.structs.replace(self, text=json.dumps(schema))


@dataclass(slots=True, frozen=True)
class Refusal:
    pointer: str
    problem: str


@dataclass(slots=True, kw_only=True, frozen=True)
class Followed:
    """A schema that a grammar holds, and what it does not hold of the one that was asked for."""

    rule: SchemaRule
    loosened: tuple[Loosened, ...] = ()


class _TooMany(Exception):
    """The library has been asked too often."""


def follow(rule: SchemaRule, problem_of: ProblemOf) -> Followed | Refusal:
    """Loosen a schema until it has no problem; as a whole where that takes too many questions."""
    asked = _Asked(problem_of)
    try:
        return _follow(rule, asked)
    except _TooMany:
        found = explain(asked.problem)
        may_loosen = rule.loosens is Loosens.ANYTHING or (rule.loosens is Loosens.UNSUPPORTED and not found.is_mistake)
        return whole(rule, found.words) if may_loosen else Refusal("", found.words)


class _Asked:
    """Counts. `problem` is the last one of the whole schema that was found."""

    def __init__(self, problem_of: ProblemOf) -> None:
        self.problem = ""
        self._problem_of = problem_of
        self._num_calls = 0

    def __call__(self, schema: Schema) -> str | None:
        if self._num_calls == MAX_CALLS:
            raise _TooMany
        self._num_calls += 1
        return self._problem_of(schema)


def _follow(rule: SchemaRule, problem_of: _Asked) -> Followed | Refusal:
    schema: Schema = rule.schema
    loosened: list[Loosened] = []
    renamed: list[str] = []
    while (problem := problem_of(schema)) is not None:
        problem_of.problem = problem
        pointer, found = locate(schema, problem, problem_of), explain(problem)
        same = _with_alternatives(schema, pointer)
        if same is not None:
            schema = same
            renamed.append(pointer)
            continue
        may_loosen = rule.loosens is not Loosens.NOTHING or _says_twice(at(schema, pointer), found)
        if not may_loosen or (rule.loosens is not Loosens.ANYTHING and found.is_mistake):
            return Refusal(pointer, found.words)
        if len(loosened) == MAX_LOOSENED:
            return whole(rule, found.words)
        schema, keyword = _without_problem(schema, pointer, problem, problem_of)
        schema = schema if "$ref" in schema else {**_least(rule), **schema}
        place = _as_it_came(pointer + keyword, renamed)
        loosened.append(Loosened(where=rule.where, pointer=place, problem=found.words))
        if keyword == "/oneOf":
            renamed.append(pointer)
    return Followed(rule=rule.with_schema(schema) if loosened or renamed else rule, loosened=tuple(loosened))


def whole(rule: SchemaRule, problem: str) -> Followed:
    """The same rule with nothing left of its schema but that an object stays one."""
    schema = {"type": "object"} if rule.schema.get("type") == "object" else _least(rule)
    loosened = Loosened(where=rule.where, pointer="", problem=problem)
    return Followed(rule=rule.with_schema(schema), loosened=(loosened,))


def _least(rule: SchemaRule) -> dict[str, Any]:
    """What is never left out: arguments are an object."""
    return {"type": "object"} if rule.loosens is Loosens.ANYTHING else {}


def _with_alternatives(schema: Schema, pointer: str) -> Schema | None:
    """The same schema with `anyOf` for a `oneOf` whose parts exclude each other; the library sees only some."""
    part = at(schema, pointer)
    if "oneOf" not in part or "anyOf" in part or not are_apart(part["oneOf"], schema):
        return None
    return replaced(schema, pointer, _as_any_of(part))


def _as_any_of(part: Schema) -> dict[str, Any]:
    return {("anyOf" if name == "oneOf" else name): value for name, value in part.items()}


def _says_twice(part: Schema, found: Explanation) -> bool:
    """Whether a `format` that is held stands beside the `pattern` that is not: schema libraries write both for one
    type."""
    return "format" in part and "pattern" in part and found.words.startswith("`pattern`")


def _as_it_came(pointer: str, renamed: Sequence[str]) -> str:
    """The pointer in the schema that was sent; in the parts `renamed`, `oneOf` has become `anyOf`."""
    for part in reversed(renamed):
        if pointer.startswith(f"{part}/anyOf"):
            pointer = f"{part}/oneOf{pointer.removeprefix(f'{part}/anyOf')}"
    return pointer


def _without_problem(schema: Schema, pointer: str, problem: str, problem_of: ProblemOf) -> tuple[Schema, str]:
    """The schema with less at `pointer`, and the keyword that is gone, as the rest of a pointer."""
    part, definitions = at(schema, pointer), definitions_of(schema)
    for less, keyword in _looser(part):
        if problem_of({**definitions, **less}) != problem:
            return replaced(schema, pointer, less), keyword
    return replaced(schema, pointer, {}), ""


KEYWORDS_TO_DROP: Sequence[tuple[str, ...]] = (
    ("format",),
    ("pattern",),
    ("multipleOf",),
    ("minimum", "exclusiveMinimum"),
    ("maximum", "exclusiveMaximum"),
    ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("patternProperties", "additionalProperties"),
    ("$ref",),
    ("required",),
    ("enum",),
    ("const",),
    ("additionalProperties",),
    ("items", "prefixItems"),
    ("anyOf",),
    ("oneOf",),
    ("allOf",),
)
"""What is tried, in this order: what says little first. `patternProperties` goes with `additionalProperties`."""


def _looser(part: Schema) -> Iterator[tuple[Schema, str]]:
    """A part with less and less in it, and the keyword that says where."""
    if "oneOf" in part and "anyOf" not in part:
        yield _as_any_of(part), "/oneOf"
    for keywords in KEYWORDS_TO_DROP:
        present = [keyword for keyword in keywords if keyword in part]
        if present:
            yield {name: value for name, value in part.items() if name not in keywords}, f"/{present[0]}"
    if "type" in part:
        kept = ("type", "$defs", "definitions")
        yield {name: value for name, value in part.items() if name in kept}, ""
