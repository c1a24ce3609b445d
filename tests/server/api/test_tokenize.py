"""/tokenize and /detokenize: what they answer, and what they cost a key."""

import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.settings.config import KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server

KEY = "fk-" + "k" * 43


@pytest.fixture
def metered(student: TinyStudent) -> Iterator[Served]:
    """A server with a key of 3,000 tokens a minute."""
    keys = KeysConfig(sha256=(hashlib.sha256(KEY.encode()).hexdigest(),), tokens_per_minute=3000)
    with run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig(keys=keys)) as running:
        yield running


def ask(served: Served, path: str, **body: Any) -> httpx.Response:
    return served.post(path, body, headers={"authorization": f"Bearer {KEY}"})


def num_left(response: httpx.Response) -> int:
    return int(response.headers["x-ratelimit-remaining-tokens"])


def test_texts_and_tokens_are_turned_into_each_other(served: Served) -> None:
    reply = served.post("/tokenize", {"prompt": "hi<|im_end|>", "return_token_strs": True}).json()
    assert reply == {
        "count": 3,
        "max_model_len": 512,
        "tokens": [104, 105, 257],
        "token_strs": ["h", "i", "<|im_end|>"],
    }
    assert served.post("/detokenize", {"tokens": reply["tokens"]}).json() == {"prompt": "hi<|im_end|>"}


def test_texts_longer_than_the_context_are_counted(served: Served) -> None:
    assert served.post("/tokenize", {"prompt": "x" * 200_000}).json()["count"] == 200_000


@pytest.mark.parametrize(
    ("path", "body", "num_tokens"),
    [
        ("/tokenize", {"prompt": "x" * 1000}, 1000),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 1000}]}, 1019),
        ("/detokenize", {"tokens": [65] * 1000}, 1000),
        ("/v1/route", {"prompt": "x" * 500}, 500),
    ],
)
def test_work_costs_the_tokens_that_it_read(metered: Served, path: str, body: dict[str, Any], num_tokens: int) -> None:
    before = num_left(ask(metered, "/tokenize", prompt=""))
    assert ask(metered, path, **body).status_code == 200
    spent = before - num_left(ask(metered, "/tokenize", prompt=""))
    assert num_tokens - 60 < spent <= num_tokens + 60  # the headers round, and the limit refills


def test_a_key_without_tokens_is_told_when_to_come_back(metered: Served) -> None:
    assert ask(metered, "/tokenize", prompt="x" * 2900).status_code == 200
    response = ask(metered, "/tokenize", prompt="x" * 2900)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert ask(metered, "/detokenize", tokens=[65] * 2900).status_code == 429


def test_a_text_of_more_bytes_than_a_minute_s_tokens_is_counted_all_the_same(metered: Served) -> None:
    assert ask(metered, "/tokenize", messages=[{"role": "user", "content": "<|im_end|>" * 500}]).status_code == 200


def test_a_prompt_that_was_tokenised_in_vain_costs_its_tokens(metered: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(metered.student.tokenizer), "least_tokens", lambda *_: 0)
    before = num_left(ask(metered, "/tokenize", prompt=""))
    response = ask(metered, "/v1/completions", model="auto", prompt="x" * 1000)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    spent = before - num_left(ask(metered, "/tokenize", prompt=""))
    assert 940 < spent <= 1000


def test_what_is_refused_costs_nothing(metered: Served) -> None:
    for _ in range(5):
        assert ask(metered, "/tokenize", prompt="x" * 2000, messages=[]).status_code == 400
        assert ask(metered, "/detokenize", tokens=[9999] * 500).status_code == 400
    assert num_left(ask(metered, "/tokenize", prompt="")) > 2900


def test_nulls_are_the_same_as_nothing(served: Served) -> None:
    names = ("add_special_tokens", "return_token_strs", "add_generation_prompt", "continue_final_message", "tools")
    for prompt in ({"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}):
        plain = served.post("/tokenize", prompt)
        assert (
            served.post("/tokenize", prompt | dict.fromkeys((*names, "temperature", "brand_new"))).json()
            == plain.json()
        )
