"""The scripted engine keeps the Engine contract: one terminal event per sequence, whatever happens."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from engines.contract import Engine
from engines.scripted import Line, ScriptedEngine, _cut
from engines.sequence import FinishReason, GenerationRequest, SamplingParams, SequenceEvent, WhileLoading
from models.errors import ContextTooLong, EngineUnhealthy, QueueFull, StepFailed, UnknownModel


class Stage:
    """An engine and everything it published."""

    def __init__(self, script: Mapping[str, Line] | None = None, **options: Any) -> None:
        self.engine = ScriptedEngine(
            student="s",
            paths={"shallow": 2, "full": 4},
            default_path="full",
            decode=lambda ids: bytes(ids).decode(),
            script=script,
            **options,
        )
        self._events: dict[str, list[SequenceEvent]] = {}
        self._changed = threading.Condition()
        self.engine.start(self._publish)

    def _publish(self, events: Sequence[SequenceEvent]) -> None:
        with self._changed:
            for event in events:
                self._events.setdefault(event.sequence_id, []).append(event)
            self._changed.notify_all()

    def submit(self, id: str, prompt: str = "hi", path: str = "full", **sampling: Any) -> None:
        while_loading = sampling.pop("while_loading", WhileLoading.WAIT)
        params = SamplingParams(**{"max_tokens": 100, **sampling})
        ids = tuple(prompt.encode())
        self.engine.submit(
            GenerationRequest(id=id, prompt_token_ids=ids, path=path, sampling=params, while_loading=while_loading)
        )

    def events(self, id: str) -> list[SequenceEvent]:
        """All events of a sequence, once it has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(event.finish for event in self._events.get(id, ())), 10)
            return self._events[id]

    def end(self, id: str) -> Any:
        return self.events(id)[-1].finish


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(
        {
            "slow": Line(pieces=("x",) * 1000, delay_s=0.01),
            "fail": Line(pieces=("x",), error=StepFailed("no")),
            "refuse": Line(refusal=QueueFull("full")),
        },
        max_running=2,
        max_waiting=1,
        max_context_tokens=200,
    )
    yield made
    made.engine.stop(0.0)


def test_scripted_is_an_engine(stage: Stage) -> None:
    engine: Engine = stage.engine
    assert engine.status().is_ready


def test_scripted_says_its_line_and_ends_once(stage: Stage) -> None:
    stage.submit("a")
    events = stage.events("a")
    assert "".join(event.text for event in events) == "Hello, world!"
    assert [event.finish is not None for event in events] == [False, False, False, True]
    assert stage.end("a").reason is FinishReason.STOP
    assert stage.end("a").usage.num_completion_tokens == 4


def test_scripted_cuts_at_stop_and_length(stage: Stage) -> None:
    stage.submit("a", stop=("wor",))
    stage.submit("b", max_tokens=2)
    assert "".join(event.text for event in stage.events("a")) == "Hello, "
    assert (stage.end("a").reason, stage.end("a").stop) == (FinishReason.STOP, "wor")
    assert stage.end("b").reason is FinishReason.LENGTH


def test_scripted_shows_the_stop_string_and_passes_early_ones_where_that_is_asked_for() -> None:
    line = Line(pieces=("one ", "END", " two ", "END", " three"))

    def said(**params: Any) -> tuple[str, FinishReason]:
        sampling = SamplingParams(max_tokens=10, stop=("END",), **params)
        texts, reason, _ = _cut(GenerationRequest(id="a", prompt_token_ids=(1,), path="full", sampling=sampling), line)
        return "".join(texts), reason

    assert said() == ("one ", FinishReason.STOP)
    assert said(shows_stop=True) == ("one END", FinishReason.STOP)
    assert said(min_tokens=2) == ("one END two ", FinishReason.STOP)
    assert said(min_tokens=1) == ("one ", FinishReason.STOP)
    assert said(min_tokens=4) == ("one END two END three", FinishReason.STOP)


def test_scripted_fails_as_told(stage: Stage) -> None:
    stage.submit("a", "fail")
    assert stage.end("a").reason is FinishReason.ERROR
    assert isinstance(stage.end("a").error, StepFailed)
    with pytest.raises(QueueFull):
        stage.submit("b", "refuse")


def test_scripted_aborts_running_and_waiting(stage: Stage) -> None:
    for id in ("a", "b"):
        stage.submit(id, "slow")
    stage.engine.abort("a")
    assert stage.end("a").reason is FinishReason.ABORT
    stage.engine.abort("unknown")
    stage.engine.abort("b")
    assert stage.end("b").reason is FinishReason.ABORT


def test_scripted_refuses_what_it_cannot_hold(stage: Stage) -> None:
    with pytest.raises(UnknownModel):
        stage.submit("a", path="deep")
    with pytest.raises(ContextTooLong):
        stage.submit("a", max_tokens=199)
    stage.engine.sicken("ill")
    with pytest.raises(EngineUnhealthy, match="ill"):
        stage.submit("a")


def test_scripted_waits_for_its_path_or_degrades() -> None:
    stage = Stage(is_loaded=False)
    stage.submit("waits")
    stage.submit("degrades", while_loading=WhileLoading.DEGRADE)
    assert stage.engine.status().num_waiting == 2
    stage.engine.load(2)
    assert stage.end("degrades").path == "shallow"
    stage.engine.load(4)
    assert stage.end("waits").path == "full"
    stage.engine.stop(0.0)


def test_scripted_stop_finishes_within_grace_and_aborts_the_rest(stage: Stage) -> None:
    stage.submit("quick")
    stage.submit("slow", "slow")
    stage.engine.stop(0.1)
    assert stage.end("quick").reason is FinishReason.STOP
    assert stage.end("slow").reason is FinishReason.ABORT
    with pytest.raises(EngineUnhealthy):
        stage.submit("late")


def test_scripted_engine_tells_its_head_and_that_of_each_sequence() -> None:
    made = Stage({"slow": Line(pieces=("x",) * 1000, delay_s=0.01)}, head="cheap")
    made.submit("plain", "slow")
    made.submit("scored", "slow", prompt_logprobs=0)
    assert made.engine.status().head == "cheap"
    assert {one.id: one.head for one in made.engine.sequences(5.0)} == {"plain": "cheap", "scored": "exact"}
    made.engine.stop(0)


def test_set_times_are_never_undercut_and_requests_need_not_be_kept() -> None:
    def line_of(request: GenerationRequest) -> Line:
        return Line(pieces=("x", "y", "z"), first_s=0.05, delay_s=0.02 if request.id == "a" else 0.0)

    stage = Stage(line_of=line_of, keeps_requests=False)
    try:
        for name in ("a", "b"):
            stage.submit(name)
        for name, least_s in (("a", 0.09), ("b", 0.05)):
            timings = stage.end(name).timings
            assert timings.first_token_s - timings.admitted_s >= 0.05
            assert timings.finished_s - timings.admitted_s >= least_s
        assert stage.engine.status().num_accepted == 2
        assert stage.engine.submitted == []
        assert stage.engine.audit(1.0) == []
    finally:
        stage.engine.stop(0.0)
