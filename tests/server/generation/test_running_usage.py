"""Streams that tell their usage with every chunk, as load generators ask for."""

from typing import Any

import pytest

from tests.server.conftest import Served, events_of

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "long"}]},
    "/v1/completions": {"prompt": "long"},
}
ALWAYS = {"include_usage": True, "continuous_usage_stats": True}


def chunks(served: Served, path: str, options: dict[str, Any], **fields: Any) -> list[Any]:
    body = {"model": "auto", **ENDPOINTS[path], "stream": True, "stream_options": options, **fields}
    *found, done = events_of(served.post(path, body).content)
    assert done == "[DONE]"
    return found


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "fields", [{}, {"n": 2}, {"logprobs": 1}, {"fenhe": {"cache": True}, "temperature": 0}], ids=str
)
def test_every_chunk_tells_the_tokens_so_far(served: Served, path: str, fields: dict[str, Any]) -> None:
    if "logprobs" in fields and "chat" in path:
        fields = {"logprobs": True, "top_logprobs": 1}
    for _ in range(2):  # the second one may come from the cache
        *parts, last = chunks(served, path, ALWAYS, max_tokens=9, **fields)
        n = fields.get("n", 1)
        num_prompt = last["usage"]["prompt_tokens"]
        for index in range(n):
            mine = [part["usage"] for part in parts if part["choices"][0]["index"] == index]
            counts = [usage["completion_tokens"] for usage in mine]
            assert counts == sorted(counts)
            assert counts[-1] == 9
            assert all(usage["prompt_tokens"] == num_prompt for usage in mine)
            assert all(usage["total_tokens"] == num_prompt + usage["completion_tokens"] for usage in mine)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 9 * n
        assert "fenhe" in last["usage"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_chunks_that_come_one_by_one_count_one_by_one(served: Served, path: str) -> None:
    fields = {"messages": [{"role": "user", "content": "slow"}]} if "chat" in path else {"prompt": "slow"}
    parts = chunks(served, path, ALWAYS, max_tokens=4, **fields)
    texts = [part for part in parts if part["choices"] and _text(part["choices"][0])]
    assert len(texts) >= 2
    for part in texts:
        assert part["usage"]["completion_tokens"] >= 1
    assert texts[0]["usage"]["completion_tokens"] < texts[-1]["usage"]["completion_tokens"] == 4


def _text(choice: dict[str, Any]) -> str:
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("options", [{"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}])
def test_other_streams_tell_it_at_the_end_or_not_at_all(served: Served, path: str, options: dict[str, Any]) -> None:
    found = chunks(served, path, options, max_tokens=3)
    told = [chunk["usage"] for chunk in found if chunk.get("usage") is not None]
    assert len(told) == options["include_usage"]


def test_echo_comes_before_any_token(served: Served) -> None:
    first = chunks(served, "/v1/completions", ALWAYS, max_tokens=3, echo=True)[0]
    assert (first["choices"][0]["text"], first["usage"]["completion_tokens"]) == ("long", 0)
