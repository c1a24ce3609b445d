"""The default student served by a real vLLM: every path answers what the torch reference says, alone and mixed."""

from collections.abc import Sequence

import numpy as np
import pytest

from engines.build import build_engine
from engines.config import EngineConfig
from engines.grammar import GrammarCompiler, json_body
from engines.sequence import FinishReason
from tests.engines.conftest import Listener
from tests.engines.vllm.conftest import WARNINGS, Served

pytestmark = [pytest.mark.vllm, WARNINGS, pytest.mark.timeout(1800)]

PATHS = ("full", "wide", "medium", "narrow")
NUM_PROMPTS = 30
NUM_TOKENS = 12
TIE = 2e-3
"""Logits closer than this are a tie: sums in another order decide them."""

SENTENCES = (
    "The capital of France is",
    "Once upon a time there was a fisherman who",
    "A contract is void when",
    "If a train travels 60 miles in 1.5 hours, its speed is",
    "def fibonacci(n):\n    if n < 2:",
    "Water boils at",
    "My favourite poem begins with the words",
    "The three branches of government are",
    "To make bread you need flour,",
    "Question: what is 17 times 3?\nAnswer:",
)


@pytest.fixture(scope="module")
def prompts(served_default: Served) -> list[list[int]]:
    """Thirty, of several lengths; some begin alike, so that prefixes are shared."""
    encode = served_default.student.tokenizer.encode
    shared = "You are a careful assistant who answers in full sentences and never guesses. " * 8
    texts = [
        *SENTENCES,
        *(f"{shared}{text}" for text in SENTENCES),
        *(f"{one} {other}" for one, other in zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True)),
    ]
    assert len(texts) == NUM_PROMPTS
    return [encode(text) for text in texts]


def assert_is_greedy(served: Served, path: str, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Every token is the reference's likeliest after those before it, or ties with it."""
    logits = served.reference.logits(path, [*prompt, *answer])[len(prompt) - 1 : -1]
    behind = logits.max(axis=1) - logits[np.arange(len(answer)), list(answer)]
    assert behind.max() <= TIE, f"path {path}: {behind} behind the likeliest"


@pytest.fixture(scope="module")
def mixed(served_default: Served, prompts: list[list[int]]) -> dict[tuple[str, int], list[int]]:
    """The answers of all paths to all prompts, all in flight at once: 120 sequences in steps of at most 32."""
    ids = {
        (path, number): served_default.submit(
            path, prompt, max_tokens=NUM_TOKENS, ignore_eos=True, needs_exact_head=True
        )
        for number, prompt in enumerate(prompts)
        for path in PATHS
    }
    return {key: served_default.tokens(id) for key, id in ids.items()}


@pytest.mark.parametrize("path", PATHS)
def test_mixed_with_other_paths_each_answers_as_the_reference(
    served_default: Served, prompts: list[list[int]], mixed: dict[tuple[str, int], list[int]], path: str
) -> None:
    for number, prompt in enumerate(prompts):
        assert len(mixed[path, number]) == NUM_TOKENS
        assert_is_greedy(served_default, path, prompt, mixed[path, number])


@pytest.mark.parametrize("path", PATHS)
def test_alone_each_answers_as_mixed_or_ties(
    served_default: Served, prompts: list[list[int]], mixed: dict[tuple[str, int], list[int]], path: str
) -> None:
    for number, prompt in enumerate(prompts[:10]):
        answer = served_default.answer(
            path, prompt, max_tokens=NUM_TOKENS, ignore_eos=True, needs_exact_head=True, cache_salt="alone"
        )
        if answer != mixed[path, number]:
            assert_is_greedy(served_default, path, prompt, answer)


def test_answers_are_those_of_the_onnx_engine_in_fp32(
    served_default: Served, prompts: list[list[int]], mixed: dict[tuple[str, int], list[int]]
) -> None:
    config = EngineConfig(precision="fp32", head="exact", max_context_tokens=512, native_folder=None)
    listener = Listener()
    engine = build_engine(served_default.student, config)
    engine.start(listener.publish)
    try:
        onnx = Served(
            student=served_default.student, reference=served_default.reference, engine=engine, listener=listener
        )
        ids = {
            (path, number): onnx.submit(path, prompts[number], max_tokens=NUM_TOKENS, ignore_eos=True)
            for path, number in mixed
        }
        answers = {key: onnx.tokens(id) for key, id in ids.items()}
    finally:
        engine.stop(0)
    for (path, number), answer in answers.items():
        if answer != mixed[path, number]:  # a tie, and each took another side of it
            same = next(place for place in range(NUM_TOKENS) if answer[place] != mixed[path, number][place])
            assert_is_greedy(served_default, path, prompts[number], answer[: same + 1])
    assert sum(answers[key] == mixed[key] for key in answers) >= 0.95 * len(answers)


def test_steps_ran_each_block_of_neurons_for_the_rows_that_have_it(
    served_default: Served, mixed: dict[tuple[str, int], list[int]]
) -> None:
    steps = served_default.steps()
    shared = [step for step in steps if len(set(step["counts"])) == 1 + 3]
    assert shared, "no step had rows of every width"
    assert all(step["sorted"] for step in shared)
    assert {step["num_layers"] for step in steps} == {30}


def test_prefixes_are_shared_within_a_path_and_never_across(served_default: Served, prompts: list[list[int]]) -> None:
    long = served_default.student.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 30)
    assert len(long) > 256
    ask = {"max_tokens": 4, "ignore_eos": True, "needs_exact_head": True, "cache_salt": "prefixes"}
    cached = []
    for path in ("full", "narrow", "narrow", "full"):
        id = served_default.submit(path, long, **ask)
        cached.append(served_default.finish(id).usage.num_cached_tokens)
        assert_is_greedy(served_default, path, long, served_default.tokens(id))
    assert cached[:2] == [0, 0]
    assert cached[2] > 128
    assert cached[3] > 128
    other = served_default.submit("full", long, **{**ask, "cache_salt": "another tenant"})
    assert served_default.finish(other).usage.num_cached_tokens == 0


