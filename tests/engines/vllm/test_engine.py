"""The engine contract over a process that is a fake: text, ends, refusals, deaths and restarts."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.config import EngineConfig
from engines.grammar import GrammarCompiler
from engines.sequence import FinishReason, GenerationRequest, SamplingParams
from engines.vllm.engine import VllmEngine
from engines.vllm.form import served_form
from engines.vllm.process import RowOutput, Scores, StepCounts
from engines.vllm.restarts import Restarts
from models.errors import (
    ContextTooLong,
    EngineUnhealthy,
    InvalidParameter,
    QueueFull,
    StepFailed,
    UnknownModel,
    UnsupportedField,
)
from models.student.folder import Student
from models.student.manifest import HeadKind
from tests.engines.vllm.fake_process import FakeProcess, FakeProcesses

WAIT_S = 30.0
EOS = 2


class NoWait(Restarts):
    """The same waits, over at once."""

    @property
    def is_due(self) -> bool:
        return True


class Served:
    """An engine on fake processes."""

    def __init__(self, student: Student, listener: Any, head: HeadKind = "exact", **settings: Any) -> None:
        stall_s = settings.pop("stall_s", 60.0)
        self.processes = FakeProcesses()
        self.listener = listener
        self.engine = VllmEngine(
            student,
            served_form(student.manifest),
            EngineConfig(**settings),
            self.processes.start,
            capacity_tokens=64,
            variant="vllm fake",
            head=head,
            stall_s=stall_s,
            restarts=NoWait(),
        )

    def start(self) -> FakeProcess:
        self.engine.start(self.listener.publish)
        return self.processes.nth(0)

    def submit(self, id: str, path: str = "full", prompt: tuple[int, ...] = (5, 6, 7), **sampling: Any) -> None:
        options = {name: sampling.pop(name) for name in ("cache_salt", "needs_exact_head") if name in sampling}
        params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **sampling})
        self.engine.submit(GenerationRequest(id=id, prompt_token_ids=prompt, path=path, sampling=params, **options))

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline_s
            time.sleep(0.005)

    def when_added(self, process: FakeProcess, number: int = 1) -> None:
        self.until(lambda: len(process.added) >= number)


@pytest.fixture
def serve(fake_student: Student, make_listener: Any) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(**settings: Any) -> Served:
        made.append(Served(fake_student, make_listener(), **settings))
        return made[-1]

    yield make
    for served in made:
        served.processes.gate.set()
        served.engine.stop(0)
        for process in served.processes.all:  # also one that was starting
            assert process.ended.wait(WAIT_S)


Serve = Callable[..., Served]


def tokens(id: str, *token_ids: int, **fields: Any) -> RowOutput:
    return RowOutput(sequence_id=id, token_ids=token_ids, **fields)


def test_tokens_become_events_until_the_length_is_reached(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a", max_tokens=3)
    served.when_added(process)
    process.say(tokens("a", 70, num_cached_tokens=2, scheduled_s=1.0))
    process.say(tokens("a", 71))
    process.say(tokens("a", 72, is_finished=True))
    finish = served.listener.finish("a")
    assert (finish.reason, finish.path, finish.error) == (FinishReason.LENGTH, "full", None)
    assert served.listener.tokens("a") == [70, 71, 72]
    assert (finish.usage.num_cached_tokens, finish.usage.num_completion_tokens) == (2, 3)
    assert finish.timings.admitted_s == 1.0
    assert process.aborted == []


def test_an_end_token_ends_the_answer_and_is_not_shown(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a")
    served.when_added(process)
    process.say(tokens("a", 70, num_cached_tokens=0))
    process.say(tokens("a", EOS, is_finished=True))
    assert served.listener.finish("a").reason is FinishReason.STOP
    assert served.listener.tokens("a") == [70]


def test_a_stop_string_ends_it_there_too(serve: Serve, fake_student: Student) -> None:
    served = serve()
    process = served.start()
    stop = fake_student.tokenizer.decode([71])
    assert stop
    served.submit("a", stop=(stop,))
    served.when_added(process)
    process.say(tokens("a", 70, num_cached_tokens=0))
    process.say(tokens("a", 71))
    finish = served.listener.finish("a")
    assert (finish.reason, finish.stop) == (FinishReason.STOP, stop)
    assert served.listener.text("a") == fake_student.tokenizer.decode([70])
    served.until(lambda: process.aborted == ["a"])


def test_a_grammar_ends_it_where_it_ends(serve: Serve, fake_student: Student) -> None:
    size = fake_student.manifest.architecture.vocab_size
    grammar = GrammarCompiler(fake_student.tokenizer, size).compile('start: "ab"')
    served = serve(head="cheap")
    process = served.start()
    served.submit("a", grammar=grammar)
    served.when_added(process)
    ((request, head),) = process.added
    assert request.sampling.grammar is not None
    assert 'start: "ab"' in request.sampling.grammar.source
    assert head == "exact"
    for letter in "ab":
        process.say(tokens("a", *fake_student.tokenizer.encode(letter), num_cached_tokens=0))
    assert served.listener.finish("a").reason is FinishReason.STOP
    assert served.listener.text("a") == "ab"
    served.until(lambda: process.aborted == ["a"])


def test_a_token_that_the_grammar_forbids_ends_this_answer_alone(serve: Serve, fake_student: Student) -> None:
    size = fake_student.manifest.architecture.vocab_size
    grammar = GrammarCompiler(fake_student.tokenizer, size).compile('start: "ab"')
    served = serve()
    process = served.start()
    served.submit("a", grammar=grammar)
    served.submit("b", max_tokens=1)
    served.when_added(process, 2)
    process.say(tokens("a", *fake_student.tokenizer.encode("x"), num_cached_tokens=0), tokens("b", 70))
    finish = served.listener.finish("a")
    assert finish.reason is FinishReason.ERROR
    assert finish.error.code == "grammar_failed"
    assert served.listener.finish("b").reason is FinishReason.LENGTH


def test_no_token_is_generated_where_none_is_wanted(serve: Serve) -> None:
    served = serve()
    process = served.start()
    scored = tuple(Scores(token_id=id, logprob=-1.0, likeliest=((id, -1.0), (9, -2.0))) for id in (6, 7))
    served.submit("a", max_tokens=0, prompt_logprobs=1)
    served.when_added(process)
    process.say(tokens("a", 70, num_cached_tokens=0, prompt_scores=scored, is_finished=True))
    finish = served.listener.finish("a")
    assert (finish.reason, finish.usage.num_completion_tokens) == (FinishReason.LENGTH, 0)
    (first, *_) = served.listener.events["a"]
    assert [one.token_id for one in first.logprobs] == [6, 7]
    assert [one.token_id for one in first.logprobs[0].alternatives] == [6]


def test_logprobs_come_with_their_tokens(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a", max_tokens=1, logprobs=2)
    served.when_added(process)
    score = Scores(token_id=70, logprob=-0.5, likeliest=((70, -0.5), (71, -1.5), (72, -2.5)))
    process.say(tokens("a", 70, scores=(score,), num_cached_tokens=0, is_finished=True))
    served.listener.finish("a")
    (logprob,) = served.listener.events["a"][-1].logprobs
    assert (logprob.token_id, logprob.logprob) == (70, -0.5)
    assert [one.token_id for one in logprob.alternatives] == [70, 71]


def test_an_abort_is_passed_on(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a")
    served.when_added(process)
    served.engine.abort("a")
    served.engine.abort("unknown")
    assert served.listener.finish("a").reason is FinishReason.ABORT
    served.until(lambda: process.aborted == ["a"])
    process.say(tokens("a", 70))  # said before it heard
    served.until(process.outputs.empty)
    status = served.engine.status()
    assert (status.num_running, status.num_waiting, status.kv_used_bytes) == (0, 0, 0)
    assert served.engine.audit(WAIT_S) == []


def test_sequences_wait_while_the_first_process_starts(serve: Serve) -> None:
    served = serve()
    served.processes.gate.clear()
    served.engine.start(served.listener.publish)
    served.submit("a", max_tokens=1)
    status = served.engine.status()
    assert (status.is_healthy, status.is_ready, status.num_waiting) == (True, False, 1)
    assert [state.id for state in served.engine.sequences(WAIT_S)] == ["a"]
    served.processes.gate.set()
    process = served.processes.nth(0)
    served.when_added(process)
    process.say(tokens("a", 70, num_cached_tokens=0, is_finished=True))
    assert served.listener.finish("a").reason is FinishReason.LENGTH
    assert served.engine.status().is_ready


def test_a_dead_process_ends_its_sequences_and_another_is_started(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a")
    served.submit("b", path="knowledge")
    served.when_added(process, 2)
    served.processes.gate.clear()
    process.die()
    for id in ("a", "b"):
        finish = served.listener.finish(id)
        assert finish.reason is FinishReason.ERROR
        assert isinstance(finish.error, EngineUnhealthy)
        assert finish.error.retry_after_s
    status = served.engine.status()
    assert not status.is_healthy
    assert status.error == "the vLLM engine ended and is being started again"
    assert "killed" in str(status.error_detail)
    with pytest.raises(EngineUnhealthy, match="being started again") as refused:
        served.submit("c")
    assert refused.value.retry_after_s
    assert process.ended.is_set()
    served.processes.gate.set()
    second = served.processes.nth(1)
    served.until(lambda: served.engine.status().is_healthy)
    served.submit("d", max_tokens=1)
    served.when_added(second)
    second.say(tokens("d", 70, num_cached_tokens=0, is_finished=True))
    assert served.listener.finish("d").reason is FinishReason.LENGTH
    assert served.engine.audit(WAIT_S) == []


def test_a_process_that_hangs_is_ended_and_started_again(serve: Serve) -> None:
    served = serve(stall_s=0.2)
    process = served.start()
    served.submit("a")
    finish = served.listener.finish("a")
    assert isinstance(finish.error, EngineUnhealthy)
    assert process.ended.is_set()
    assert "no step for" in str(served.engine.status().error_detail) or served.processes.nth(1)


def test_an_idle_process_is_no_hanging_one(serve: Serve) -> None:
    served = serve(stall_s=0.1)
    process = served.start()
    served.until(lambda: served.engine.status().is_ready)
    time.sleep(0.3)
    assert served.engine.status().is_healthy
    assert not process.ended.is_set()


def test_starts_that_fail_are_tried_again(serve: Serve) -> None:
    served = serve()
    served.processes.num_to_fail = 3
    process = served.start()
    served.until(lambda: served.engine.status().is_healthy and served.engine.status().is_ready)
    assert served.engine.status().num_failed_steps == 3
    assert served.processes.all == [process]


def test_what_the_process_refuses_ends_as_an_error(serve: Serve) -> None:
    served = serve()
    process = served.start()
    process.refusal = InvalidParameter("vLLM refuses the request: too odd")
    served.submit("a")
    finish = served.listener.finish("a")
    assert finish.error is process.refusal
    process.refusal = None
    served.submit("b", max_tokens=1)
    served.when_added(process)


def test_an_end_for_a_reason_of_vllms_own_is_an_error(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a")
    served.when_added(process)
    process.say(tokens("a", is_finished=True, problem="vLLM ended the answer: error"))
    finish = served.listener.finish("a")
    assert isinstance(finish.error, StepFailed)
    assert "vLLM ended the answer: error" in finish.error.message


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"path": "other"}, UnknownModel, "has no path 'other'"),
    ({"prompt": ()}, InvalidParameter, "the prompt is empty"),
    ({"prompt": (5, 100_000)}, InvalidParameter, "token ids must lie between"),
    ({"logit_bias": {100_000: 1.0}}, InvalidParameter, "token ids must lie between"),
    ({"max_tokens": 62}, ContextTooLong, "3 prompt tokens and 62 new ones exceed the context of 64"),
    ({"temperature": 0.001}, UnsupportedField, "temperature 0.001 is below what vLLM takes"),
]


@pytest.mark.parametrize(("request_", "error", "said"), REFUSED)
def test_what_cannot_be_done_is_refused_at_once(
    serve: Serve, request_: dict[str, Any], error: type[Exception], said: str
) -> None:
    served = serve()
    with pytest.raises(error, match=said):
        served.submit("a", **request_)


def test_more_than_the_bound_is_refused(serve: Serve) -> None:
    served = serve(max_running=1, max_waiting=1)
    served.start()
    served.submit("a")
    served.submit("b")
    with pytest.raises(QueueFull):
        served.submit("c")


HEADS: list[tuple[dict[str, Any], HeadKind]] = [
    ({}, "cheap"),
    ({"needs_exact_head": True}, "exact"),
    ({"logit_bias": {7: 1.0}}, "exact"),
    ({"presence_penalty": 0.5}, "exact"),
    ({"repetition_penalty": 1.1}, "exact"),
    ({"prompt_logprobs": 0}, "exact"),
    ({"logprobs": 2}, "cheap"),
]


@pytest.mark.parametrize(("asked", "head"), HEADS)
def test_the_cheap_head_answers_what_it_can(serve: Serve, asked: dict[str, Any], head: HeadKind) -> None:
    served = serve(head="cheap")
    process = served.start()
    served.submit("a", **asked)
    served.when_added(process)
    assert process.added[0][1] == head
    assert [state.head for state in served.engine.sequences(WAIT_S)] == [head]


def test_counts_are_those_of_all_processes(serve: Serve) -> None:
    served = serve()
    process = served.start()
    process.counted = StepCounts(
        num_steps=5,
        steps_by_layers={2: 3, 4: 2},
        tokens_by_layers={2: 9, 4: 4},
        head_runs={"exact": 5, "cheap": 0},
        head_rows={"exact": 13, "cheap": 0},
    )
    served.until(lambda: served.engine.status().num_steps == 5)
    status = served.engine.status()
    assert status.stage_runs == {"knowledge": 5, "reasoning": 2, "adapter": 2, "head": 5, "cheap_head": 0}
    assert status.stage_rows == {"knowledge": 13, "reasoning": 4, "adapter": 4, "head": 13, "cheap_head": 0}
    process.die()
    second = served.processes.nth(1)
    second.counted = StepCounts(num_steps=1, steps_by_layers={4: 1}, tokens_by_layers={4: 7})
    served.until(lambda: served.engine.status().num_steps == 6)
    assert served.engine.status().stage_rows["adapter"] == 11


def test_stop_lets_sequences_finish_within_the_grace(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a", max_tokens=1)
    served.when_added(process)
    stopping = threading.Thread(target=served.engine.stop, args=(WAIT_S,))
    stopping.start()
    served.until(lambda: served.engine._living.abort_at_s is not None)
    with pytest.raises(EngineUnhealthy, match="shutting down"):
        served.submit("late")
    process.say(tokens("a", 70, num_cached_tokens=0, is_finished=True))
    assert served.listener.finish("a").reason is FinishReason.LENGTH
    stopping.join(WAIT_S)
    assert not stopping.is_alive()
    assert process.ended.is_set()


def test_stop_aborts_what_is_left_when_the_grace_is_over(serve: Serve) -> None:
    served = serve()
    process = served.start()
    served.submit("a")
    served.when_added(process)
    served.engine.stop(0.05)
    assert served.listener.finish("a").reason is FinishReason.ABORT


def test_stop_does_not_wait_for_a_start(serve: Serve) -> None:
    served = serve()
    served.processes.gate.clear()
    served.engine.start(served.listener.publish)
    served.submit("a")
    served.engine.stop(0.05)
    assert served.listener.finish("a").reason is FinishReason.ABORT
    served.processes.gate.set()
    assert served.processes.nth(0).ended.wait(WAIT_S)
