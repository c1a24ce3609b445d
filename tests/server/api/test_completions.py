"""`/v1/completions` as the official client sees it."""

from typing import Any

import openai
import pytest

from tests.server.conftest import CONTEXT_TOKENS, Served, events_of


def create(served: Served, prompt: Any = "hello", **fields: Any) -> Any:
    return served.client.completions.create(model="auto", prompt=prompt, **fields)


def test_completion_answers_official_client(served: Served) -> None:
    answer = create(served)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len("hello")


def test_completion_defaults_to_sixteen_tokens(served: Served) -> None:
    answer = create(served, "long")
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def choices_of(served: Served, is_stream: bool, **fields: Any) -> list[Any]:
    """The choices of an answer, or of all chunks, as plain JSON: OpenAI's own completion chunks carry a null
    finish_reason, which its client's model of them does not allow when it is strict."""
    response = served.post("/v1/completions", {"model": "auto", "stream": is_stream, **fields})
    bodies = events_of(response.content)[:-1] if is_stream else [response.json()]
    return [choice for body in bodies for choice in body["choices"]]


@pytest.mark.parametrize(
    ("prompt", "token_ids"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_completion_takes_every_kind_of_prompt(served: Served, prompt: Any, token_ids: list[tuple[int, ...]]) -> None:
    answer = create(served, prompt)
    assert [choice.index for choice in answer.choices] == list(range(len(token_ids)))
    assert [request.prompt_token_ids for request in served.engine.submitted[-len(token_ids) :]] == token_ids


@pytest.mark.parametrize("prompt", ["", [], [[]], ["a", 1], ["a", [1]], [258], [[258]], [-1]])
def test_completion_refuses_bad_prompts(served: Served, prompt: Any) -> None:
    response = served.post("/v1/completions", {"model": "auto", "prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("prompt")


def test_completion_orders_choices_by_prompt(served: Served) -> None:
    answer = create(served, ["stop here", "hello"], n=2, stop="END")
    assert [choice.text for choice in answer.choices] == ["one two ", "one two ", "Hello, world!", "Hello, world!"]
    assert answer.usage.prompt_tokens == len("stop here") + len("hello")


@pytest.mark.parametrize("prompt", ["hé", [104, 195, 169]])
@pytest.mark.parametrize("is_stream", [False, True])
def test_completion_echo_puts_the_prompt_first(served: Served, prompt: Any, is_stream: bool) -> None:
    choices = choices_of(served, is_stream, prompt=prompt, echo=True)
    assert "".join(choice["text"] for choice in choices) == "héHello, world!"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_completion_logprobs_have_running_offsets(served: Served, is_stream: bool) -> None:
    choices = choices_of(served, is_stream, prompt="hello", logprobs=2)
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert [token for part in parts for token in part["tokens"]] == ["Hello", ",", " world", "!"]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 5, 6, 12]
    assert parts[0]["top_logprobs"][0] == {"Hello": -0.5, "Hello1": -1.5}


def test_completion_stream_usage_comes_last(served: Served) -> None:
    body = {"model": "auto", "prompt": "hello", "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, _ = events_of(served.post("/v1/completions", body).content)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)


def test_completion_stream_reads_in_the_official_client(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with client, client.completions.create(model="auto", prompt="hello", stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == "Hello, world!"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"n": 17, "prompt": ["a", "b"]}, "n"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"max_tokens": -2}, "max_tokens"),
    ],
)
def test_completion_refuses_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    response = served.post("/v1/completions", {"model": "auto", "prompt": "hello", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_completion_accepts_best_of_one(served: Served) -> None:
    assert served.post("/v1/completions", {"model": "auto", "prompt": "x", "best_of": 1, "suffix": None}).is_success


def scores_of(choices: list[Any]) -> dict[str, list[Any]]:
    """Every list of the choices' logprobs, put together."""
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    return {name: [entry for part in parts for entry in part[name] or ()] for name in parts[0]}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("prompt", ["hey", [104, 101, 121]])
def test_completion_echo_scores_the_prompt(served: Served, prompt: Any, is_stream: bool) -> None:
    choices = choices_of(served, is_stream, prompt=prompt, echo=True, logprobs=2)
    assert "".join(choice["text"] for choice in choices) == "heyHello, world!"
    scores = scores_of(choices)
    assert scores["tokens"] == ["h", "e", "y", "Hello", ",", " world", "!"]
    assert scores["token_logprobs"] == [None, *[-0.5] * 6]
    assert scores["top_logprobs"][:2] == [None, {"e": -0.5, "e1": -1.5}]
    assert scores["text_offset"] == [0, 1, 2, 3, 8, 9, 15]


@pytest.mark.parametrize("is_stream", [False, True])
def test_completion_without_new_tokens_scores_the_prompt_alone(served: Served, is_stream: bool) -> None:
    """As evaluation harnesses ask."""
    choices = choices_of(served, is_stream, prompt="hey", echo=True, logprobs=0, max_tokens=0)
    assert "".join(choice["text"] for choice in choices) == "hey"
    assert scores_of(choices)["token_logprobs"] == [None, -0.5, -0.5]
    assert choices[-1]["finish_reason"] == "length"
    assert served.engine.submitted[-1].sampling.max_tokens == 0


def test_completion_scores_a_prompt_of_one_token(served: Served) -> None:
    choices = choices_of(served, True, prompt="h", echo=True, logprobs=1, max_tokens=0)
    assert scores_of(choices) == {"tokens": ["h"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}


def test_completion_scores_every_prompt_apart(served: Served) -> None:
    choices = choices_of(served, False, prompt=["hey", "ho"], echo=True, logprobs=1, max_tokens=1)
    assert [choice["logprobs"]["tokens"] for choice in choices] == [["h", "e", "y", "Hello"], ["h", "o", "Hello"]]


def test_completion_scores_read_in_the_official_client(served: Served) -> None:
    """The client's model of them allows no null, but OpenAI sends one, and readers of scores expect it."""
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with client:
        answer = client.completions.create(model="auto", prompt="hey", echo=True, logprobs=1, max_tokens=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]


def test_completion_without_echo_asks_nothing_of_the_prompt(served: Served) -> None:
    create(served, "hey", logprobs=1, max_tokens=1)
    assert served.engine.submitted[-1].sampling.prompt_logprobs is None


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(-1, CONTEXT_TOKENS - 3), (508, 508), (510, 509), (2**40, 509), (None, 16)]
)
def test_completion_goes_on_as_far_as_the_context(served: Served, max_tokens: int | None, expected: int) -> None:
    response = served.post("/v1/completions", {"model": "auto", "prompt": "hey", "max_tokens": max_tokens})
    assert response.status_code == 200
    assert served.engine.submitted[-1].sampling.max_tokens == expected
