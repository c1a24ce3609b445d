"""The light client: what it counts in a recorded stream, and what it refuses to count."""

import pytest

from bench.engines.sse_client import StreamedAnswer, arrival_of, read_answer, read_events

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = b'data: {"choices":[{"text":"hi"}],"usage":null}\n\n'
EMPTY = b'data: {"choices":[{"text":""}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":2}}}\n\n'
DONE = b"data: [DONE]\n\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def test_answer_counts_tokens_by_usage_and_times_the_first_text() -> None:
    body = chunked(EMPTY, TEXT, TEXT + USAGE, DONE)
    first_end = body.index(b"hi") + 10
    pieces = [(1.0, HEAD + body[:20]), (2.0, body[20:first_end]), (3.0, body[first_end:-5]), (4.0, body[-5:])]
    answer = read_answer(pieces)
    assert (answer.num_tokens, answer.num_cached_tokens, answer.last_s) == (5, 2, 4.0)
    assert answer.first_token_s == 3.0


def test_first_token_is_timed_by_the_piece_that_completes_its_event() -> None:
    parts = [HEAD, chunked(TEXT)[:-5], chunked(TEXT, USAGE, DONE)]
    pieces = [(float(i), part) for i, part in enumerate(parts)]
    assert read_answer(pieces) == StreamedAnswer(num_tokens=5, num_cached_tokens=2, first_token_s=1.0, last_s=2.0)


def test_events_may_be_split_between_chunks() -> None:
    stream = TEXT + USAGE + DONE
    events = read_events(chunked(*(stream[i : i + 7] for i in range(0, len(stream), 7))))
    assert [data for _, data in events] == [event.removeprefix(b"data: ").strip() for event in (TEXT, USAGE, DONE)]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}", "429"),
        (HEAD + chunked(TEXT), "ended early"),
        (HEAD + chunked(), "empty stream"),
        (HEAD + chunked(b'data: {"error":{"message":"broke"}}\n\n', DONE), "broke"),
        (HEAD + chunked(TEXT, DONE), "no usage"),
    ],
)
def test_incomplete_stream_is_refused(raw: bytes, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        read_answer([(1.0, raw)])


def test_no_answer_at_all_is_refused() -> None:
    with pytest.raises(RuntimeError, match="without an answer"):
        read_answer([])


def test_arrival_is_that_of_the_piece_with_the_byte() -> None:
    pieces = [(1.0, b"abcd"), (2.0, b"efgh")]
    assert arrival_of(pieces, 6) == 1.0
    assert arrival_of(pieces, 7) == 2.0
