"""Answers keep to their grammar, token by token, whatever the model prefers and whoever runs beside them."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.grammar import (
    Grammar,
    GrammarCompiler,
    Masks,
    choice_body,
    grammar_body,
    json_body,
    literal,
    regex_body,
    schema_problem,
)
from engines.sampler import Sampler
from engines.sequence import FinishReason, GenerationRequest, SamplingParams, new_sequence
from models.errors import GrammarFailed, InvalidParameter
from models.student.folder import Student
from tests.engines.conftest import EOS, VOCAB_SIZE, FakeEngine

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "on": {"type": "boolean"}},
    "required": ["x", "on"],
    "additionalProperties": False,
}
NAMES = st.sampled_from(["a", "bc", "x y"])


def schemas(depth: int = 2) -> st.SearchStrategy[Any]:
    """Schemas whose values are short, so that every answer ends."""
    simple = st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": -5, "maximum": 120},
            {"enum": ["red", "gr\u00fcn", 3, None]},
            {"const": {"k": [1, "two"]}},
            {"type": "string", "maxLength": 4},
            {"type": "string", "pattern": "^[ab]{1,3}$"},
        ]
    )
    if depth == 0:
        return simple
    inner = schemas(depth - 1)
    lists = inner.map(lambda items: {"type": "array", "items": items, "maxItems": 2})
    choices = st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts})
    objects = st.dictionaries(NAMES, inner, max_size=2).map(
        lambda parts: {
            "type": "object",
            "properties": parts,
            "required": sorted(parts),
            "additionalProperties": False,
        }
    )
    return simple | lists | choices | objects


SIMPLE: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "boolean": lambda value, schema: isinstance(value, bool),
    "null": lambda value, schema: value is None,
    "integer": lambda value, schema: isinstance(value, int) and schema["minimum"] <= value <= schema["maximum"],
    "string": lambda value, schema: (
        isinstance(value, str)
        and len(value) <= schema.get("maxLength", 3)
        and ("pattern" not in schema or (value != "" and set(value) <= {"a", "b"}))
    ),
}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """By itself, for the schemas above alone."""
    if "anyOf" in schema:
        return any(is_valid(value, part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kind = schema["type"]
    if kind == "array":
        return isinstance(value, list) and len(value) <= 2 and all(is_valid(one, schema["items"]) for one in value)
    if kind == "object":
        parts = schema["properties"]
        return (
            isinstance(value, dict)
            and value.keys() == parts.keys()
            and all(is_valid(value[name], parts[name]) for name in parts)
        )
    return SIMPLE[kind](value, schema)


@pytest.fixture(scope="module")
def compiler(fake_student: Student) -> GrammarCompiler:
    return GrammarCompiler(fake_student.tokenizer, VOCAB_SIZE)


def grammar_of(compiler: GrammarCompiler, schema: dict[str, Any]) -> Grammar:
    return compiler.compile(f"start: body\nbody: {json_body(schema)}")


def finish(fake: FakeEngine) -> None:
    fake.step_until_idle()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas(), seed=st.integers(0, 1000), temperature=st.sampled_from([0.0, 1.0, 2.0]))
def test_answers_of_a_random_model_are_valid(
    make_engine: Callable[..., FakeEngine],
    compiler: GrammarCompiler,
    schema: dict[str, Any],
    seed: int,
    temperature: float,
) -> None:
    fake = make_engine()
    fake.load_by_hand()
    grammar = grammar_of(compiler, schema)
    fake.submit("a", prompt=(5, seed % 300, 7), temperature=temperature, seed=seed, max_tokens=180, grammar=grammar)
    finish(fake)
    text = fake.text("a")
    # A model that draws at random may go on with legal blanks until its tokens are used up.
    if fake.finish("a").reason is FinishReason.STOP:
        assert is_valid(json.loads(text), schema), text
    else:
        assert fake.finish("a").reason is FinishReason.LENGTH


def test_a_grammar_ends_the_answer_without_an_end_token(
    make_engine: Callable[..., FakeEngine], compiler: GrammarCompiler
) -> None:
    fake = make_engine()
    fake.load_by_hand()
    fake.submit("a", max_tokens=100, grammar=compiler.compile(f"start: {literal('yes')}"))
    finish(fake)
    assert (fake.text("a"), fake.finish("a").reason) == ("yes", FinishReason.STOP)
    assert EOS not in fake.tokens("a")


def test_an_answer_complete_with_its_last_token_has_stopped(
    make_engine: Callable[..., FakeEngine], compiler: GrammarCompiler
) -> None:
    fake = make_engine()
    fake.load_by_hand()
    fake.submit("a", max_tokens=1, grammar=compiler.compile(f"start: {literal('y')}"))
    finish(fake)
    assert (fake.text("a"), fake.finish("a").reason) == ("y", FinishReason.STOP)


def test_too_few_tokens_end_with_length(make_engine: Callable[..., FakeEngine], compiler: GrammarCompiler) -> None:
    fake = make_engine()
    fake.load_by_hand()
    fake.submit("a", max_tokens=2, grammar=grammar_of(compiler, POINT))
    finish(fake)
    assert fake.finish("a").reason is FinishReason.LENGTH
    assert fake.text("a").startswith("{")


def test_tokens_are_the_same_alone_and_in_a_batch(
    make_engine: Callable[..., FakeEngine], compiler: GrammarCompiler
) -> None:
    fake = make_engine(busy_step_tokens=4)
    fake.load_by_hand()
    grammar = grammar_of(compiler, POINT)
    requests = []
    for index in range(12):
        bound = {"grammar": grammar} if index % 3 else {}
        sampling = {"temperature": float(index % 2), "seed": index, "max_tokens": 24, **bound}
        requests.append(fake.request(f"r{index}", (5, 6 + index), ("full", "shallow")[0], **sampling))
        fake.engine.submit(requests[-1])
    finish(fake)
    for request in requests:
        got = fake.tokens(request.id)
        assert got == fake.alone(request), request.id


def test_a_preempted_sequence_goes_on_where_it_was(
    make_engine: Callable[..., FakeEngine], compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile('start: "[" /[a-z]{30,40}/ "]"')
    fake = make_engine(kv_bytes=8 * 4 * 90, max_running=4, prefix_cache_bytes=0)
    fake.load_by_hand()
    requests = [
        fake.request(f"r{i}", (5, 6, 7 + i), "full", max_tokens=60, temperature=1.0, seed=i, grammar=grammar)
        for i in range(4)
    ]
    for request in requests:
        fake.engine.submit(request)
    finish(fake)
    assert fake.engine.status().num_preemptions > 0
    for request in requests:
        assert fake.tokens(request.id) == fake.alone(request)
        assert fake.text(request.id)[-1] == "]"


def test_a_cached_prefix_changes_nothing(make_engine: Callable[..., FakeEngine], compiler: GrammarCompiler) -> None:
    fake = make_engine(prefix_cache_bytes=1 << 20)
    fake.load_by_hand()
    grammar = grammar_of(compiler, POINT)
    prompt = tuple(range(5, 85))
    for id in ("first", "again"):
        fake.submit(id, prompt, temperature=1.0, seed=3, max_tokens=60, grammar=grammar)
        finish(fake)
    assert fake.finish("again").usage.num_cached_tokens == 64
    assert fake.tokens("again") == fake.tokens("first")
    assert is_valid(json.loads(fake.text("again")), POINT)


def test_a_failed_matcher_ends_its_sequence_alone(
    make_engine: Callable[..., FakeEngine], compiler: GrammarCompiler
) -> None:
    fake = make_engine()
    fake.load_by_hand()
    grammar = grammar_of(compiler, {"type": "string", "minLength": 20, "maxLength": 30})
    fake.submit("bad", max_tokens=40, grammar=grammar)
    fake.submit("good", prompt=(8, 9), max_tokens=40, grammar=grammar)
    fake.engine.step()
    sequence = fake.engine._scheduler.find("bad")
    assert sequence is not None
    assert sequence.matcher is not None
    assert not sequence.matcher.library.consume_token(EOS)  # from now on it is in its error state
    finish(fake)
    bad = fake.finish("bad")
    assert bad.reason is FinishReason.ERROR
    assert isinstance(bad.error, GrammarFailed)
    assert fake.finish("good").reason is FinishReason.STOP
    assert 20 <= len(json.loads(fake.text("good"))) <= 30
    assert fake.engine.status().is_healthy


def test_the_largest_legal_logit_wins_and_logprobs_stay_raw(compiler: GrammarCompiler, fake_student: Student) -> None:
    tokens = {fake_student.tokenizer.token_bytes(token): token for token in range(3, VOCAB_SIZE)}
    logits = np.zeros((1, VOCAB_SIZE), np.float32)
    logits[0, tokens[b"z"]], logits[0, tokens[b"b"]], logits[0, tokens[b"a"]] = 9.0, 3.0, 2.0
    grammar = compiler.compile('start: "a" | "b"')
    sampling = SamplingParams(max_tokens=5, temperature=0.0, logprobs=1, grammar=grammar)
    request = GenerationRequest(id="s", prompt_token_ids=(5,), path="full", sampling=sampling)
    sampled = Sampler(fake_student.tokenizer.token_bytes).sample(
        logits, [new_sequence(request, fake_student.tokenizer.token_bytes)]
    )[0]
    assert sampled.token_id == tokens[b"b"]
    assert sampled.logprob is not None
    assert sampled.logprob.alternatives[0].token_id == tokens[b"z"]
    assert sampled.logprob.logprob < -5


@pytest.mark.parametrize(
    ("body", "text", "other"),
    [
        (regex_body("a/b"), "a/b", "a"),
        (regex_body(r"a\/b"), "a/b", "a\\/b"),
        (regex_body("[/]\n"), "/\n", "/n"),
        (regex_body("a\\\nb"), "a\nb", "anb"),
        (regex_body("^ab?$"), "ab", "abb"),
        (choice_body(["a", 'b"\\']), 'b"\\', "b"),
        (grammar_body('start: "a" | "}"'), "}", "b"),
        (grammar_body('%llguidance {}\nstart: "a"'), "a", "b"),
        (grammar_body('root ::= "a" [b-c]'), "ac", "ad"),
    ],
)
def test_forms_are_followed_to_the_letter(
    compiler: GrammarCompiler, fake_student: Student, body: str, text: str, other: str
) -> None:
    grammar = compiler.compile(f"start: body\nbody: {body}")
    for candidate, is_legal in ((text, True), (other, False)):
        matcher = grammar.matcher()
        num_taken = matcher.library.try_consume_tokens(tokens := fake_student.tokenizer.encode(candidate))
        assert (num_taken == len(tokens) and matcher.library.is_accepting()) == is_legal


def test_long_grammar_is_not_translated() -> None:
    alternatives = " | ".join(['"a"'] * 1000)
    with pytest.raises(InvalidParameter, match="send it in Lark's form"):
        grammar_body(f"root ::= {alternatives}")
    assert alternatives in grammar_body(f"start: {alternatives}")


@pytest.mark.parametrize("text", ["", "hello", "root ::= (", "root ::= " + "(" * 3000, "x ::= x"])
def test_text_that_is_no_grammar_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="neither a Lark grammar"):
        grammar_body(text)


@pytest.mark.parametrize("params", [{"min_tokens": 5}, {"ignore_eos": True}])
def test_end_of_a_grammar_is_put_off_while_the_text_can_go_on(
    compiler: GrammarCompiler, fake_student: Student, params: dict[str, Any]
) -> None:
    tokenizer = fake_student.tokenizer
    tokens = {tokenizer.token_bytes(token): token for token in range(3, VOCAB_SIZE)}
    eos = min(tokenizer.eos_token_ids)
    logits = np.zeros((1, VOCAB_SIZE), np.float32)
    logits[0, eos], logits[0, tokens[b"z"]], logits[0, tokens[b"b"]] = 9.0, 8.0, 3.0

    def chosen(source: str, **params: Any) -> int:
        sampling = SamplingParams(max_tokens=9, temperature=0.0, grammar=compiler.compile(source), **params)
        request = GenerationRequest(id="s", prompt_token_ids=(5,), path="full", sampling=sampling)
        sampler = Sampler(tokenizer.token_bytes, tokenizer.eos_token_ids)
        return sampler.sample(logits, [new_sequence(request, tokenizer.token_bytes)])[0].token_id

    assert chosen("start: /[ab]*/") == eos
    assert chosen("start: /[ab]*/", **params) == tokens[b"b"]
    assert chosen('start: ""', **params) == eos, "nothing else is legal"


@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_legal_tokens_beside_the_cheap_head_s_candidates_are_weighed_exactly(
    compiler: GrammarCompiler, fake_student: Student, temperature: float
) -> None:
    """The cheap head takes `a` for the better one of the two that are legal; in truth it is `b`."""
    tokens = {fake_student.tokenizer.token_bytes(token): token for token in range(3, VOCAB_SIZE)}
    exact, cheap = np.zeros((2, VOCAB_SIZE), np.float32), np.zeros((2, VOCAB_SIZE), np.float32)
    exact[:, tokens[b"z"]] = cheap[:, tokens[b"z"]] = 9.0
    exact[:, tokens[b"b"]], cheap[:, tokens[b"b"]] = 5.0, -3.0
    exact[:, tokens[b"a"]], cheap[:, tokens[b"a"]] = 2.0, 3.0
    calls: list[list[int]] = []

    def exact_logits(rows: list[int]) -> Any:
        calls.append(rows)
        return exact[rows]

    grammar = compiler.compile('start: "a" | "b"')
    sequences = []
    biases: tuple[dict[int, float], ...] = ({}, {tokens[b"a"]: 2.0})
    for bias in biases:
        sampling = SamplingParams(
            max_tokens=5, temperature=temperature, seed=1, logprobs=1, grammar=grammar, logit_bias=bias
        )
        request = GenerationRequest(id="s", prompt_token_ids=(5,), path="full", sampling=sampling)
        sequences.append(new_sequence(request, fake_student.tokenizer.token_bytes, "cheap"))
    sampled = Sampler(fake_student.tokenizer.token_bytes).sample(cheap, sequences, exact_logits)
    assert [one.token_id for one in sampled] == [tokens[b"b"], tokens[b"b"]]
    assert calls == [[0, 1]]
    assert all(one.logprob and one.logprob.alternatives[0].token_id == tokens[b"z"] for one in sampled)


def test_a_legal_token_of_the_cheap_head_costs_no_exact_row(compiler: GrammarCompiler, fake_student: Student) -> None:
    tokens = {fake_student.tokenizer.token_bytes(token): token for token in range(3, VOCAB_SIZE)}
    cheap = np.zeros((1, VOCAB_SIZE), np.float32)
    cheap[0, tokens[b"a"]] = 3.0
    sampling = SamplingParams(max_tokens=5, temperature=0.0, grammar=compiler.compile('start: "a" | "b"'))
    request = GenerationRequest(id="s", prompt_token_ids=(5,), path="full", sampling=sampling)
    sequence = new_sequence(request, fake_student.tokenizer.token_bytes, "cheap")
    sampled = Sampler(fake_student.tokenizer.token_bytes).sample(cheap, [sequence])
    assert (sampled[0].token_id, sampled[0].took_exact_row) == (tokens[b"a"], False)


@pytest.mark.parametrize("lift", [0.0, 6.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 250}])
def test_every_legal_draw_has_its_share(
    compiler: GrammarCompiler, fake_student: Student, lift: float, filters: dict[str, Any]
) -> None:
    """Whether most draws are illegal (no lift) or about half of them, and whether tokens are filtered first."""
    tokens = {fake_student.tokenizer.token_bytes(token): token for token in range(3, VOCAB_SIZE)}
    logits = np.zeros((400, VOCAB_SIZE), np.float32)
    logits[:, tokens[b"a"]], logits[:, tokens[b"b"]] = lift + np.log(3.0), lift
    logits[:, tokens[b"c"]] = lift + np.log(4.0)
    grammar = compiler.compile('start: "a" | "b"')
    sequences = [
        new_sequence(
            GenerationRequest(
                id=str(seed),
                prompt_token_ids=(5,),
                path="full",
                sampling=SamplingParams(max_tokens=5, seed=seed, grammar=grammar, **filters),
            ),
            fake_student.tokenizer.token_bytes,
        )
        for seed in range(400)
    ]
    drawn = [one.token_id for one in Sampler(fake_student.tokenizer.token_bytes).sample(logits, sequences)]
    assert set(drawn) == {tokens[b"a"], tokens[b"b"]}
    assert drawn.count(tokens[b"a"]) / 400 == pytest.approx(0.75, abs=0.07)


def test_masks_of_many_are_those_of_each(compiler: GrammarCompiler) -> None:
    grammars = [compiler.compile(f"start: {literal(text)}") for text in ("ab", "cd", "a")]
    matchers = [grammar.matcher() for grammar in grammars]
    together = Masks().legal_tokens(matchers)
    for matcher, legal in zip(matchers, together, strict=True):
        assert legal.tolist() == Masks().legal_tokens([matcher])[0].tolist()
        assert legal.tolist() == [token for token in range(VOCAB_SIZE) if matcher.allows(token)]


def test_the_end_is_legal_only_where_the_grammar_may_stop(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile('start: "a" "b"?').matcher()
    assert not matcher.allows(EOS)
    token = next(token for token in range(VOCAB_SIZE) if matcher.allows(token))
    matcher.advance(token)
    assert matcher.allows(EOS)
    with pytest.raises(GrammarFailed):
        matcher.advance(token)


def test_special_tokens_are_never_legal(compiler: GrammarCompiler, fake_student: Student) -> None:
    legal = Masks().legal_tokens([compiler.compile(r"start: /(.|\n)+/").matcher()])[0].tolist()
    assert len(legal) > 200
    assert not [token for token in legal if fake_student.tokenizer.is_special(token)]


def test_logits_wider_than_the_vocabulary_have_no_legal_tokens_there(fake_student: Student) -> None:
    wide = GrammarCompiler(fake_student.tokenizer, VOCAB_SIZE + 70)
    legal = Masks().legal_tokens([wide.compile(r"start: /(.|\n)+/").matcher()])[0]
    assert legal.max() < VOCAB_SIZE


def test_a_grammar_of_another_vocabulary_is_refused(
    make_engine: Callable[..., FakeEngine], fake_student: Student
) -> None:
    wide = GrammarCompiler(fake_student.tokenizer, VOCAB_SIZE + 70)
    fake = make_engine()
    fake.load_by_hand()
    with pytest.raises(InvalidParameter, match="another student"):
        fake.submit("a", grammar=wide.compile('start: "a"'))


@pytest.mark.parametrize("source", ['start: "a" nobody', 'start: body\nbody: %json {"$ref": "#"}'])
def test_a_grammar_that_cannot_be_is_refused(compiler: GrammarCompiler, source: str) -> None:
    with pytest.raises(InvalidParameter):
        compiler.compile(source)


def test_grammars_of_one_text_are_equal(compiler: GrammarCompiler) -> None:
    one, same, other = (compiler.compile(f"start: {literal(text)}") for text in ("a", "a", "b"))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "minimum"),
        ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "oneOf"),
    ],
)
def test_schema_problems_are_named(schema: dict[str, Any], problem: str) -> None:
    found = schema_problem(schema)
    assert found is not None
    assert problem in found
    assert schema_problem(POINT) is None


def test_schema_that_the_library_panics_at_is_a_problem(compiler: GrammarCompiler) -> None:
    schema = {"minimum": "é" * 80}
    assert schema_problem(schema) == "the grammar library fails on it; write it in another way"
    with pytest.raises(InvalidParameter):
        compiler.compile(f"start: {json_body(schema)}")
