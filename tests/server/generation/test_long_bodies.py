"""What a client may send or ask for in length is read, prepared and written beside the loop, and what cannot fit is not
even tokenised."""

import importlib
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engines.scripted import Line
from server.settings.config import Limits
from server.telemetry.request_log import log_request
from tests.server.conftest import CONTEXT_TOKENS, Served, Start, StartPool, until

LABEL = {"label": "x" * 100_000}
"""Makes a body long, and its prompt no longer."""

Ask = Callable[[Served, bool], httpx.Response]


def ask_chat(served: Served, is_long: bool, **fields: Any) -> httpx.Response:
    return served.chat("hello", temperature=0, **({"metadata": LABEL} if is_long else {}), **fields)


def ask_completion(served: Served, is_long: bool) -> httpx.Response:
    return served.post("/v1/completions", {"model": "auto", "prompt": "hello", "user": "x" * 100_000 * is_long})


def ask_response(served: Served, is_long: bool) -> httpx.Response:
    return served.post("/v1/responses", {"model": "auto", "input": "hello", "metadata": LABEL if is_long else {}})


def ask_message(served: Served, is_long: bool, path: str = "/v1/messages") -> httpx.Response:
    messages = [{"role": "user", "content": "hello"}]
    return served.post(
        path, {"model": "auto", "max_tokens": 9, "messages": messages, "metadata": LABEL if is_long else {}}
    )


def ask_count(served: Served, is_long: bool) -> httpx.Response:
    return ask_message(served, is_long, "/v1/messages/count_tokens")


def ask_tokens(served: Served, is_long: bool) -> httpx.Response:
    return served.post("/tokenize", {"prompt": "x" * (5000 if is_long else 5), "return_token_strs": True})


def ask_text(served: Served, is_long: bool) -> httpx.Response:
    return served.post("/detokenize", {"tokens": [65] * (5000 if is_long else 5)})


def ask_scores(served: Served, is_long: bool, **fields: Any) -> httpx.Response:
    """A long answer: 100 tokens with 20 alternatives each."""
    tokens: dict[str, Any] = {"max_tokens": 100 if is_long else 2, "logprobs": True, "top_logprobs": 20}
    return served.chat("many", temperature=0, **tokens, **fields)


def ask_scored_stream(served: Served, is_long: bool) -> httpx.Response:
    """From the cache, so that all of it comes at once."""
    ask_scores(served, is_long)
    return ask_scores(served, is_long, stream=True)


SEAMS: dict[str, tuple[str, str, Ask]] = {
    "a body is decoded": ("server.generation.limits", "decode_body", ask_chat),
    "a body's shape is checked": ("server.generation.limits", "check_shape", ask_completion),
    "a chat's fields are checked": ("server.api.chat", "structure_of", ask_chat),
    "a chat is read for its task": ("server.api.chat", "conversation_in", ask_chat),
    "a chat is rendered and tokenised": ("server.api.chat", "encode_messages", ask_chat),
    "prompts are tokenised": ("server.api.completions", "encode_prompt", ask_completion),
    "prompts are read for their task": ("server.api.completions", "prompt_text", ask_completion),
    "sampling is checked": ("server.api.chat", "sampling_params", ask_chat),
    "a completion is planned": ("server.api.completions", "choice_requests", ask_completion),
    "a response is converted": ("server.api.responses", "chat_request", ask_response),
    "a response's items are converted": ("server.api.responses", "messages_of", ask_response),
    "a message is converted": ("server.api.messages", "messages_of", ask_message),
    "a message is counted": ("server.api.messages", "encode_messages", ask_count),
    "an answer is looked for in the cache": ("server.generation.supply", "cache_key", ask_chat),
    "an answer is kept": ("router.cache.result_cache", "encode_entry", ask_scores),
    "a kept answer is read": ("router.cache.result_cache", "decode_entry", ask_scored_stream),
    "/tokenize": ("server.api.tokenize", "_tokenized", ask_tokens),
    "/detokenize": ("server.api.tokenize", "check_token_ids", ask_text),
    "an answer is written": ("server.api.chat_body", "content_logprobs", ask_scores),
    "a stream is written": ("server.api.chat_body", "content_logprobs", ask_scored_stream),
}


