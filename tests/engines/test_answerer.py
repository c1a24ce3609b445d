"""Training answers from an engine: every prompt is answered once, with its end token, whatever runs beside it."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engines import answerer as answerer_module
from engines.answerer import EngineAnswerer
from engines.build import build_engine
from engines.config import EngineConfig
from engines.scripted import Line, ScriptedEngine
from engines.sequence import GenerationRequest
from models.errors import ContextTooLong, EngineUnhealthy, StepFailed

END = 2
PROMPTS = [(65,), (66, 66), (67, 67, 67), (68,), (69,)]
Answers = dict[int, tuple[int, ...]]


def scripted(**options: Any) -> ScriptedEngine:
    settings: dict[str, Any] = {
        "student": "s",
        "paths": {"shallow": 1, "full": 2},
        "default_path": "full",
        "decode": lambda ids: bytes(ids).decode(),
        "default_line": Line(pieces=("x", "y", "z"), token_ids=(7, 8, 9)),
    }
    return ScriptedEngine(**settings | options)


@contextmanager
def opened(engine: ScriptedEngine) -> Iterator[Callable[..., Answers]]:
    with EngineAnswerer(engine, "shallow", frozenset({END, 5})) as answerer:

        def answers(prompts: list[tuple[int, ...]] = PROMPTS, **change: Any) -> Answers:
            settings = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 0} | change
            found = list(answerer.answer(prompts, **settings))
            assert sorted(index for index, _ in found) == list(range(len(prompts)))
            return dict(found)

        yield answers


def test_every_prompt_is_answered_and_ended() -> None:
    engine = scripted(
        script={
            "BB": Line(pieces=("a",), token_ids=(30,)),
            # An end token among the line's own is not written twice.
            "CCC": Line(pieces=("a", ""), token_ids=(30, 5)),
        }
    )
    with opened(engine) as answers:
        found = answers()
    assert found == {0: (7, 8, 9, END), 1: (30, END), 2: (30, 5), 3: (7, 8, 9, END), 4: (7, 8, 9, END)}


def test_an_answer_that_was_cut_has_no_end() -> None:
    with opened(scripted()) as answers:
        assert answers(max_tokens=2) == dict.fromkeys(range(5), (7, 8))


def test_requests_are_as_they_were_asked_for() -> None:
    engine = scripted()
    with opened(engine) as answers:
        answers(temperature=0.3, top_p=0.8, max_tokens=6)
    assert [request.prompt_token_ids for request in engine.submitted] == PROMPTS
    for request in engine.submitted:
        sampling = request.sampling
        assert request.path == "shallow"
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.3, 0.8, 6)
        assert sampling.stop_token_ids == {END, 5}


def test_the_seed_of_a_prompt_does_not_depend_on_what_else_is_asked() -> None:
    def seeds(prompts: list[tuple[int, ...]], seed: int = 0) -> dict[tuple[int, ...], int | None]:
        engine = scripted()
        with opened(engine) as answers:
            answers(prompts, seed=seed)
        return {request.prompt_token_ids: request.sampling.seed for request in engine.submitted}

    whole, rest = seeds(PROMPTS), seeds(PROMPTS[3:])
    assert rest == {prompt: whole[prompt] for prompt in PROMPTS[3:]}
    assert len(set(whole.values())) == len(PROMPTS)
    assert not set(whole.values()) & set(seeds(PROMPTS, seed=1).values())


def test_only_so_many_prompts_wait_in_the_engine_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answerer_module, "MAX_SUBMITTED", 3)
    with opened(scripted(max_running=2, max_waiting=1)) as answers:
        prompts = [(65 + random.Random(n).randrange(20),) * (n % 5 + 1) for n in range(20)]
        assert answers(prompts) == dict.fromkeys(range(20), (7, 8, 9, END))


def test_no_prompts_are_no_answers() -> None:
    with opened(scripted()) as answers:
        assert answers([]) == {}


def test_a_teacher_that_fails_is_named() -> None:
    engine = scripted(script={"BB": Line(pieces=("a",), error=StepFailed("no power"))})
    with opened(engine) as answers, pytest.raises(StepFailed, match="could not answer a prompt: no power"):
        answers()


def test_a_refused_prompt_raises_what_the_engine_says_and_the_engine_is_stopped() -> None:
    engine = scripted(max_context_tokens=10)
    with opened(engine) as answers, pytest.raises(ContextTooLong):
        answers([(65,) * 3])
    with opened(engine) as answers, pytest.raises(EngineUnhealthy, match="stopping"):
        answers([(65,)])


def test_the_engines_answers_are_the_teachers_own(tiny_student: Any) -> None:
    tiny = tiny_student("llama")
    prompts = [tuple((7 * n + 3 * i) % 300 + 3 for i in range(4 + n)) for n in range(5)]
    expected = [tiny.reference.generate_greedy(list(prompt), 12) for prompt in prompts]
    # An end that the first answer comes to: its fourth token, or an earlier one like it.
    end = expected[0][3]
    engine = build_engine(tiny.student, EngineConfig(precision="fp32", max_running=3, num_threads=1))
    with EngineAnswerer(engine, "full", frozenset({end})) as answerer:
        found = dict(answerer.answer(prompts, max_tokens=12, temperature=0.0, top_p=1.0, seed=0))
    for index, tokens in enumerate(expected):
        ends = tiny.student.tokenizer.eos_token_ids | {end}
        stop = next((place for place, token in enumerate(tokens) if token in ends), None)
        if stop is None:
            assert found[index] == tuple(tokens)
        else:
            assert found[index] == (*tokens[:stop], end)


def test_another_path_and_head_answer_on_the_same_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = scripted(), list[GenerationRequest]()
    submit = engine.submit

    def seen(request: GenerationRequest) -> None:
        asked.append(request)
        submit(request)

    monkeypatch.setattr(engine, "submit", seen)
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 0}
    with EngineAnswerer(engine, "shallow", frozenset({END})) as answerer:
        for one in (answerer, answerer.on("full", needs_exact_head=False), answerer):
            assert list(one.answer([(65,)], **settings)) == [(0, (7, 8, 9, END))]
    exact, cheap = ("shallow", True), ("full", False)
    assert [(request.path, request.needs_exact_head) for request in asked] == [exact, cheap, exact]