def test_logprobs_are_the_raw_distribution(served_default: Served, prompts: list[list[int]]) -> None:
    prompt = prompts[3]
    id = served_default.submit(
        "medium", prompt, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=2, temperature=0.7, seed=3
    )
    answer = served_default.tokens(id)
    scores = [one for event in served_default.listener.events[id] for one in event.logprobs]
    ids = [*prompt, *answer]
    logits = served_default.reference.logits("medium", ids).astype(np.float64)
    logprobs = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    assert [one.token_id for one in scores] == ids[1:]
    for position, one in enumerate(scores):
        assert one.logprob == pytest.approx(logprobs[position, one.token_id], abs=5e-3)
        likeliest = np.sort(logprobs[position])[::-1]
        found = [other.logprob for other in one.alternatives]
        assert found == pytest.approx(likeliest[: len(found)].tolist(), abs=5e-3)
    assert [len(one.alternatives) for one in scores] == [2] * (len(prompt) - 1) + [3] * 4


def test_logprobs_change_no_choice_of_the_cheap_head(served_default: Served, prompts: list[list[int]]) -> None:
    plain = served_default.answer("full", prompts[1], ignore_eos=True)
    id = served_default.submit("full", prompts[1], ignore_eos=True, logprobs=0)
    assert served_default.tokens(id) == plain
    logits = served_default.reference.logits("full", [*prompts[1], *plain])[len(prompts[1]) - 1 : -1]
    scores = [one for event in served_default.listener.events[id] for one in event.logprobs]
    totals = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    expected = logits[np.arange(len(plain)), plain] - totals
    assert [one.logprob for one in scores] == pytest.approx(expected.tolist(), abs=5e-3)


