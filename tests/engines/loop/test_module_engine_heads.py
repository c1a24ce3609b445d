"""An engine with a cheap head: who uses which, what it changes, what it costs, and what happens when a pass fails."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from engines.config import EngineConfig
from engines.loop.module_engine import ModuleEngine
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from engines.sequence import FinishReason, GenerationRequest, TokenLogprob
from models.errors import StepFailed
from models.student.folder import Student
from models.student.manifest import HeadKind
from tests.engines.cheap_heads import with_cheap_head
from tests.engines.conftest import FakeEngine, FakeRunner, Listener
from tests.engines.loop.test_module_engine import random_prompt

PROMPT = list(range(5, 40))


def logprobs(listener: Listener, id: str) -> list[TokenLogprob]:
    return [one for event in listener.events[id] for one in event.logprobs]


def run_alone(fake: FakeEngine, **sampling: Any) -> list[int]:
    fake.submit("alone", PROMPT, **{"max_tokens": 60, "ignore_eos": True, **sampling})
    fake.step_until_idle()
    return fake.tokens("alone")


@pytest.fixture
def cheap(make_engine: Any) -> Any:
    fake = make_engine(head="cheap")
    fake.load_by_hand()
    return fake


@pytest.fixture
def exact(make_engine: Any) -> Any:
    fake = make_engine()
    fake.load_by_hand()
    return fake


def test_engine_says_which_head_it_and_its_sequences_use(cheap: Any, exact: Any) -> None:
    assert (cheap.engine.status().head, exact.engine.status().head) == ("cheap", "exact")
    cheap.submit("plain")
    cheap.submit("full", needs_exact_head=True)
    cheap.submit("scored", prompt_logprobs=0)
    cheap.engine.step()
    heads = {one.id: one.head for one in cheap.engine._sequence_states()}
    assert heads == {"plain": "cheap", "full": "exact", "scored": "exact"}


def test_request_that_needs_the_exact_head_gets_the_answer_of_a_student_without_a_cheap_one(
    cheap: Any, exact: Any
) -> None:
    sampled = {"temperature": 1.0, "seed": 3, "logprobs": 2}
    expected = run_alone(exact, **sampled)
    cheap.submit("beside", PROMPT, max_tokens=60, ignore_eos=True)
    assert run_alone(cheap, needs_exact_head=True, **sampled) == expected
    assert logprobs(cheap, "alone") == logprobs(exact, "alone")
    assert cheap.tokens("beside") != exact.alone(FakeEngine.request("x", PROMPT, "full", max_tokens=60))


def test_scored_prompt_gets_the_answer_of_the_exact_head(cheap: Any, exact: Any) -> None:
    assert run_alone(cheap, prompt_logprobs=1) == run_alone(exact, prompt_logprobs=1)
    assert logprobs(cheap, "alone") == logprobs(exact, "alone")
    assert cheap.engine.status().stage_rows.get("cheap_head") is None


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.9, "seed": 4}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}]
)
def test_logprobs_change_no_token_and_are_the_exact_heads(
    make_engine: Any, cheap: Any, exact: Any, sampling: dict[str, Any]
) -> None:
    plain = run_alone(cheap, **sampling)
    told = make_engine(head="cheap")
    told.load_by_hand()
    assert run_alone(told, logprobs=2, **sampling) == plain
    assert plain != run_alone(exact, **sampling)
    # The same text, token by token under the exact head: its log-probability as that head scores the prompt.
    exact.submit("scored", [*PROMPT, *plain], max_tokens=0, prompt_logprobs=2)
    exact.step_until_idle()
    expected = logprobs(exact, "scored")[len(PROMPT) - 1 :]
    found = logprobs(told, "alone")
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-4)
    for one, other in zip(found, expected, strict=True):
        assert [a.token_id for a in one.alternatives] == [a.token_id for a in other.alternatives]


def test_engine_counts_the_rows_of_each_head(cheap: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "ignore_eos": True}
    cheap.submit("plain", **options)
    cheap.submit("told", logprobs=0, **options)
    cheap.submit("full", needs_exact_head=True, **options)
    cheap.submit("scored", [5, 6, 7], prompt_logprobs=0, max_tokens=0)
    cheap.step_until_idle()
    status = cheap.engine.status()
    assert status.num_steps == 4
    assert status.stage_rows["cheap_head"] == 4 + 4
    # The told rows again, the full ones, two positions of the scored prompt and its last one.
    assert status.stage_rows["head"] == 4 + 4 + 2 + 1
    assert status.stage_runs["cheap_head"] == status.stage_runs["head"] == 4


def test_engine_runs_the_exact_head_once_in_a_step_and_only_for_who_needs_it(cheap: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 5, "ignore_eos": True}
    cheap.submit("plain", **options)
    cheap.submit("told", logprobs=0, **options)
    cheap.submit("biased", logit_bias={300: 1.0}, **options)
    cheap.step_until_idle()
    assert cheap.runner.exact_calls == [[1, 2]] * 5
    assert [cheap.finish(id).usage.num_exact_rows for id in ("plain", "told", "biased")] == [0, 5, 5]


def test_failed_pass_of_the_exact_head_ends_its_step_and_nothing_else(make_engine: Any) -> None:
    fake = make_engine(head="cheap", max_running=2)
    fake.load_by_hand()
    for id in ("told", "plain", "waiting"):
        fake.submit(id, max_tokens=6, ignore_eos=True, **({"logprobs": 1} if id == "told" else {}))
    fake.engine.step()
    fake.runner.fail_exact = 1
    fake.engine.step()
    for id in ("told", "plain"):
        finish = fake.finish(id)
        assert finish.reason is FinishReason.ERROR
        assert isinstance(finish.error, StepFailed)
        assert len(fake.tokens(id)) == 1
    fake.step_until_idle()
    assert fake.finish("waiting").reason is FinishReason.LENGTH
    assert fake.engine.status().is_healthy
    assert fake.engine.status().num_failed_steps == 1


def test_preempted_sequence_keeps_its_head(make_engine: Any) -> None:
    fake = make_engine(head="cheap", kv_bytes=4608, prefix_cache_bytes=0)
    fake.load_by_hand()
    requests = [
        FakeEngine.request(str(n), PROMPT, "full", max_tokens=60, ignore_eos=True, needs_exact_head=bool(n % 2))
        for n in range(4)
    ]
    for request in requests:
        fake.engine.submit(request)
    fake.step_until_idle()
    assert fake.engine.status().num_preemptions > 0
    assert fake.tokens("0") == fake.tokens("2") == fake.alone(requests[0])
    assert fake.tokens("1") == fake.tokens("3") == fake.alone(requests[1]) != fake.tokens("0")


def test_prefix_cache_serves_both_heads(cheap: Any) -> None:
    cheap.submit("first", PROMPT, max_tokens=2)
    cheap.step_until_idle()
    request = FakeEngine.request("second", PROMPT, "full", max_tokens=20, needs_exact_head=True)
    cheap.engine.submit(request)
    cheap.step_until_idle()
    assert cheap.finish("second").usage.num_cached_tokens > 0
    assert cheap.tokens("second") == cheap.alone(request)


def run_real(student: Student, requests: list[GenerationRequest], *, is_cheap: bool) -> Listener:
    limits = RunnerLimits(num_slots=8, capacity_tokens=128, num_threads=1)
    plan = PrecisionPlan(many="w8a8", cheap_head=is_cheap)
    runner, config = OnnxRunner(student, plan, limits), EngineConfig(max_running=8)
    engine = ModuleEngine(student, runner, config, capacity_tokens=128, variant="w8a8", head=plan.head)
    listener = Listener()
    engine._publish = listener.publish
    engine._loading.run()
    for request in requests:
        engine.submit(request)
    while engine.step():
        pass
    return listener


def test_real_student_answers_in_a_mixed_batch_as_alone(tiny_student: Any, tmp_path: Path) -> None:
    student = with_cheap_head(tiny_student("llama", ("w8a8",)).student, tmp_path / "student")
    rng = random.Random(2)
    ways: list[dict[str, Any]] = [{}, {"logprobs": 2}, {"logit_bias": {200: 3.0}}, {"temperature": 1.0, "seed": 4}]
    requests = [
        FakeEngine.request(
            f"s{n}",
            [2 + token % 300 for token in random_prompt(rng)],
            rng.choice(("knowledge", "reasoning", "full")),
            max_tokens=10,
            ignore_eos=True,
            needs_exact_head=n % 3 == 0,
            **rng.choice(ways),
        )
        for n in range(8)
    ]
    together = run_real(student, requests, is_cheap=True)
    for request in requests:
        alone = run_real(student, [request], is_cheap=True)
        assert alone.tokens(request.id) == together.tokens(request.id)
        assert logprobs(alone, request.id) == logprobs(together, request.id)
    full = run_real(student, requests, is_cheap=False)
    exact = [r.id for r in requests if full.tokens(r.id) == together.tokens(r.id)]
    assert {r.id for r in requests if r.needs_exact_head} <= set(exact) != {r.id for r in requests}


def heads_of(runner: FakeRunner) -> set[HeadKind]:
    rows = [row.head for step in runner.forward_calls for row in step.decode if row.path is not None]
    return {*rows, *(chunk.head for step in runner.forward_calls for chunk in step.prefill)}


@pytest.mark.parametrize("needs", [True, False])
def test_engine_passes_the_head_on_from_the_first_row_to_the_last(cheap: Any, needs: bool) -> None:
    request = FakeEngine.request("a", PROMPT, "full", max_tokens=4, ignore_eos=True)
    cheap.engine.submit(dataclasses.replace(request, needs_exact_head=needs))
    cheap.step_until_idle()
    assert heads_of(cheap.runner) == {"exact" if needs else "cheap"}
