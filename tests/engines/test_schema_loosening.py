"""What the grammar library cannot follow is left out at its place, and said in words of our own."""

import json
from typing import Any

import msgspec
import pytest

from engines.grammar import GrammarCompiler, json_body, schema_problem
from engines.grammar_trial import Trial, try_out
from engines.grammar_words import UNKNOWN, explain
from engines.schema_loosening import (
    MAX_CALLS,
    MAX_LOOSENED,
    Followed,
    Loosens,
    Refusal,
    Schema,
    SchemaRule,
    follow,
    whole,
)
from models.errors import InvalidParameter

TEXT = {"type": "string"}
LOOK_AHEAD = {"type": "string", "pattern": "^(?=a)b$"}


@pytest.fixture(scope="module")
def compiler(fake_student: Any) -> GrammarCompiler:
    return GrammarCompiler(fake_student.tokenizer, fake_student.tokenizer.vocab_size)


def rule_of(schema: dict[str, Any], loosens: Loosens = Loosens.ANYTHING, name: str = "r") -> SchemaRule:
    return SchemaRule.of(schema, name=name, where="f", loosens=loosens)


def followed(schema: dict[str, Any], loosens: Loosens = Loosens.ANYTHING) -> Followed:
    found = follow(rule_of(schema, loosens), schema_problem)
    assert isinstance(found, Followed)
    return found


UNSUPPORTED: list[tuple[dict[str, Any], str, str]] = [
    (LOOK_AHEAD, "/pattern", "look-around"),
    ({"pattern": "(?<!a)b"}, "/pattern", "look-around"),
    ({"pattern": "\\bfoo"}, "/pattern", "word boundaries"),
    ({"pattern": "(a)\\1"}, "/pattern", "back-references"),
    ({"pattern": "[z-a]"}, "/pattern", "cannot be followed"),
    ({"pattern": "\\p{Nope}"}, "/pattern", "cannot be followed"),
    ({"type": "string", "format": "nope"}, "/format", "format"),
    ({"type": "integer", "minimum": 1e19}, "/minimum", "bounds"),
    ({"type": "number", "exclusiveMinimum": 5e-324}, "/exclusiveMinimum", "precise"),
    ({"type": "string", "maxLength": 2**53}, "/maxLength", "too large"),
    ({"type": "number", "multipleOf": 1e-300}, "/multipleOf", "multipleOf"),
    ({"oneOf": [TEXT, {"type": "string", "maxLength": 3}]}, "/oneOf", "oneOf"),
    ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, "/minProperties", "minProperties"),
    ({"patternProperties": {"^a": TEXT, "^ab": {}}}, "/patternProperties", "two of the patterns"),
    ({"patternProperties": {"^(?=a)": {}}, "additionalProperties": False}, "/patternProperties", "look-around"),
    ({"$ref": "https://e.org/s"}, "/$ref", "inside the schema"),
]
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "integer", "minimum": 5, "maximum": 3}, "/minimum", "greater"),
    ({"type": "strng"}, "/type", "`type`"),
    ({"$ref": "#/$defs/gone"}, "/$ref", "nowhere"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "/required", "`required`"),
    ({"type": "string", "pattern": "^z$", "format": "date"}, "/format", "no value"),
]


@pytest.mark.parametrize(("schema", "place", "word"), [*UNSUPPORTED, *MISTAKES])
def test_the_innermost_place_is_loosened(schema: dict[str, Any], place: str, word: str) -> None:
    inside = {"type": "object", "properties": {"x": TEXT, "y/z": schema}, "required": ["y/z"]}
    found = followed(inside)
    (loosened,) = found.loosened
    if word not in ("nowhere", "`required`", "no value", "greater"):  # seen by the library where the object stands
        assert loosened.pointer in (f"/properties/y~1z{place}", "/properties/y~1z")
    assert found.rule.schema["properties"]["x"] == TEXT
    assert schema_problem(found.rule.schema) is None


@pytest.mark.parametrize(("schema", "place", "word"), UNSUPPORTED)
@pytest.mark.parametrize("loosens", list(Loosens))
def test_what_is_not_supported_is_refused_or_left_out(
    schema: dict[str, Any], place: str, word: str, loosens: Loosens
) -> None:
    found = follow(rule_of({"type": "object", "properties": {"y": schema}}, loosens), schema_problem)
    if loosens is Loosens.NOTHING:
        assert isinstance(found, Refusal)
        assert word in found.problem
    else:
        assert isinstance(found, Followed)
        assert [one.pointer for one in found.loosened] == [f"/properties/y{place}"]
        assert word in found.loosened[0].problem


@pytest.mark.parametrize(("schema", "place", "word"), MISTAKES)
def test_mistakes_are_left_out_only_where_anything_may_be(schema: dict[str, Any], place: str, word: str) -> None:
    for loosens in (Loosens.NOTHING, Loosens.UNSUPPORTED):
        refusal = follow(rule_of(schema, loosens), schema_problem)
        assert isinstance(refusal, Refusal)
        assert word in refusal.problem
    assert len(followed(schema).loosened) == 1


