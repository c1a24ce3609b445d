"""`/v1/chat/completions` as the official client sees it; its models check every answer strictly."""

from typing import Any

import openai
import pytest

from engines.scripted import Line
from tests.server.conftest import CONTEXT_TOKENS, Served, Start, events_of


def create(served: Served, prompt: str = "hello", **fields: Any) -> Any:
    return served.client.chat.completions.create(
        model=fields.pop("model", "auto"), messages=[{"role": "user", "content": prompt}], **fields
    )


def test_chat_answers_with_required_keys(served: Served) -> None:
    body = served.chat("hello").json()
    assert body["object"] == "chat.completion"
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello, world!", "refusal": None}
    assert choice["logprobs"] is None
    assert choice["finish_reason"] == "stop"


def test_chat_answers_official_client(served: Served) -> None:
    answer = create(served)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")


def test_chat_usage_counts_prompt_once_for_all_choices(served: Served) -> None:
    one, three = create(served).usage, create(served, n=3).usage
    assert one.prompt_tokens == three.prompt_tokens == len("user\nhello\nassistant\n") + 3
    assert (one.completion_tokens, three.completion_tokens) == (4, 12)
    assert three.total_tokens == three.prompt_tokens + 12


def test_chat_usage_reports_cached_tokens(served: Served) -> None:
    assert create(served, "cached").usage.prompt_tokens_details.cached_tokens == 7


