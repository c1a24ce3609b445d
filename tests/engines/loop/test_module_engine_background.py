"""Sequences in the background: they give way to all others, change nothing of theirs and are counted apart."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from engines.answer_score import AnswerScore
from engines.scheduling.scheduler import BACKGROUND_TOKENS, BACKGROUND_TOKENS_BESIDE
from engines.sequence import FinishReason
from models.errors import QueueFull
from tests.engines.conftest import ENTRY_BYTES, FakeEngine

MakeEngine = Callable[..., FakeEngine]
PROMPT = [*range(20, 80)]
ANSWER = [*range(100, 160)]
FIRST = len(PROMPT)


@pytest.fixture
def fake(make_engine: MakeEngine) -> FakeEngine:
    fake = make_engine()
    fake.load_by_hand()
    return fake


def submit_scoring(fake: FakeEngine, id: str = "score", **sampling: Any) -> None:
    options = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 0, **sampling}
    fake.submit(id, PROMPT + ANSWER, scored_from=FIRST, in_background=True, **options)


def score_of(fake: FakeEngine, id: str = "score") -> AnswerScore:
    (score,) = [event.score for event in fake.events[id] if event.score is not None]
    return score


def chunks_of(fake: FakeEngine) -> list[list[int]]:
    """The tokens of every chunk, by forward pass."""
    return [[len(chunk.token_ids) for chunk in step.prefill] for step in fake.runner.forward_calls]


def test_score_is_the_likelihood_of_the_answer(fake: FakeEngine) -> None:
    submit_scoring(fake)
    fake.submit("plain", PROMPT + ANSWER, max_tokens=0, prompt_logprobs=0)
    fake.step_until_idle()
    logprobs = [one.logprob for event in fake.events["plain"] for one in event.logprobs][FIRST - 1 :]
    score = score_of(fake)
    assert score.num_tokens == len(ANSWER) == len(logprobs)
    assert score.nats == pytest.approx(-sum(logprobs), rel=1e-5)
    assert fake.finish("score").reason is FinishReason.LENGTH


def test_only_the_answer_s_positions_are_asked_for(fake: FakeEngine) -> None:
    submit_scoring(fake)
    fake.step_until_idle()
    kept = [chunk for step in fake.runner.forward_calls for chunk in step.prefill if chunk.keeps_states]
    assert min(chunk.start + len(chunk.token_ids) for chunk in kept) >= FIRST
    assert sum(len(chunk.token_ids) for chunk in kept) < len(ANSWER) + BACKGROUND_TOKENS


def test_alone_it_takes_small_steps(fake: FakeEngine) -> None:
    submit_scoring(fake)
    fake.step_until_idle()
    assert max(size for chunks in chunks_of(fake) for size in chunks) <= BACKGROUND_TOKENS


def test_beside_streams_it_takes_smaller_ones_and_other_prompts_come_first(fake: FakeEngine) -> None:
    fake.submit("stream", max_tokens=60, ignore_eos=True)
    fake.engine.step()
    submit_scoring(fake)
    for number in range(4):
        fake.engine.step()
        fake.submit(f"prompt{number}", [30 + number] * 40, max_tokens=1, ignore_eos=True)
    fake.step_until_idle()
    assert all(len(chunks) == 1 or BACKGROUND_TOKENS_BESIDE not in chunks for chunks in chunks_of(fake))
    while_streaming = [
        chunk
        for step in fake.runner.forward_calls
        for chunk in step.prefill
        if step.decode and len(chunk.token_ids) != 40
    ]
    assert while_streaming
    assert max(len(chunk.token_ids) for chunk in while_streaming) <= BACKGROUND_TOKENS_BESIDE


def test_streams_have_a_step_of_their_own_among_those_with_prompts(make_engine: MakeEngine) -> None:
    """Which tells what their pass takes: nothing in the background is computed in it."""
    fake = make_engine(busy_step_ms=50, busy_step_tokens=4)
    fake.load_by_hand()
    fake.submit("stream", max_tokens=60, ignore_eos=True)
    fake.engine.step()
    submit_scoring(fake)
    fake.submit("prompt", PROMPT, max_tokens=1, ignore_eos=True)
    while "prompt" not in fake.events:
        fake.engine.step()
    beside = [len(step.prefill) for step in fake.runner.forward_calls if step.decode]
    assert sum(beside) == len(PROMPT) // 4
    assert [place for place, count in enumerate(beside) if not count] == [8]


def test_it_gives_its_slot_to_whoever_waits(make_engine: MakeEngine) -> None:
    fake = make_engine(max_running=1)
    fake.load_by_hand()
    submit_scoring(fake)
    fake.engine.step()
    fake.submit("user", PROMPT, max_tokens=4, ignore_eos=True)
    fake.engine.step()
    assert [one.id for one in fake.engine._scheduler.running] == ["user"]
    fake.step_until_idle()
    assert fake.tokens("user") == fake.alone(fake.request("x", PROMPT, "full", max_tokens=4, ignore_eos=True))
    assert score_of(fake).num_tokens == len(ANSWER)
    assert fake.engine.status().num_preemptions == 0


def test_it_gives_its_kv_to_whoever_waits_or_grows(make_engine: MakeEngine) -> None:
    fake = make_engine(kv_bytes=3 * ENTRY_BYTES * 176, prefix_cache_bytes=0)
    fake.load_by_hand()
    fake.submit("old", PROMPT[:30], max_tokens=60, ignore_eos=True)
    fake.engine.step()
    submit_scoring(fake)
    fake.engine.step()
    fake.submit("new", PROMPT, max_tokens=30, ignore_eos=True)
    fake.step_until_idle()
    for id, prompt, max_tokens in (("old", PROMPT[:30], 60), ("new", PROMPT, 30)):
        request = fake.request("x", prompt, "full", max_tokens=max_tokens, ignore_eos=True)
        assert fake.tokens(id) == fake.alone(request)
    assert score_of(fake).num_tokens == len(ANSWER)
    assert fake.engine._find_inconsistencies() == []


def test_nothing_of_it_is_counted_as_anybody_s_work(fake: FakeEngine) -> None:
    submit_scoring(fake)
    fake.submit("text", PROMPT, "knowledge", max_tokens=5, ignore_eos=True, in_background=True)
    fake.engine.step()
    status = fake.engine.status()
    assert (status.num_running, status.num_waiting, fake.engine._sequence_states()) == (0, 0, [])
    fake.step_until_idle()
    status = fake.engine.status()
    counted = (status.num_accepted, status.num_prompt_tokens, status.num_generation_tokens, status.prefix_cache_bytes)
    assert counted == (0, 0, 0, 0)
    assert not any(status.stage_rows.values())
    assert status.num_background_tokens == len(PROMPT) + len(ANSWER) + len(PROMPT) + 4
    assert 0 < status.background_s <= status.busy_s


def test_time_of_a_step_with_others_is_divided_by_tokens(fake: FakeEngine) -> None:
    fake.submit("stream", max_tokens=30, ignore_eos=True)
    submit_scoring(fake)
    fake.step_until_idle()
    status = fake.engine.status()
    assert 0 < status.background_s < status.busy_s


def test_background_text_is_the_text_of_a_request(fake: FakeEngine) -> None:
    sampling = {"max_tokens": 12, "temperature": 0.8, "seed": 3, "ignore_eos": True}
    fake.submit("user", PROMPT, "knowledge", **sampling)
    fake.submit("text", PROMPT, "knowledge", in_background=True, **sampling)
    fake.step_until_idle()
    assert fake.tokens("text") == fake.tokens("user")


def test_it_takes_nobody_s_place_in_the_queue(make_engine: MakeEngine) -> None:
    fake = make_engine(max_running=1, max_waiting=0)
    fake.load_by_hand()
    submit_scoring(fake, "one")
    submit_scoring(fake, "two")
    fake.submit("user", PROMPT, max_tokens=2, ignore_eos=True)
    with pytest.raises(QueueFull):
        submit_scoring(fake, "three")
    fake.step_until_idle()
    assert {fake.finish(id).reason for id in ("one", "two", "user")} == {FinishReason.LENGTH}


def test_it_holds_up_no_end(make_engine: MakeEngine) -> None:
    fake = make_engine()
    fake.runner.gates["knowledge"] = gate = threading.Event()
    fake.start()
    submit_scoring(fake)
    threading.Timer(0.2, gate.set).start()
    fake.engine.stop(grace_s=60.0)
    assert fake.finish("score").reason is FinishReason.ABORT


def test_aborted_and_failed_ones_tell_no_score(fake: FakeEngine) -> None:
    submit_scoring(fake, "aborted")
    fake.engine.step()
    fake.engine.abort("aborted")
    fake.step_until_idle()
    submit_scoring(fake, "failed")
    fake.engine.step()
    fake.runner.fail_next = 1
    fake.step_until_idle()
    assert fake.finish("aborted").reason is FinishReason.ABORT
    assert fake.finish("failed").reason is FinishReason.ERROR
    assert all(event.score is None for id in ("aborted", "failed") for event in fake.events[id])