EMAIL = "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$"
"""As zod writes `z.email()`, beside the format."""


@pytest.mark.parametrize("loosens", list(Loosens))
def test_a_format_stands_for_the_pattern_beside_it(loosens: Loosens) -> None:
    mail = {"type": "string", "format": "email", "pattern": EMAIL}
    found = followed({"type": "object", "properties": {"m": mail}}, loosens)
    assert [one.pointer for one in found.loosened] == ["/properties/m/pattern"]
    assert found.rule.schema["properties"]["m"] == {"type": "string", "format": "email"}
    longest = {**mail, "maxLength": 2**53}
    refusal = follow(rule_of({"type": "object", "properties": {"m": longest}}, Loosens.NOTHING), schema_problem)
    assert isinstance(refusal, Refusal), "what else is promised is not left out"


def test_what_the_library_follows_is_as_it_came() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^2", "format": "date"}}}
    assert followed(schema) == Followed(rule=rule_of(schema))


def test_parts_that_overlap_are_alternatives() -> None:
    other, null = {"type": "string", "pattern": "^c"}, {"type": "null"}
    parts = {"oneOf": [{"type": "string", "pattern": "^a(?=b)"}, other, null]}
    found = followed({"type": "object", "properties": {"x": parts}})
    assert [one.pointer for one in found.loosened] == ["/properties/x/oneOf", "/properties/x/oneOf/0/pattern"]
    assert found.rule.schema["properties"]["x"] == {"anyOf": [TEXT, other, null]}


def tagged(name: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"type": "string", "const": name}, **more}, "required": ["kind"]}


KINDS = {"$defs": {"Cat": tagged("cat", n={"type": "integer"}), "Dog": tagged("dog", s=TEXT)}}
APART: list[list[dict[str, Any]]] = [
    [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
    [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}, {"type": "null"}, TEXT],
    [{"$ref": "#/$defs/Cat"}, tagged("bird")],
]
TOGETHER: list[list[dict[str, Any]]] = [
    [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Cat"}],
    [{"$ref": "#/$defs/Cat"}, {"type": "object", "properties": {"kind": {"const": "dog"}}}],
    [{"$ref": "#/$defs/Cat"}, {"properties": {"kind": {"const": "dog"}}, "required": ["kind"]}],
    [{"type": "integer"}, {"type": "number"}],
    [{"$ref": "#/$defs/Dog"}, {}],
]


@pytest.mark.parametrize("parts", APART)
def test_parts_that_exclude_each_other_are_followed_to_the_letter(parts: list[dict[str, Any]]) -> None:
    found = followed({"type": "object", "properties": {"x": {"oneOf": parts}}, **KINDS}, Loosens.NOTHING)
    assert found.loosened == ()
    assert schema_problem(found.rule.schema) is None


@pytest.mark.parametrize("parts", TOGETHER)
def test_parts_that_one_value_may_have_are_not(parts: list[dict[str, Any]]) -> None:
    schema = {"type": "object", "properties": {"x": {"oneOf": parts}}, **KINDS}
    assert isinstance(follow(rule_of(schema, Loosens.NOTHING), schema_problem), Refusal)
    assert [one.pointer for one in followed(schema).loosened] == ["/properties/x/oneOf"]


def test_a_trial_compiles_what_only_reads_otherwise(compiler: GrammarCompiler) -> None:
    rule = rule_of({"oneOf": APART[0], **KINDS}, Loosens.NOTHING)
    outcome = try_out(compiler, Trial(rules="start: r", schemas=[rule], time_limit_s=60.0))
    assert (outcome.problem, outcome.loosened) == (None, [])
    assert ["anyOf" in one.schema for one in outcome.changed] == [True]


def test_very_many_places_are_one() -> None:
    schema = {"type": "object", "properties": {f"p{i}": LOOK_AHEAD for i in range(MAX_LOOSENED + 1)}}
    found = followed(schema)
    assert found.rule.schema == {"type": "object"}
    assert [one.pointer for one in found.loosened] == [""]
    few = {"type": "object", "properties": {f"p{i}": LOOK_AHEAD for i in range(MAX_LOOSENED)}}
    assert len(followed(few).loosened) == MAX_LOOSENED


def test_the_whole_of_an_object_is_any_object() -> None:
    assert whole(rule_of({"type": "object", "properties": {}}), "why").rule.schema == {"type": "object"}
    assert whole(rule_of({"$ref": "#/$defs/D"}), "why").rule.schema == {"type": "object"}
    assert whole(rule_of(TEXT, Loosens.UNSUPPORTED), "why").rule.schema == {}


def test_schemas_that_hold_too_much_together_are_loosened(compiler: GrammarCompiler) -> None:
    wide = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(100)}}
    rules = [rule_of(wide, name="a"), rule_of({"const": 1}, Loosens.NOTHING, name="b")]
    trial = Trial(rules="start: a | b", schemas=rules, time_limit_s=60.0)
    size = try_out(compiler, trial).num_bytes
    outcome = try_out(compiler, msgspec.structs.replace(trial, max_bytes=size // 2))
    assert [one.name for one in outcome.changed] == ["a"]
    assert [one.pointer for one in outcome.loosened] == [""]
    assert outcome.num_bytes < size
    strict = Trial(rules="start: a", schemas=[rule_of(wide, Loosens.NOTHING, "a")], time_limit_s=60.0, max_bytes=9)
    assert try_out(compiler, strict).num_bytes > 9, "the server says that it is too large"


def test_arguments_stay_an_object_whatever_goes() -> None:
    found = followed({"$ref": "#/$defs/gone"})
    assert found.rule.schema == {"type": "object"}


def test_numbers_of_any_size_travel() -> None:
    schema = {"const": 10**400, "type": "integer"}
    assert rule_of(schema).schema == schema


SECRETS = [schema for schema, _, _ in (*UNSUPPORTED, *MISTAKES)] + [
    {"const": "\ud800"},
    {"type": "array", "uniqueItems": True},
    {"minimum": "é" * 80},
    {"type": "number", "multipleOf": 0},
    {"type": "array", "maxItems": 2**64},
    {"enum": []},
    {"$id": ":::", "type": "object"},
]


@pytest.mark.parametrize("schema", SECRETS, ids=str)
def test_the_library_s_text_is_nobody_s_answer(schema: dict[str, Any], compiler: GrammarCompiler) -> None:
    problem = schema_problem(schema)
    assert problem is not None
    found = explain(problem).words
    assert found != problem or problem == UNKNOWN
    with pytest.raises(InvalidParameter) as caught:
        compiler.compile(f"start: r\nr: {json_body(schema)}")
    for said in (found, caught.value.message):
        assert not any(mark in said for mark in ("regex", "Some(", "parse", "Unimplemented", "Unsatisfiable", "at 2("))
        assert len(said) < 150


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        ("at 3(7): failed to compile JSON schema: Unsatisfiable schema: x", "no value"),
        ('at 2(8): unknown name: "nobody"', "write it in another way"),
        ("initial lexer configuration (grammar) too big (limit for this grammar: 1000000)", "too large"),
        ("something new", "write it in another way"),
    ],
)
def test_every_problem_has_words(problem: str, word: str) -> None:
    assert word in explain(problem).words