def test_the_cheap_head_agrees_with_the_exact_one(
    served_default: Served, prompts: list[list[int]], mixed: dict[tuple[str, int], list[int]]
) -> None:
    ids = {
        (path, number): served_default.submit(path, prompt, max_tokens=NUM_TOKENS, ignore_eos=True)
        for number, prompt in enumerate(prompts)
        for path in ("full", "narrow")
    }
    answers = {key: served_default.tokens(id) for key, id in ids.items()}
    assert sum(answers[key] == mixed[key] for key in answers) >= 0.9 * len(answers)
    rows = served_default.engine.status().stage_rows
    assert rows["cheap_head"] > 0


def test_seeds_draw_the_same_alone_and_beside_others(served_default: Served, prompts: list[list[int]]) -> None:
    ask = {"temperature": 1.0, "seed": 11, "max_tokens": 8, "ignore_eos": True, "needs_exact_head": True}
    alone = served_default.answer("narrow", prompts[0], **ask)
    ids = [served_default.submit("narrow", prompts[0], **ask)]
    ids += [served_default.submit(path, prompts[2], **ask) for path in PATHS]
    others = served_default.submit("narrow", prompts[0], **{**ask, "seed": 12})
    assert served_default.tokens(ids[0]) == alone
    assert served_default.tokens(others) != alone


def test_ends_are_those_of_the_contract(served_default: Served, prompts: list[list[int]]) -> None:
    tokenizer = served_default.student.tokenizer
    answer = served_default.answer("full", prompts[0], ignore_eos=True, needs_exact_head=True)
    stop = tokenizer.decode(answer[3:5])
    id = served_default.submit("full", prompts[0], stop=(stop,), needs_exact_head=True)
    assert served_default.finish(id).stop == stop
    assert served_default.listener.text(id) == tokenizer.decode(answer).partition(stop)[0]
    id = served_default.submit("full", prompts[0], stop_token_ids=frozenset({answer[2]}), needs_exact_head=True)
    assert served_default.tokens(id) == answer[:2]
    assert served_default.finish(id).reason is FinishReason.STOP
    id = served_default.submit("full", prompts[0], max_tokens=0)
    assert served_default.tokens(id) == []
    assert served_default.finish(id).reason is FinishReason.LENGTH


def test_biases_and_penalties_count(served_default: Served, prompts: list[list[int]]) -> None:
    (dog,) = served_default.student.tokenizer.encode(" dog")
    assert served_default.answer("wide", prompts[0], logit_bias={dog: 100.0}, max_tokens=3) == [dog] * 3
    ask = {"logit_bias": {dog: 12.0}, "presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 2.0}
    assert served_default.answer("wide", prompts[0], **ask, max_tokens=6).count(dog) < 6


def test_structured_output_follows_its_grammar(served_default: Served, prompts: list[list[int]]) -> None:
    tokenizer, size = served_default.student.tokenizer, served_default.student.manifest.architecture.vocab_size
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "size": {"enum": [1, 2]}},
        "required": ["city", "size"],
        "additionalProperties": False,
    }
    grammar = GrammarCompiler(tokenizer, size).compile(f"start: {json_body(schema)}")
    ids = [served_default.submit(path, prompts[0], grammar=grammar, max_tokens=64) for path in PATHS]
    import json

    for id in ids:
        assert served_default.finish(id).reason is FinishReason.STOP
        assert json.loads(served_default.listener.text(id))["city"] in ("Paris", "Rome")


def test_an_abort_frees_what_it_held(served_default: Served, prompts: list[list[int]]) -> None:
    ids = [served_default.submit(path, prompts[4], max_tokens=300, ignore_eos=True) for path in PATHS]
    for id in ids:
        served_default.engine.abort(id)
    assert {served_default.finish(id).reason for id in ids} == {FinishReason.ABORT}
    served_default.answer("full", prompts[5], max_tokens=2, ignore_eos=True)
    assert served_default.engine.audit(60) == []
    assert served_default.engine.status().num_waiting == 0
