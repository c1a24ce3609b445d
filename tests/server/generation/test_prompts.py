"""From messages and texts to prompt tokens, and which part of them is classified."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import BadRequest, InvalidParameter
from server.context import make_context
from server.generation.prompts import (
    TextPrompt,
    check_token_ids,
    conversation_in,
    encode_messages,
    encode_prompt,
    prompt_text,
    split_prompt,
)
from server.generation.rendering import Rendering
from server.settings.config import ServerConfig
from server.students.student import ServedStudent
from server.wire.chat import Message, TextPart
from tests.server.conftest import TEMPLATE, TinyStudent, make_engine, make_manifest, make_tokenizer, open_scripted

VOCAB_SIZE = 258


def make_served(template: str | None = TEMPLATE) -> ServedStudent:
    student = TinyStudent(folder=Path(), manifest=make_manifest(), tokenizer=make_tokenizer(template))
    return make_context(ServerConfig(), [open_scripted(student, make_engine({}))]).students[0]


def spoken(served: ServedStudent, ids: tuple[int, ...]) -> str:
    return served.tokenizer.decode(ids, skip_special=False)


async def test_messages_go_through_the_template() -> None:
    served = make_served()
    ids = encode_messages(served, [Message(role="user", content="hi")])
    assert spoken(served, ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = encode_messages(served, [Message(role="user", content="hi")], rendering=Rendering(adds_prompt=False))
    assert spoken(served, ids) == "<|im_start|>user\nhi<|im_end|>\n"


async def test_developer_messages_are_system_messages_to_a_template() -> None:
    served = make_served()
    ids = encode_messages(served, [Message(role="developer", content="be kind")])
    assert spoken(served, ids).startswith("<|im_start|>system\nbe kind")


async def test_parts_of_a_message_are_lines() -> None:
    served = make_served()
    parts = [TextPart(type="text", text="one"), TextPart(type="text", text="two")]
    assert "one\ntwo" in spoken(served, encode_messages(served, [Message(role="user", content=parts)]))


@pytest.mark.parametrize(("refusal", "expected"), [(None, ""), ("I cannot", "I cannot")])
async def test_assistant_s_message_without_content_has_its_refusal(refusal: str | None, expected: str) -> None:
    served = make_served()
    message = Message(role="assistant", content=None, refusal=refusal)
    assert f"assistant\n{expected}<|im_end|>" in spoken(served, encode_messages(served, [message]))


async def test_message_without_content_is_refused_by_its_place() -> None:
    messages = [Message(role="user", content="hi"), Message(role="user", content=None)]
    with pytest.raises(InvalidParameter) as caught:
        encode_messages(make_served(), messages)
    assert caught.value.param == "messages[1].content"


async def test_student_without_a_template_takes_no_messages() -> None:
    with pytest.raises(BadRequest, match="/v1/completions"):
        encode_messages(make_served(None), [Message(role="user", content="hi")])


async def test_template_that_leaves_nothing_is_an_error() -> None:
    with pytest.raises(InvalidParameter, match="nothing is left"):
        encode_messages(make_served("{# nothing #}"), [Message(role="user", content="hi")])


def test_conversation_has_the_last_words_and_what_came_before() -> None:
    messages = [
        Message(role="system", content="be kind"),
        Message(role="user", content="one"),
        Message(role="assistant", content="two"),
        Message(role="user", content="three"),
    ]
    conversation = conversation_in(messages)
    assert conversation.last == "three"
    assert "one" in conversation.earlier
    assert list(conversation.system) == ["be kind"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompt_is_split_into_one_entry_each(prompt: Any, expected: list[TextPrompt]) -> None:
    assert split_prompt(prompt) == expected


@pytest.mark.parametrize("prompt", [[], ["a", 1], [[1], 2], ["a", [1]]])
def test_prompt_that_mixes_kinds_or_is_empty_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        split_prompt(prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(("ids", "is_known"), [([0, VOCAB_SIZE - 1], True), ([VOCAB_SIZE], False)])
def test_token_ids_are_the_student_s(ids: list[int], is_known: bool) -> None:
    served = make_served()
    if is_known:
        assert check_token_ids(served, ids, "prompt") == tuple(ids)
        return
    with pytest.raises(InvalidParameter, match=rf"{VOCAB_SIZE} is no token id"):
        check_token_ids(served, ids, "prompt")


async def test_prompt_keeps_its_text_only_for_an_echo() -> None:
    served = make_served()
    for prompt in ("hi", list(b"hi")):
        assert encode_prompt(served, prompt).text == ""
        kept = encode_prompt(served, prompt, keeps_text=True)
        assert (kept.text, kept.token_ids) == ("hi", tuple(b"hi"))


async def test_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="nothing to complete"):
        encode_prompt(make_served(), "")


async def test_text_to_classify_leaves_out_ids_that_the_student_does_not_have() -> None:
    assert prompt_text(make_served(), [*b"hi", 9999]) == "hi"
