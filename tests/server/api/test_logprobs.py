"""Tokens as log-probabilities show them: parts of characters, special ones, and those of the same text; and where they
begin in the text."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from engines.scripted import Line
from engines.sequence import TokenLogprob
from server.api.logprobs import best_by_text, text_of_bytes, token_text
from server.api.text_offsets import TextOffsets
from server.settings.config import ServerConfig
from tests.server.conftest import Served, Start, events_of, run_server
from tests.server.random_engine import open_random

EMOJI = list("😀 你好".encode())
"""Token ids of a student whose tokens are bytes."""
IM_END = 257


def name(token_id: int) -> str:
    return f"<{token_id}>"


def scored(token: bytes, logprob: float = -1.0, *others: TokenLogprob, token_id: int = 0) -> TokenLogprob:
    return TokenLogprob(token_id=token_id, logprob=logprob, token_bytes=token, alternatives=others)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b"a b", "a b"),
        ("你".encode(), "你"),
        (b"\xf0\x9f", r"bytes:\xf0\x9f"),
        (b"\x98\x80 a", r"bytes:\x98\x80\x20\x61"),
        (b"a\xe4", r"bytes:\x61\xe4"),
        (b"\x00", "\x00"),
        ("\ufffd".encode(), "\ufffd"),
    ],
)
def test_token_is_its_text_or_its_bytes(token: bytes, text: str) -> None:
    assert text_of_bytes(token) == token_text(scored(token), name) == text


def test_token_without_text_has_its_name() -> None:
    assert token_text(scored(b"", token_id=7), name) == "<7>"


def test_same_text_has_the_best_value() -> None:
    chosen = scored(b"a", -3.0, scored(b"a", -1.0, token_id=1), scored(b"b", -2.0), scored(b"b", -2.5))
    assert best_by_text(chosen, name) == {"a": -1.0, "b": -2.0}


def test_parts_of_characters_and_special_tokens_are_told_apart() -> None:
    others = [scored(b"\xf0\x9f"), scored(b"\xe4\xbd"), scored(b"", token_id=1), scored(b"", token_id=2)]
    assert list(best_by_text(scored(b"x", -9.0, *others), name)) == [
        r"bytes:\xf0\x9f",
        r"bytes:\xe4\xbd",
        "<1>",
        "<2>",
        "x",
    ]


OFFSETS: dict[str, tuple[str, list[bytes], list[int]]] = {
    "whole": ("a 你b", [b"a", b" ", "你".encode(), b"b"], [0, 1, 2, 3]),
    "parts": ("😀 你", [b"\xf0\x9f", b"\x98\x80", b" \xe4", b"\xbd\xa0"], [0, 0, 1, 2]),
    "a special one in the text": ("a<0>b", [b"a", b"", b"b"], [0, 1, 4]),
    "a special one that was added": ("ab", [b"", b"a", b"b"], [0, 0, 1]),
    "a blank that is left out": ("Hello you", [b" Hello", b" you"], [0, 5]),
    "a blank behind one that was added": ("Hello", [b"", b" Hel", b"lo"], [0, 0, 3]),
    "half a character before a special one": ("\ufffd<0>b", [b"\xe4", b"", b"b"], [0, 1, 4]),
    "bytes that are no character": ("\ufffdb", [b"\xff", b"b"], [0, 1]),
    "another spelling": ("é", [b"e", b"\xcc\x81", b"!"], [0, 1, 1]),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets_of_an_echoed_prompt_lie_in_it(case: str) -> None:
    echo, tokens, wanted = OFFSETS[case]
    offsets = TextOffsets(echo, len(tokens), name)
    assert [offsets.place(scored(token)) for token in tokens] == wanted
    assert offsets.place(scored(b"answer")) == len(echo)
    assert offsets.place(scored(b"")) == offsets.place(scored(b"")) == len(echo) + len("answer")


def test_offsets_of_an_answer_without_echo_begin_at_its_begin() -> None:
    offsets = TextOffsets("", 0, name)
    assert [offsets.place(scored(bytes([byte]))) for byte in "a😀b".encode()] == [0, 1, 1, 1, 1, 2]


@pytest.fixture(scope="module")
def at_random() -> Iterator[Served]:
    """A real engine that answers with random bytes."""
    with run_server([open_random()], ServerConfig()) as running:
        yield running


def complete(served: Served, *, is_stream: bool = False, **fields: Any) -> tuple[str, dict[str, list[Any]]]:
    """Text and log-probabilities of a completion, put together."""
    body = {"model": "auto", "temperature": 1, "seed": 1, "logprobs": 5, "stream": is_stream, **fields}
    response = served.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    bodies = events_of(response.content)[:-1] if is_stream else [response.json()]
    choices = [choice for body in bodies for choice in body["choices"]]
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    return "".join(choice["text"] for choice in choices), {
        key: [entry for part in parts for entry in part[key]] for key in parts[0]
    }


@pytest.mark.parametrize("is_stream", [False, True])
def test_prompt_of_parts_of_characters_is_scored(at_random: Served, is_stream: bool) -> None:
    text, scores = complete(at_random, prompt=EMOJI, echo=True, max_tokens=8, ignore_eos=True, is_stream=is_stream)
    assert text.startswith("😀 你好")
    assert scores["tokens"][:5] == [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80", " "]
    assert scores["text_offset"][: len(EMOJI)] == [0, 0, 0, 0, 1, 2, 2, 2, 3, 3, 3]
    assert scores["text_offset"][len(EMOJI)] == len("😀 你好")
    assert max(scores["text_offset"]) <= len(text)
    assert scores["top_logprobs"][0] is None
    for token, value, top in zip(
        scores["tokens"][1:], scores["token_logprobs"][1:], scores["top_logprobs"][1:], strict=True
    ):
        assert len(top) == (5 if token in sorted(top, key=top.__getitem__)[-5:] else 6)
        assert top[token] == value


def test_special_tokens_have_their_names(at_random: Served) -> None:
    prompt = [*b"a", IM_END, *b"b"]
    text, scores = complete(at_random, prompt=prompt, echo=True, max_tokens=0)
    assert text == "a<|im_end|>b"
    assert scores["tokens"] == ["a", "<|im_end|>", "b"]
    assert scores["text_offset"] == [0, 1, 11]


def test_end_token_of_a_scored_answer_has_its_name(at_random: Served) -> None:
    bias = {str(IM_END): 100}
    text, scores = complete(at_random, prompt="a", echo=True, max_tokens=4, logit_bias=bias)
    assert (text, scores["tokens"], scores["text_offset"]) == ("a", ["a", "<|im_end|>"], [0, 1])


@pytest.mark.parametrize("is_stream", [False, True])
def test_half_a_character_at_the_end_is_held_back(at_random: Served, is_stream: bool) -> None:
    bias = {"240": 100}  # the first byte of an emoji
    text, scores = complete(at_random, prompt="a", max_tokens=1, logit_bias=bias, is_stream=is_stream)
    assert (text, scores["tokens"], scores["text_offset"]) == ("", [r"bytes:\xf0"], [0])


def test_chat_tells_parts_and_special_tokens_apart(at_random: Served) -> None:
    bias = {"240": 100, "159": 99.5, str(IM_END): 99, "65": 98.5}
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "a"}],
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": 2,
        "logit_bias": bias,
        "temperature": 0,
    }
    answer = at_random.post("/v1/chat/completions", body).json()["choices"][0]
    assert answer["message"]["content"] in ("", "\ufffd")
    for entry in answer["logprobs"]["content"]:
        assert entry["token"].startswith("bytes:")
        tops = entry["top_logprobs"]
        assert len({top["token"] for top in tops}) == len(tops) == 20
        for top in tops:
            assert top["token"] == text_of_bytes(bytes(top["bytes"])) or top["token"] in ("<|im_start|>", "<|im_end|>")


def test_offsets_of_what_a_stop_string_cut_off_lie_in_the_text(start: Start) -> None:
    served = start({"cut": Line(pieces=("one ", "EN", "D"))})
    body = {"model": "auto", "prompt": "cut", "logprobs": 0, "stop": "END"}
    choice = json.loads(served.post("/v1/completions", body).content)["choices"][0]
    assert choice["text"] == "one "
    assert all(offset <= len(choice["text"]) for offset in choice["logprobs"]["text_offset"])
