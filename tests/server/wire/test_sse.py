"""Streams byte by byte: framing, constant parts, merging."""

import json
from typing import Any

from engines.sequence import Finish, FinishReason, SequenceEvent, Timings, Usage
from server.generation.plan import merge
from server.wire import sse
from server.wire.base import encoder
from server.wire.chat import ChatChunk, ChunkChoice, Delta
from tests.server.conftest import Served, events_of


def stream(served: Served, prompt: str, **fields: Any) -> list[Any]:
    response = served.chat(prompt, stream=True, **fields)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events_of(response.content)


def test_stream_frames_every_event_and_ends_with_done(served: Served) -> None:
    events = stream(served, "slow", max_tokens=5)
    assert events[-1] == "[DONE]"
    assert [event["object"] for event in events[:-1]] == ["chat.completion.chunk"] * len(events[:-1])
    assert len(events) >= 4


def test_stream_first_chunk_has_the_role_and_empty_content(served: Served) -> None:
    first = stream(served, "hello")[0]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert first["finish_reason"] is None


def test_stream_usage_key_is_absent_or_null(served: Served) -> None:
    assert all("usage" not in event for event in stream(served, "hello")[:-1])
    *chunks, last, _ = stream(served, "hello", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 4


def test_stream_survives_text_that_looks_like_framing(served: Served) -> None:
    chunks = stream(served, "accents")[:-1]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == 'é\n\ndata: x\u2028"quoted"'


def test_stream_finish_reason_comes_once_per_choice(served: Served) -> None:
    chunks = stream(served, "long", n=2)[:-1]
    finished = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1]


def test_stream_is_not_to_be_buffered(served: Served) -> None:
    headers = served.chat("hello", stream=True).headers
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"


def test_text_chunk_equals_encoding_each_time() -> None:
    def chunk(text: str) -> ChatChunk:
        choice = ChunkChoice(index=0, delta=Delta(content=text))
        return ChatChunk(id="i", created=1, model="m", system_fingerprint="f", choices=[choice])

    cut = sse.text_chunk(chunk(sse.TEXT_MARK))
    for text in ("", "plain", 'quo"te\\', "\n\n", "é\u2028\x00"):
        body = cut.fill(text).removeprefix(b"data: ").removesuffix(b"\n\n")
        assert json.loads(body) == json.loads(encoder.encode(chunk(text)))


def test_merge_joins_what_waited_per_choice() -> None:
    usage = Usage(num_prompt_tokens=1, num_cached_tokens=0, num_completion_tokens=2)
    times = Timings(queued_s=0, admitted_s=0, first_token_s=0, finished_s=1)
    end = Finish(reason=FinishReason.LENGTH, path="full", usage=usage, timings=times)
    texts = [(0, "a"), (1, "x"), (0, "b")]
    batch = [(index, SequenceEvent(sequence_id="s", text=text)) for index, text in texts]
    first, second = merge([*batch, (1, SequenceEvent(sequence_id="s", finish=end))])
    assert (first.index, first.text, first.finish) == (0, "ab", None)
    assert (second.index, second.text, second.finish) == (1, "x", end)
