"""Whether a new answer begins or the last message goes on, and what a chat template is told."""

from collections.abc import Iterator
from typing import Any

import pytest

from server.settings.config import ServerConfig
from tests.server.conftest import (
    SCRIPT,
    Served,
    TinyStudent,
    make_engine,
    make_manifest,
    make_tokenizer,
    open_scripted,
    run_server,
)

USER = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": " Once upon \n"}
ASKED = "<|im_start|>user\nhi<|im_end|>\n"
OPEN = f"{ASKED}<|im_start|>assistant\n Once upon \n"
CLOSED = f"{OPEN}<|im_end|>\n"
NEW = "<|im_start|>assistant\n"
THINKS = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content | trim }}{% endfor %}"
    "{% if enable_thinking %}<think>{% endif %}{{ reasoning_effort }}{{ bos_token }}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def prompt_of(served: Served) -> str:
    return make_tokenizer().decode(list(served.engine.submitted[-1].prompt_token_ids), skip_special=False)


def ask(served: Served, *messages: dict[str, Any], **fields: Any) -> str:
    """The prompt of a chat; /tokenize and /v1/route agree with it."""
    body = {"model": "auto", "messages": list(messages), **fields}
    response = served.post("/v1/chat/completions", body | {"max_tokens": 1, "fenhe": {"cache": False}})
    assert response.status_code == 200, response.text
    prompt_ids = list(served.engine.submitted[-1].prompt_token_ids)
    assert served.post("/tokenize", body).json()["tokens"] == prompt_ids
    assert served.post("/v1/route", body).json()["num_prompt_tokens"] == len(prompt_ids)
    return prompt_of(served)


@pytest.mark.parametrize(
    ("messages", "fields", "prompt"),
    [
        ([USER], {}, ASKED + NEW),
        ([USER], {"add_generation_prompt": True}, ASKED + NEW),
        ([USER], {"add_generation_prompt": False}, ASKED),
        ([USER], {"continue_final_message": True}, ASKED.removesuffix("<|im_end|>\n")),
        ([USER, SAID], {}, OPEN),
        ([USER, SAID], {"continue_final_message": True}, OPEN),
        ([USER, SAID], {"continue_final_message": True, "add_generation_prompt": False}, OPEN),
        ([USER, SAID], {"continue_final_message": False}, CLOSED + NEW),
        ([USER, SAID], {"add_generation_prompt": True}, CLOSED + NEW),
        ([USER, SAID], {"add_generation_prompt": False}, CLOSED),
        ([USER, {**SAID, "content": ""}], {}, ASKED + NEW),
        ([USER, {**SAID, "content": [{"type": "text", "text": " Once upon \n"}]}], {}, OPEN),
        ([USER, SAID, USER], {}, CLOSED + ASKED + NEW),
    ],
)
def test_last_message_goes_on_or_a_new_one_begins(
    served: Served, messages: list[dict[str, Any]], fields: dict[str, Any], prompt: str
) -> None:
    assert ask(served, *messages, **fields) == prompt


def test_calls_that_are_last_are_followed_by_a_new_answer(served: Served) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert ask(served, USER, {"role": "assistant", "tool_calls": [call]}).endswith("</tool_call><|im_end|>\n" + NEW)


@pytest.mark.parametrize(
    ("last", "fields"),
    [
        (SAID, {"continue_final_message": True, "add_generation_prompt": True}),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}]},
            {"continue_final_message": True},
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/route"])
def test_what_cannot_go_on_is_refused(served: Served, path: str, last: dict[str, Any], fields: dict[str, Any]) -> None:
    response = served.post(path, {"model": "auto", "messages": [USER, last], **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "continue_final_message")


def serving(folder: Any, template: str) -> Any:
    student = TinyStudent(folder=folder, manifest=make_manifest(), tokenizer=make_tokenizer(template))
    return run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig())


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("s"), THINKS) as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "[assistant]"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "<think>[assistant]"),
        ({"chat_template_kwargs": {"enable_thinking": False, "unread": [1]}}, "[assistant]"),
        ({"chat_template_kwargs": {"bos_token": "x", "messages": [], "tools": 1, "range": 2}}, "[assistant]"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "[assistant]"),
        ({"reasoning_effort": "high"}, "high[assistant]"),
        ({"reasoning_effort": {"effort": "high"}}, "[assistant]"),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"reasoning_effort": "low"}}, "low[assistant]"),
    ],
    ids=str,
)
def test_template_is_told_what_it_reads(thinking: Served, fields: dict[str, Any], shown: str) -> None:
    assert ask(thinking, USER, **fields) == f"[user]hi{shown}"


def test_template_that_trims_keeps_the_end_of_what_goes_on(thinking: Served) -> None:
    assert ask(thinking, USER, SAID) == "[user]hi[assistant]Once upon \n"


def test_template_that_leaves_out_the_last_message_cannot_continue_it(tmp_path: Any) -> None:
    with serving(tmp_path, "{{ messages[0].content }}") as served:
        response = served.post("/v1/chat/completions", {"model": "auto", "messages": [USER, SAID]})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "continue_final_message")


@pytest.mark.parametrize("path", ["/tokenize", "/v1/route"])
def test_tools_are_in_the_prompt_of_other_endpoints_too(served: Served, path: str) -> None:
    def count(**fields: Any) -> int:
        reply = served.post(path, {"messages": [USER], **fields}).json()
        return int(reply["count"] if path == "/tokenize" else reply["num_prompt_tokens"])

    tools = [{"type": "function", "function": {"name": "f", "description": "d"}}]
    assert served.chat("hi", tools=tools, max_tokens=1).status_code == 200
    assert count(tools=tools) == len(served.engine.submitted[-1].prompt_token_ids)
    assert count(tools=tools, tool_choice="none") == count() < count(tools=tools)
