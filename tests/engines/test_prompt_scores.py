"""Log-probabilities of a prompt's own tokens: right, whatever cuts, shares or interrupts the prompt."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.config import EngineConfig
from engines.loop.module_engine import ModuleEngine
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from engines.prompt_scores import SCORE_ROWS, pieces, score_tokens
from engines.scheduling.prefix_cache import BLOCK_TOKENS
from engines.sequence import FinishReason, TokenLogprob
from tests.engines.conftest import ENTRY_BYTES, EOS, FakeEngine, Listener, TinyStudent

MakeEngine = Callable[..., FakeEngine]
PROMPT = [*range(20, 120), *range(60, 90)]


def token_bytes(token_id: int) -> bytes:
    return str(token_id).encode()


def test_score_tokens_gives_log_probabilities_and_the_likeliest() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32))
    first, second = score_tokens(logits, [1, 2], 2, token_bytes)
    assert math.exp(first.logprob) == pytest.approx(0.2)
    assert [other.token_id for other in first.alternatives] == [2, 1]
    assert math.exp(first.alternatives[0].logprob) == pytest.approx(0.7)
    assert [other.token_id for other in second.alternatives] == [0, 1]
    assert (second.token_id, second.token_bytes) == (2, b"2")


def test_score_tokens_refuses_broken_logits() -> None:
    with pytest.raises(FloatingPointError):
        score_tokens(np.array([[0.0, np.nan]], np.float32), [0], 0, token_bytes)


def test_pieces_cover_a_range_once_and_are_bounded() -> None:
    found = [position for first, end in pieces(3, 300) for position in range(first, end)]
    assert found == list(range(3, 300))
    assert max(end - first for first, end in pieces(3, 300)) == SCORE_ROWS


def scores(listener: Listener, id: str) -> list[TokenLogprob]:
    return [logprob for event in listener.events[id] for logprob in event.logprobs]


def expected(fake: FakeEngine, prompt: list[int], path: str = "full") -> list[float]:
    """Each prefix by itself, and the next token under it."""
    found = []
    for end in range(1, len(prompt)):
        request = fake.request("x", prompt[:end], path, max_tokens=1, ignore_eos=True, logprobs=0)
        engine = FakeEngine(fake.student)
        engine.load_by_hand()
        engine.engine.submit(request)
        logits: list[Any] = []
        sample = engine.engine._sampler.sample

        def keep(rows: Any, *rest: Any, logits: list[Any] = logits, sample: Any = sample) -> Any:
            logits.append(rows[0].astype(np.float64))
            return sample(rows, *rest)

        engine.engine._sampler.sample = keep  # type: ignore[method-assign,assignment]
        engine.step_until_idle()
        row = logits[0]
        found.append(float(row[prompt[end]] - row.max() - np.log(np.exp(row - row.max()).sum())))
    return found


@pytest.fixture
def fake(make_engine: MakeEngine) -> FakeEngine:
    fake = make_engine(step_tokens=48, busy_step_tokens=16)
    fake.load_by_hand()
    return fake


@pytest.mark.parametrize("path", ["knowledge", "full"])
def test_scores_are_those_of_every_prefix_alone(fake: FakeEngine, path: str) -> None:
    fake.submit("a", PROMPT, path, max_tokens=0, prompt_logprobs=2)
    fake.step_until_idle()
    found = scores(fake, "a")
    assert [one.token_id for one in found] == PROMPT[1:]
    assert [one.logprob for one in found] == pytest.approx(expected(fake, PROMPT, path), abs=1e-4)
    assert [len(one.alternatives) for one in found] == [2] * len(found)
    assert fake.finish("a").reason is FinishReason.LENGTH
    assert fake.finish("a").usage.num_completion_tokens == 0
    assert fake.runner.most_rows_scored <= SCORE_ROWS


def test_scores_do_not_take_a_cached_prefix(fake: FakeEngine) -> None:
    fake.submit("first", PROMPT)
    fake.step_until_idle()
    fake.submit("plain", PROMPT)
    fake.submit("scored", PROMPT, max_tokens=0, prompt_logprobs=0)
    fake.step_until_idle()
    assert fake.finish("plain").usage.num_cached_tokens >= BLOCK_TOKENS
    assert fake.finish("scored").usage.num_cached_tokens == 0
    assert len(scores(fake, "scored")) == len(PROMPT) - 1


def test_scores_come_before_the_answer_and_change_nothing_of_it(fake: FakeEngine) -> None:
    for id, wanted in (("plain", None), ("scored", 1)):
        fake.submit(id, PROMPT, logprobs=1, prompt_logprobs=wanted, ignore_eos=True)
        fake.step_until_idle()
    assert fake.tokens("scored") == fake.tokens("plain")
    assert scores(fake, "scored")[len(PROMPT) - 1 :] == scores(fake, "plain")
    assert not fake.events["scored"][0].token_ids


def test_scores_survive_that_the_sequence_gives_way(make_engine: MakeEngine) -> None:
    """Little KV: the younger sequence is preempted in the middle of its prompt; every score is published once."""
    fake = make_engine(step_tokens=8, busy_step_tokens=8, kv_bytes=3 * ENTRY_BYTES * 150, prefix_cache_bytes=0)
    fake.load_by_hand()
    fake.submit("old", PROMPT[:30], max_tokens=60, ignore_eos=True)
    fake.engine.step()
    fake.submit("young", PROMPT[:100], max_tokens=0, prompt_logprobs=0)
    fake.step_until_idle()
    assert fake.engine.status().num_preemptions > 0
    assert [one.logprob for one in scores(fake, "young")] == pytest.approx(expected(fake, PROMPT[:100]), abs=1e-4)


def test_scored_answer_has_an_entry_for_the_token_that_ends_it(fake: FakeEngine) -> None:
    """Harnesses cut the last entry off and count on there being one more than the prompt has tokens."""
    bias = {EOS: 100.0}
    fake.submit("scored", PROMPT, max_tokens=1, logprobs=0, prompt_logprobs=0, logit_bias=bias)
    fake.submit("plain", PROMPT, max_tokens=1, logprobs=0, logit_bias=bias)
    fake.step_until_idle()
    assert scores(fake, "scored")[-1].token_id == EOS
    assert fake.finish("scored").reason is FinishReason.STOP
    assert scores(fake, "plain") == []


def test_failed_pass_tells_no_scores(fake: FakeEngine) -> None:
    fake.submit("a", PROMPT, max_tokens=0, prompt_logprobs=0)
    fake.engine.step()
    fake.runner.fail_next = 1
    fake.step_until_idle()
    assert fake.finish("a").reason is FinishReason.ERROR
    assert scores(fake, "a") == []


def test_prompt_alone_needs_no_scores(fake: FakeEngine) -> None:
    fake.submit("a", PROMPT, max_tokens=0)
    fake.step_until_idle()
    assert fake.finish("a").reason is FinishReason.LENGTH
    assert fake.tokens("a") == []
    assert fake.engine.status().num_prompt_tokens == len(PROMPT)


@pytest.mark.parametrize("path", ["knowledge", "full"])
@pytest.mark.parametrize("step_tokens", [16, 512])
def test_scores_of_a_real_student_are_the_reference_decoders(
    tiny_student: Callable[..., TinyStudent], path: str, step_tokens: int
) -> None:
    tiny = tiny_student("llama")
    config = EngineConfig(max_running=2, step_tokens=step_tokens)
    limits = RunnerLimits(num_slots=2, capacity_tokens=128, num_threads=1)
    runner = OnnxRunner(tiny.student, PrecisionPlan(many="fp32"), limits)
    engine = ModuleEngine(tiny.student, runner, config, capacity_tokens=128, variant="fp32")
    listener = Listener()
    engine._publish = listener.publish
    engine._loading.run()
    prompt = list(range(40, 100))
    engine.submit(FakeEngine.request("a", prompt, path, max_tokens=0, prompt_logprobs=1))
    engine.submit(FakeEngine.request("b", prompt[:50], path, max_tokens=1))
    while engine.step():
        pass
    num_layers = 1 if path == "knowledge" else 4
    hidden = tiny.reference.layers(tiny.reference.embed(prompt), 0, num_layers)
    logprobs = tiny.reference.logits(hidden).log_softmax(-1)
    wanted = [float(logprobs[position, token]) for position, token in enumerate(prompt[1:])]
    assert [one.logprob for one in scores(listener, "a")] == pytest.approx(wanted, abs=2e-3)