def test_a_trial_says_what_it_changed(compiler: GrammarCompiler) -> None:
    fine, odd = rule_of({"const": 1}, name="a"), rule_of({"type": "object", "properties": {"x": LOOK_AHEAD}}, name="b")
    outcome = try_out(compiler, Trial(rules="start: a b", schemas=[fine, odd], time_limit_s=60.0))
    assert outcome.problem is None
    assert [one.name for one in outcome.changed] == ["b"]
    assert outcome.changed[0].schema == {"type": "object", "properties": {"x": TEXT}}
    assert [(one.where, one.pointer) for one in outcome.loosened] == [("f", "/properties/x/pattern")]


def test_a_schema_that_only_compiling_refuses_is_loosened_as_a_whole(compiler: GrammarCompiler) -> None:
    endless = {"$ref": "#"}
    assert schema_problem(endless) is None
    rules = [rule_of({"const": 1}, name="a"), rule_of(endless, name="b")]
    outcome = try_out(compiler, Trial(rules="start: a b", schemas=rules, time_limit_s=60.0))
    assert outcome.problem is None
    assert [(one.where, one.pointer) for one in outcome.loosened] == [("f", "")]
    strict = [rules[0], rule_of(endless, Loosens.NOTHING, "b")]
    assert try_out(compiler, Trial(rules="start: a b", schemas=strict, time_limit_s=60.0)).problem is not None


@pytest.mark.parametrize("num", [20, 3 * MAX_CALLS])
def test_the_library_is_asked_no_more_than_a_number_of_times(num: int) -> None:
    """A schema of many parts, each of which has to be asked about to find the one that is at fault."""
    schema = {"type": "object", "properties": {**{f"p{i}": {} for i in range(num)}, "last": LOOK_AHEAD}}
    calls = list[Schema]()

    def asked(part: Schema) -> str | None:
        calls.append(part)
        return schema_problem(LOOK_AHEAD) if "(?=" in json.dumps(part) else None

    found = follow(rule_of(schema), asked)
    assert isinstance(found, Followed)
    assert len(calls) <= MAX_CALLS
    assert [place.pointer for place in found.loosened] == ["/properties/last/pattern" if num == 20 else ""]
    strict = follow(rule_of(schema, Loosens.NOTHING), asked)
    assert strict == Refusal("/properties/last" if num == 20 else "", found.loosened[0].problem)