def test_chat_stream_repeats_the_whole_answer(served: Served) -> None:
    chunks = list(create(served, "long", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(f"w{i} " for i in range(50))
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_chat_stream_usage_comes_last_and_alone(served: Served) -> None:
    chunks = list(create(served, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices for chunk in chunks if chunk.usage] == [[]]
    assert chunks[-1].usage.completion_tokens == 4


def test_chat_stream_interleaves_choices_by_index(served: Served) -> None:
    texts = {0: "", 1: "", 2: ""}
    reasons = {}
    for chunk in create(served, "long", n=3, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert set(texts.values()) == {"".join(f"w{i} " for i in range(50))}
    assert reasons == {0: "stop", 1: "stop", 2: "stop"}


def test_chat_choices_are_ordered_and_seeded_apart(served: Served) -> None:
    answer = create(served, n=3, seed=-5, extra_headers={"x-request-id": "seeds"})
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    requests = [request for request in served.engine.submitted if request.id.startswith("seeds-")]
    assert [request.id for request in requests] == ["seeds-0", "seeds-1", "seeds-2"]
    seeds = [request.sampling.seed for request in requests]
    assert seeds == [2**63 - 5, 2**63 - 4, 2**63 - 3]


def test_chat_stop_cuts_the_text(served: Served) -> None:
    answer = create(served, "stop here", stop=["nothing", "END"])
    assert answer.choices[0].message.content == "one two "
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_chat_max_tokens_ends_with_length(served: Served, field: str) -> None:
    answer = create(served, "long", **{field: 3})
    assert answer.choices[0].message.content == "w0 w1 w2 "
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("is_stream", [False, True])
def test_chat_logprobs_follow_the_tokens(served: Served, is_stream: bool) -> None:
    answer = create(served, logprobs=True, top_logprobs=2, stream=is_stream)
    parts = [chunk.choices[0] for chunk in answer] if is_stream else answer.choices
    tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
    assert [token.token for token in tokens] == ["Hello", ",", " world", "!"]
    assert bytes(tokens[2].bytes) == b" world"
    assert [top.logprob for top in tokens[0].top_logprobs] == [-0.5, -1.5]


TOOLS = [{"type": "function", "function": {"name": "act"}}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2},
        {"max_tokens": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": "world"},
        {"tools": TOOLS},
        {"tools": TOOLS, "logprobs": True},
    ],
)
@pytest.mark.parametrize("prompt", ["hello", "one piece"])
def test_chat_chunk_with_the_finish_reason_has_an_empty_delta(
    start: Start, fields: dict[str, Any], prompt: str
) -> None:
    served = start({"one piece": Line(pieces=("all at once",))})
    chunks = events_of(served.chat(prompt, stream=True, **fields).content)[:-1]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    last = [choice for choice in choices if choice["finish_reason"] is not None]
    assert len(last) == fields.get("n", 1)
    for choice in last:
        assert (choice["delta"], choice["logprobs"]) == ({}, None)
        assert [other for other in choices if other["index"] == choice["index"]][-1] is choice
    whole = served.chat(prompt, **fields).json()["choices"]
    texts = ["".join(c["delta"].get("content") or "" for c in choices if c["index"] == i) for i in range(len(whole))]
    assert texts == [choice["message"]["content"] for choice in whole]
    scores = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert scores == [entry for choice in whole if choice["logprobs"] for entry in choice["logprobs"]["content"]]


def test_chat_passes_sampling_to_the_engine(served: Served) -> None:
    extra: dict[str, Any] = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True}
    extra |= {"fenhe": {"while_loading": "degrade"}}
    create(
        served,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"65": 3},
        seed=7,
        extra_body=extra,
    )
    request = served.engine.submitted[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)
    assert (sampling.repetition_penalty, sampling.ignore_eos, sampling.seed) == (1.2, True, 7)
    assert dict(sampling.logit_bias) == {65: 3.0}
    assert request.while_loading.value == "degrade"


def test_chat_defaults_are_the_specification_s(served: Served) -> None:
    create(served)
    sampling = served.engine.submitted[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.logprobs) == (1.0, 1.0, None, None)
    assert sampling.max_tokens == 512 - len(served.engine.submitted[-1].prompt_token_ids)


def test_chat_renders_parts_and_developer_messages(served: Served) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert served.post("/v1/chat/completions", {"model": "auto", "messages": messages}).status_code == 200
    ids = served.engine.submitted[-1].prompt_token_ids
    text = served.student.tokenizer.decode(ids, skip_special=False)
    assert text == ("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("model", "path", "answered"),
    [("auto", "full", "tiny"), ("tiny", "full", "tiny"), ("tiny:shallow", "shallow", "tiny:shallow")],
)
def test_chat_model_chooses_the_path(served: Served, model: str, path: str, answered: str) -> None:
    response = served.chat("hello", model=model)
    assert response.headers["x-fenhe-path"] == path
    assert response.headers["x-fenhe-student"] == "tiny"
    assert response.json()["model"] == answered
    assert served.engine.submitted[-1].path == path


def test_chat_unknown_model_is_not_found(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        create(served, model="tiny:deep")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"audio": {}}, "audio", "unsupported_parameter"),
        ({"temperatur": 1}, "temperatur", "unsupported_parameter"),
        ({"fenhe": {"pth": "x"}}, "fenhe.pth", "unsupported_parameter"),
        ({"fenhe": {"task": "cooking"}}, "fenhe.task", "invalid_value"),
        ({"fenhe": {"quality": "best"}}, "fenhe.quality", "invalid_value"),
        ({"fenhe": {"path": ""}}, "fenhe.path", "invalid_value"),
        ({"model": "tiny:full", "fenhe": {"path": "shallow"}}, "fenhe.path", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 33}, "n", "invalid_value"),
        ({"stop": ["a"] * 33}, "stop", "invalid_value"),
        ({"stop": "a" * 1025}, "stop", "invalid_value"),
        ({"stop_token_ids": [258]}, "stop_token_ids", "invalid_value"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "invalid_value"),
        ({"min_tokens": -1}, "min_tokens", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"logit_bias": {"258": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"word": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 1, "2 3": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 1, "": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 1, "12345678901": 1}}, "logit_bias", "invalid_value"),
        ({"max_tokens": -2}, "max_tokens", "invalid_value"),
    ],
)
def test_chat_refuses_by_name(served: Served, fields: dict[str, Any], param: str, code: str) -> None:
    num_before = len(served.engine.submitted)
    response = served.chat("hello", **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert len(served.engine.submitted) == num_before


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": None, "response_format": {"type": "text"}, "tool_choice": "none", "modalities": ["text"]},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k"},
        {"safety_identifier": "s", "parallel_tool_calls": True, "temperature": None, "stop": None, "n": None},
        {"store": True, "reasoning_effort": "low", "verbosity": "high", "metadata": {"a": 1}, "service_tier": "flex"},
        {
            "brand_new": None,
            "keep_alive": "5m",
            "request_id": "mine",
            "prediction": {"type": "content", "content": "x"},
        },
    ],
)
def test_chat_accepts_fields_that_ask_for_nothing(served: Served, fields: dict[str, Any]) -> None:
    assert served.chat("hello", **fields).status_code == 200


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "function", "name": "f", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
    ],
)
def test_chat_refuses_messages_by_place(served: Served, message: dict[str, Any], param: str) -> None:
    response = served.post("/v1/chat/completions", {"model": "auto", "messages": [message]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [-1, 512, 32_000, 2**31, 2**63 - 1])
def test_chat_answers_as_far_as_the_context_goes(served: Served, name: str, value: int) -> None:
    fields: dict[str, Any] = {name: value}
    assert served.chat("hello", **fields).status_code == 200
    request = served.engine.submitted[-1]
    assert request.sampling.max_tokens == CONTEXT_TOKENS - len(request.prompt_token_ids)


def test_chat_streams_without_padding_where_that_is_asked_for(served: Served) -> None:
    before = 'fenhe_ignored_fields_total{field="include_obfuscation"}'
    options = {"include_obfuscation": True}
    assert events_of(served.chat("hello", stream=True, stream_options=options).content)[-1] == "[DONE]"
    assert before in served.http.get("/metrics").text


def test_chat_of_no_tokens_computes_the_prompt_alone(served: Served) -> None:
    assert served.chat("hello", max_tokens=0).json()["choices"][0]["finish_reason"] == "length"
    assert served.engine.submitted[-1].sampling.max_tokens == 0


def test_chat_too_long_prompt_is_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(served, "x" * 600)
    assert caught.value.code == "context_length_exceeded"


def test_chat_degrades_to_a_loaded_path(start: Start) -> None:
    served = start(is_loaded=False)
    served.engine.load(3)
    response = served.chat("hello", fenhe={"while_loading": "degrade"})
    assert response.headers["x-fenhe-path"] == "shallow"
    assert response.json()["choices"][0]["fenhe"] == {"path": "shallow"}