@pytest.mark.parametrize(("module", "name", "ask"), SEAMS.values(), ids=SEAMS)
def test_long_work_leaves_the_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch, module: str, name: str, ask: Ask
) -> None:
    threads: list[threading.Thread] = []
    loops: list[threading.Thread] = []
    real = getattr(importlib.import_module(module), name)

    def watched(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return real(*arguments, **options)

    def logged(*arguments: Any, **options: Any) -> None:
        loops.append(threading.current_thread())
        log_request(*arguments, **options)

    monkeypatch.setattr("server.http.middleware.log_request", logged)
    monkeypatch.setattr(f"{module}.{name}", watched)
    served = start({"many": Line(pieces=("w",) * 100)})
    assert ask(served, False).status_code == 200
    assert until(lambda: bool(threads and loops))
    assert set(threads) == set(loops)
    threads.clear()
    assert ask(served, True).status_code == 200
    assert until(lambda: bool(threads))
    assert not set(threads) & set(loops)


TOO_LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 600}]}),
    "many messages": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "xxxxx"}] * 200}),
    "completion": ("/v1/completions", {"prompt": "x" * 600}),
    "one of several prompts": ("/v1/completions", {"prompt": ["x", "x" * 600]}),
    "response": ("/v1/responses", {"input": "x" * 600}),
    "response of many items": ("/v1/responses", {"input": [{"role": "user", "content": "xxxxx"}] * 200}),
    "route": ("/v1/route", {"prompt": "x" * 600}),
}
TOO_LONG_MESSAGES = {
    "one": [{"role": "user", "content": "x" * 600}],
    "many": [{"role": "user", "content": "xxxxx"}] * 200,
    "many blocks": [{"role": "user", "content": [{"type": "text", "text": "xxxxx"}] * 200}],
}


class Encoded:
    """The texts that were tokenised."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        real = type(served.student.tokenizer).encode

        def encode(tokenizer: Any, text: str, **options: Any) -> list[int]:
            self.texts.append(text)
            return real(tokenizer, text, **options)

        monkeypatch.setattr(type(served.student.tokenizer), "encode", encode)


@pytest.mark.parametrize(("path", "body"), TOO_LONG.values(), ids=TOO_LONG)
def test_what_cannot_fit_is_refused_before_it_is_tokenised(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    encoded = Encoded(served, monkeypatch)
    response = served.post(path, {"model": "tiny", **body})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f" tokens > {CONTEXT_TOKENS - 1} maximum" in error["message"]
    assert "prompt has at least" in error["message"]
    assert error["param"] == ("input" if path == "/v1/responses" else next(iter(body)))
    assert not [text for text in encoded.texts if len(text) > 1]


@pytest.mark.parametrize("messages", TOO_LONG_MESSAGES.values(), ids=TOO_LONG_MESSAGES)
def test_message_that_cannot_fit_is_refused_before_it_is_tokenised(
    served: Served, monkeypatch: pytest.MonkeyPatch, messages: list[Any]
) -> None:
    encoded = Encoded(served, monkeypatch)
    response = served.post("/v1/messages", {"model": "tiny", "max_tokens": 9, "messages": messages})
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert "prompt is too long" in error["message"]
    assert not [text for text in encoded.texts if len(text) > 1]


def test_what_is_tokenised_is_what_may_fit(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start(limits=Limits(max_prompt_tokens=100))
    encoded = Encoded(served, monkeypatch)
    assert served.post("/v1/completions", {"model": "tiny", "prompt": "x" * 100}).status_code == 200
    assert served.post("/v1/completions", {"model": "tiny", "prompt": "x" * 101}).status_code == 400
    assert encoded.texts == ["x" * 100]


def test_where_no_bound_is_proven_the_text_is_tokenised(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = Encoded(served, monkeypatch)
    monkeypatch.setattr(type(served.student.tokenizer), "least_tokens", lambda *_: 0)
    response = served.post("/v1/completions", {"model": "tiny", "prompt": "x" * 600})
    assert response.json()["error"]["message"].startswith("prompt is too long: 600 tokens")
    assert encoded.texts == ["x" * 600]


def test_a_student_that_cannot_hold_a_prompt_gives_way_to_one_that_may(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start_pool({"small": (), "large": ()})
    small = served.context.students[0].tokenizer
    real = type(small).least_tokens
    monkeypatch.setattr(
        type(small), "least_tokens", lambda tokenizer, text: 10_000 if tokenizer is small else real(tokenizer, text)
    )
    long = "x" * 505  # longer than 511 with the template, by characters
    assert served.post("/v1/completions", {"model": "auto", "prompt": "x"}).json()["model"] == "small"
    response = served.chat(long[:440], max_tokens=1)
    assert response.status_code == 200
    assert "prompt has at least 10000 tokens" in served.chat("x" * 600).json()["error"]["message"]
