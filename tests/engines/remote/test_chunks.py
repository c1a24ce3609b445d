import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.remote.chunks import MAX_EVENT_BYTES, EventReader, Garbled, Tally, glance
from engines.sequence import FinishReason


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.close()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\r\n\r\ndata:  b\r\n\r\n", [b"a", b" b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": comment\n\nevent: x\nid: 5\nretry: 1\ndata: a\n\n", [b"a"]),
        (b"data: a", [b"a"]),
        (b"data: \n\n", [b""]),
        (b"event: ping\n\n\n\n", []),
        (b"", []),
    ],
)
def test_events_are_cut_as_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    assert read(stream) == events


@given(
    st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=6), st.data()
)
def test_events_do_not_depend_on_how_bytes_arrive(texts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(b"data: " + text + b"\n\n" for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*pieces) == texts


def test_an_event_without_end_is_refused() -> None:
    reader = EventReader()
    assert reader.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(Garbled):
        reader.feed(b"x")


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"5", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(Garbled):
        glance(data)


def tally(*chunks: bytes) -> Tally:
    found = Tally()
    for chunk in chunks:
        found.add(glance(chunk))
    return found


@pytest.mark.parametrize(
    "usage",
    [
        b'{"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":3}}}',
        b'{"usage":{"input_tokens":9,"output_tokens":4,"input_tokens_details":{"cached_tokens":3}}}',
        b'{"type":"response.completed","response":{"usage":{"input_tokens":9,"output_tokens":4,'
        b'"input_tokens_details":{"cached_tokens":3}}}}',
        b'{"type":"message_delta","usage":{"input_tokens":9,"output_tokens":4,"cache_read_input_tokens":3}}',
    ],
)
def test_usage_is_read_under_every_name(usage: bytes) -> None:
    found = tally(usage)
    assert (found.num_prompt_tokens, found.num_cached_tokens, found.num_tokens) == (9, 3, 4)


def test_usage_in_parts_adds_up() -> None:
    begun = b'{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}'
    found = tally(begun, b'{"type":"message_delta","usage":{"output_tokens":7}}')
    assert (found.num_prompt_tokens, found.num_tokens) == (9, 7)


def test_without_usage_chunks_count() -> None:
    found = tally(b'{"choices":[]}', b'{"choices":[{"index":0}]}')
    assert (found.num_prompt_tokens, found.num_tokens) == (None, 2)


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (b'{"choices":[{"finish_reason":"stop"}]}', FinishReason.STOP),
        (b'{"choices":[{"finish_reason":"length"}]}', FinishReason.LENGTH),
        (b'{"choices":[{"finish_reason":"tool_calls"}]}', FinishReason.STOP),
        (b'{"type":"message_stop"}', FinishReason.STOP),
        (b'{"type":"message_delta","delta":{"stop_reason":"max_tokens"}}', FinishReason.LENGTH),
        (
            b'{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"}}}',
            FinishReason.LENGTH,
        ),
        (b'{"stop_reason":"end_turn"}', FinishReason.STOP),
    ],
)
def test_ends_are_known_in_every_api(chunk: bytes, reason: FinishReason) -> None:
    found = tally(chunk)
    assert found.is_over
    assert found.reason is reason


@pytest.mark.parametrize(
    "chunk", [b'{"choices":[{"finish_reason":null}]}', b'{"type":"response.output_text.delta","delta":"x"}']
)
def test_nothing_else_is_an_end(chunk: bytes) -> None:
    assert not tally(chunk).is_over


def test_fields_of_an_unknown_form_are_not_read() -> None:
    found = glance(b'{"usage":"none","choices":[{"finish_reason":"stop"}],"error":null,"type":5}')
    assert found.usage is None
    assert found.choices is not None
    assert found.choices[0].finish_reason == "stop"
