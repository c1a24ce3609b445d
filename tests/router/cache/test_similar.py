"""The semantic cache: what is compared, what is never taken for the same."""

from dataclasses import replace

import pytest

from engines.sequence import GenerationRequest, SamplingParams
from router.cache.config import CacheConfig
from router.cache.key import Origin
from router.cache.similar import MAX_CHARS, Question, SimilarIndex, read_question, read_text, similarity

ORIGIN = Origin(student="tiny", digest="d", path="full", head="exact", tenant=None)
REQUEST = GenerationRequest(
    id="a", prompt_token_ids=(1, 2), path="full", sampling=SamplingParams(max_tokens=4, temperature=0.0)
)
LAST = "Why is the sky blue?"


def score(one: str, other: str) -> float:
    return similarity(read_text(one), read_text(other))


def read(requests: list[GenerationRequest], prompt: str, last: str, origin: Origin = ORIGIN) -> Question | None:
    return read_question(origin, requests, prompt, last, threshold=0.9, max_context_tokens=64)


def group_of(
    prompt: str = f"user: {LAST} end", last: str = LAST, origin: Origin = ORIGIN, request: GenerationRequest = REQUEST
) -> str:
    question = read([request], prompt, last, origin)
    assert question is not None
    return question.group


def asked(text: str, group: str = "g") -> Question:
    return Question(group=group, reading=read_text(text), threshold=0.9)


def test_similarity_sees_spelling() -> None:
    assert score("Why is the sky blue?", "why is the sky  blue?") == pytest.approx(1.0)
    assert 0.9 < score("Why is the sky blue?", "Why is the sky blue") < 1.0
    assert score("Why is the sky blue?", "Why do cats purr?") < 0.7


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("List 5 facts about whales", "List 6 facts about whales"),
        ("a fee of 1,000 is due", "a fee of 1.000 is due"),
        ("Which foods are safe for dogs?", "Which foods are not safe for dogs?"),
        ("Can dogs eat grapes?", "Can't dogs eat grapes?"),
        ("What is the capital of Australia?", "What is the capital of Austria?"),
        ("When was the wall built?", "Where was the wall built?"),
        ("哪些食物对狗安全？", "哪些食物对狗不安全？"),
        ("写三个事实", "写五个事实"),
    ],
)
def test_questions_that_one_word_turns_round_are_never_similar(one: str, other: str) -> None:
    assert score(one, other) == 0.0


def test_question_s_group_is_everything_but_its_words() -> None:
    other = "How deep is the sea?"
    assert group_of(f"user: {other} end", other) == group_of()
    groups = {
        group_of(),
        group_of(f"system: be kind user: {LAST} end"),
        group_of(f"user: {LAST} end and more"),
        group_of(origin=replace(ORIGIN, tenant="acme")),
        group_of(origin=replace(ORIGIN, path="shallow")),
        group_of(origin=replace(ORIGIN, head="cheap")),
        group_of(request=replace(REQUEST, sampling=replace(REQUEST.sampling, max_tokens=5))),
    }
    assert len(groups) == 7


def test_question_s_group_is_that_of_all_answers_that_may_fill_the_context() -> None:
    short, long = (
        replace(REQUEST, prompt_token_ids=(1,) * size, sampling=replace(REQUEST.sampling, max_tokens=64 - size))
        for size in (3, 9)
    )
    assert group_of(request=short) == group_of(request=long) != group_of()


def test_question_that_cannot_be_compared_is_none() -> None:
    long = "x" * (MAX_CHARS + 1)
    others = [REQUEST, replace(REQUEST, prompt_token_ids=(9,))]
    assert read([REQUEST], long, long) is None
    assert read([REQUEST], "user: changed", LAST) is None
    assert read([REQUEST], "user:  ", " ") is None
    assert read(others, LAST, LAST) is None
    scored = replace(REQUEST, sampling=replace(REQUEST.sampling, prompt_logprobs=0))
    assert read([scored], LAST, LAST) is None


def test_index_finds_the_nearest_of_its_group() -> None:
    index = SimilarIndex(9)
    index.add(asked("why is the sky so blue today"), "far")
    index.add(asked("why is the sky blue."), "near")
    index.add(asked("why is the sky blue", group="other"), "elsewhere")
    nearest = index.nearest(asked("why is the sky blue"))
    assert nearest is not None
    assert nearest[0] == "near"
    index.forget("g", "near")
    assert index.nearest(asked("why is the sky blue")) is None


def test_index_is_bounded_and_lets_go_of_the_least_recently_found() -> None:
    index = SimilarIndex(2)
    index.add(asked("why is the sky blue"), "sky")
    index.add(asked("how deep is the sea"), "sea")
    assert index.nearest(asked("why is the sky blue")) is not None
    index.add(asked("who let the dogs out"), "dogs")
    assert len(index) == 2
    assert index.nearest(asked("how deep is the sea")) is None
    assert index.nearest(asked("why is the sky blue")) is not None


def test_settings_never_allow_mathematics_nor_low_thresholds() -> None:
    assert not CacheConfig(semantic={"fact": 0.98, "legal": 1.0}).problems()
    for semantic in ({"math": 0.99}, {"general": 0.99}, {"fact": 0.5}, {"fact": 1.1}):
        assert len(CacheConfig(semantic=semantic).problems()) == 1  # type: ignore[arg-type]
