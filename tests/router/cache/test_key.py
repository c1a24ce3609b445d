"""The key of a request: every field that can change an answer is in it, and nothing can be read from it."""

import dataclasses
from dataclasses import fields, replace
from typing import Any

import pytest

from engines.grammar import Grammar
from engines.remote_call import RemoteCall
from engines.sequence import GenerationRequest, SamplingParams, WhileLoading
from router.cache.key import NOT_IN_KEY, Origin, cache_key, key_prefix, path_of

ORIGIN = Origin(student="tiny", digest="d1", path="full", head="exact", tenant=None)
SAMPLING = SamplingParams(max_tokens=8)
REQUEST = GenerationRequest(id="a-0", prompt_token_ids=(1, 2, 3), path="full", sampling=SAMPLING)

OTHER_SAMPLING: dict[str, Any] = {
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {7: 1.0},
    "seed": 3,
    "stop": ("x",),
    "stop_token_ids": frozenset({4}),
    "ignore_eos": True,
    "min_tokens": 2,
    "shows_stop": True,
    "logprobs": 0,
    "prompt_logprobs": 0,
    "grammar": Grammar(digest="g", vocab_size=8),
}
"""Another value for every field: a new field has to be added here, which proves that it changes the key."""
OTHER_REQUEST: dict[str, Any] = {
    "prompt_token_ids": (1, 2, 4),
    "path": "shallow",
    "sampling": replace(SAMPLING, max_tokens=7),
    "while_loading": WhileLoading.DEGRADE,
    "cache_salt": "acme",
    "remote": RemoteCall(endpoint="completions", model="m", body=b"{}", is_stream=False, num_prompt_tokens=1),
}
OTHER_ORIGIN: dict[str, Any] = {
    "student": "other",
    "digest": "d2",
    "path": "shallow",
    "head": "cheap",
    "tenant": "acme",
}


def key_of(request: GenerationRequest = REQUEST, origin: Origin = ORIGIN) -> str:
    return cache_key(origin, [request])


@pytest.mark.parametrize("name", [part.name for part in fields(SamplingParams)])
def test_key_changes_with_every_sampling_field(name: str) -> None:
    changed = replace(SAMPLING, **{name: OTHER_SAMPLING[name]})
    assert key_of(replace(REQUEST, sampling=changed)) != key_of()


@pytest.mark.parametrize("name", [part.name for part in fields(GenerationRequest)])
def test_key_changes_with_every_field_of_a_request_that_can_change_its_answer(name: str) -> None:
    if name in NOT_IN_KEY:
        changed: dict[str, Any] = {name: "other"}
        assert key_of(replace(REQUEST, **changed)) == key_of()
    else:
        assert key_of(replace(REQUEST, **{name: OTHER_REQUEST[name]})) != key_of()


@pytest.mark.parametrize("name", [part.name for part in fields(Origin)])
def test_key_changes_with_who_answers_and_for_whom(name: str) -> None:
    assert key_of(origin=replace(ORIGIN, **{name: OTHER_ORIGIN[name]})) != key_of()


def test_key_of_no_tenant_is_not_that_of_a_tenant_called_none() -> None:
    assert key_of(origin=replace(ORIGIN, tenant="None")) != key_of(origin=replace(ORIGIN, tenant=""))
    assert key_of(origin=replace(ORIGIN, tenant="None")) != key_of()


def test_key_does_not_depend_on_the_order_of_maps_and_sets() -> None:
    one = replace(SAMPLING, logit_bias={1: 1.0, 20: 2.0}, stop_token_ids=frozenset({8, 16, 3}))
    two = replace(SAMPLING, logit_bias={20: 2.0, 1: 1.0}, stop_token_ids=frozenset({3, 16, 8}))
    assert key_of(replace(REQUEST, sampling=one)) == key_of(replace(REQUEST, sampling=two))


def test_key_tells_several_choices_and_prompts_apart() -> None:
    other = replace(REQUEST, prompt_token_ids=(1, 2), id="b")
    rest = replace(REQUEST, prompt_token_ids=(3, 1, 2, 3))
    keys = [
        cache_key(ORIGIN, requests)
        for requests in ([REQUEST], [REQUEST, REQUEST], [REQUEST, other], [other, REQUEST], [other, rest])
    ]
    assert len(set(keys)) == len(keys)


def test_key_is_the_same_for_prompts_that_are_equal_but_not_shared() -> None:
    assert key_of(replace(REQUEST, prompt_token_ids=(*REQUEST.prompt_token_ids[:2], 3))) == key_of()


def test_key_names_student_and_path_and_nothing_of_the_request() -> None:
    key = key_of(origin=replace(ORIGIN, tenant="acme"))
    assert key.startswith(key_prefix("tiny", "full"))
    assert key.startswith(key_prefix("tiny"))
    student, path, digest = key.split(":")
    assert (student, path) == ("tiny", "full")
    assert len(digest) == 64
    assert "acme" not in key
    assert path_of(key) == "full"


def test_key_refuses_a_kind_it_cannot_describe() -> None:
    @dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
    class Odd(SamplingParams):
        extra: object = dataclasses.field(default_factory=object)

    with pytest.raises(TypeError, match="cache key"):
        key_of(replace(REQUEST, sampling=Odd(max_tokens=8)))
