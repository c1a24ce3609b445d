"""Any text a student may generate comes out of every API unchanged, whole or as events, for two readers."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import anthropic
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engines.config import EngineConfig
from engines.contract import StepInput
from engines.loop.module_engine import ModuleEngine
from engines.scripted import Line, ScriptedEngine
from engines.sequence import GenerationRequest
from server.settings.config import ServerConfig
from server.students.open_student import Opened
from tests.server.conftest import CONTEXT_TOKENS, STUDENT, Served, TinyStudent, make_tokenizer, run_server
from tests.server.event_reader import read_events, read_json_events
from tests.server.fuzzing import search
from tests.server.random_engine import CONTEXT_TOKENS as LONG_CONTEXT_TOKENS
from tests.server.random_engine import RandomRunner, long_student

BREAKS = ["\n", "\r", "\r\n", "\n\n", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x00", "\ufeff", "\u200d"]
FRAMING = ["data: ", "data: [DONE]", "[DONE]", "event: error", "\n\ndata: {}\n\n", '{"error": {}}', ": ", "\\", '"']
MARK = "\ufffdfenhe text\ufffd"
SYMBOLS = [
    "💥",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "\U0010ffff",
    "漢字",
    "\ufffe",
    "</script>",
    MARK,
    "<|im_end|>",
    "<tool_call>",
]
PIECES = st.text(max_size=6) | st.sampled_from(BREAKS + FRAMING + SYMBOLS)
NO_STORE = {"cache-control": "no-store"}


class Teller(ScriptedEngine):
    """Answers every request with `line`."""

    line = Line()

    def _line_for(self, request: GenerationRequest) -> Line:
        return self.line


@pytest.fixture(scope="module")
def teller(student: TinyStudent) -> Teller:
    return Teller(
        student=STUDENT,
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: student.tokenizer.decode(list(ids)),
        max_context_tokens=CONTEXT_TOKENS,
    )


@pytest.fixture(scope="module")
def served(student: TinyStudent, teller: Teller) -> Iterator[Served]:
    with run_server([Opened(name=STUDENT, student=student, engine=teller)], ServerConfig()) as running:
        yield running


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "auto", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"model": "auto", "prompt": "hello", "max_tokens": 200},
    "/v1/responses": {"model": "auto", "input": "hello"},
    "/v1/messages": {"model": "auto", "max_tokens": 200, "messages": [{"role": "user", "content": "hello"}]},
}


def whole_text(path: str, body: Any) -> str:
    if "responses" in path:
        return str(body["output"][0]["content"][0]["text"])
    if "messages" in path:
        return "".join(block["text"] for block in body["content"])
    choice = body["choices"][0]
    return str(choice["message"]["content"] if "chat" in path else choice["text"])


def streamed_text(path: str, raw: bytes) -> str:
    """What the events of a stream add up to; fails on more or less than one end."""
    if "responses" in path:
        return response_text(raw)
    if "messages" in path:
        return message_text(raw)
    choices = [chunk["choices"][0] for chunk in read_json_events(raw)]
    ends = [choice["finish_reason"] for choice in choices]
    assert ends[-1] == "stop"
    assert not any(ends[:-1])
    return "".join(choice["delta"].get("content", "") if "chat" in path else choice["text"] for choice in choices)


def response_text(raw: bytes) -> str:
    events = [(event.kind, json.loads(event.data)) for event in read_events(raw)]
    kinds = [kind for kind, _ in events]
    assert all(kind == body["type"] for kind, body in events)
    assert kinds.count("response.completed") == 1
    assert kinds[-1] == "response.completed"
    text = "".join(body["delta"] for kind, body in events if kind == "response.output_text.delta")
    assert next(body["text"] for kind, body in events if kind == "response.output_text.done") == text
    assert whole_text("responses", events[-1][1]["response"]) == text
    return text


def message_text(raw: bytes) -> str:
    bodies = [json.loads(event.data) for event in read_events(raw)]
    assert [event.kind for event in read_events(raw)] == [body["type"] for body in bodies]
    assert [body["type"] == "message_stop" for body in bodies] == [False] * (len(bodies) - 1) + [True]
    return "".join(body["delta"]["text"] for body in bodies if body["type"] == "content_block_delta")


def heard(served: Served, path: str, **fields: Any) -> tuple[str, str]:
    """The answer in one body, and the answer in events."""
    body = BODIES[path] | fields
    whole = served.post(path, body, headers=NO_STORE)
    stream = served.post(path, body | {"stream": True}, headers=NO_STORE)
    lines = stream.content.split(b"\n")
    assert all(line == b"" or line.startswith((b"data: ", b"event: ")) for line in lines)
    return whole_text(path, whole.json()), streamed_text(path, stream.content)


def heard_by_anthropic(served: Served) -> str:
    """What the official client makes of a stream."""
    options: Any = {"base_url": served.url, "api_key": "none", "max_retries": 0, "default_headers": NO_STORE}
    with (
        anthropic.Anthropic(**options) as client,
        client.messages.stream(model="auto", max_tokens=200, messages=[{"role": "user", "content": "hello"}]) as stream,
    ):
        return "".join(stream.text_stream)


def heard_by_openai(served: Served) -> list[str]:
    """What the official client makes of the streams of its three endpoints."""
    client = served.client.with_options(default_headers=NO_STORE)
    chat = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hello"}], stream=True)
    text = client.completions.create(model="auto", prompt="hello", stream=True, max_tokens=200)
    events = client.responses.create(model="auto", input="hello", stream=True)
    return [
        "".join(chunk.choices[0].delta.content or "" for chunk in chat),
        "".join(chunk.choices[0].text for chunk in text),
        "".join(event.delta for event in events if event.type == "response.output_text.delta"),
    ]


@search(80)
@given(st.lists(PIECES, max_size=12))
@example(pieces=[*BREAKS, *FRAMING])
@example(pieces=SYMBOLS)
@example(pieces=[])
@example(pieces=["", "", "x"])
def test_any_text_is_told_as_it_was_said(served: Served, teller: Teller, pieces: Sequence[str]) -> None:
    teller.line = Line(pieces=tuple(pieces))
    said = "".join(pieces)
    for path in BODIES:
        assert heard(served, path) == (said, said), path
    assert heard_by_openai(served) == [said] * 3
    assert heard_by_anthropic(served) == said


@search(30)
@given(st.lists(PIECES, min_size=1, max_size=8), st.integers(1, 3))
def test_any_text_is_told_with_its_tokens(served: Served, teller: Teller, pieces: Sequence[str], n: int) -> None:
    teller.line = Line(pieces=tuple(pieces))
    said = "".join(pieces)
    body = BODIES["/v1/chat/completions"] | {"logprobs": True, "top_logprobs": 2, "n": n}
    response = served.post("/v1/chat/completions", body | {"stream": True}, headers=NO_STORE)
    choices = [chunk["choices"][0] for chunk in read_json_events(response.content)]
    for index in range(n):
        mine = [choice for choice in choices if choice["index"] == index]
        tokens = [token for choice in mine for token in (choice["logprobs"] or {"content": []})["content"]]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == said
        assert [token["token"] for token in tokens if token["bytes"]] == [piece for piece in pieces if piece]
        assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == said


@search(40)
@given(st.dictionaries(st.text(max_size=4), PIECES | st.integers(), max_size=4), st.integers(1, 9), st.booleans())
def test_any_arguments_of_a_call_are_told_as_they_were_said(
    long_served: Served, long_teller: Teller, arguments: dict[str, Any], num_chars: int, is_ascii: bool
) -> None:
    said = json.dumps(arguments, ensure_ascii=is_ascii)
    text = f'<tool_call>\n{{"name": "f", "arguments": {said}}}\n</tool_call>'
    long_teller.line = Line(pieces=tuple(text[i : i + num_chars] for i in range(0, len(text), num_chars)))
    body = BODIES["/v1/chat/completions"] | {"tools": [{"type": "function", "function": {"name": "f"}}]}
    whole = long_served.post("/v1/chat/completions", body, headers=NO_STORE).json()["choices"][0]["message"]
    raw = long_served.post("/v1/chat/completions", body | {"stream": True}, headers=NO_STORE).content
    calls = [call for chunk in read_json_events(raw) for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert whole["content"] is None
    assert whole["tool_calls"][0]["function"]["arguments"] == said
    assert "".join(call["function"]["arguments"] for call in calls) == said
    assert item_arguments(long_served) == (said, said)
    assert block_input(long_served) == (arguments, said)


def item_arguments(served: Served) -> tuple[str, str]:
    """The arguments of the only call of a response: whole, and as events add them up."""
    body = BODIES["/v1/responses"] | {"tools": [{"type": "function", "name": "f"}]}
    whole = served.post("/v1/responses", body, headers=NO_STORE).json()["output"]
    raw = served.post("/v1/responses", body | {"stream": True}, headers=NO_STORE).content
    events = [json.loads(event.data) for event in read_events(raw)]
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert len(whole) == 1
    return whole[0]["arguments"], "".join(deltas)


def block_input(served: Served) -> tuple[Any, str]:
    """The input of the only call of a message, and the JSON that events add up to."""
    body = BODIES["/v1/messages"] | {"tools": [{"name": "f"}]}
    whole = served.post("/v1/messages", body, headers=NO_STORE).json()["content"]
    raw = served.post("/v1/messages", body | {"stream": True}, headers=NO_STORE).content
    events = [json.loads(event.data) for event in read_events(raw)]
    deltas = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert len(whole) == 1
    return whole[0]["input"], "".join(deltas)


@pytest.fixture(scope="module")
def long_teller() -> Teller:
    decode = long_student().tokenizer.decode
    return Teller(
        student="random",
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: decode(list(ids)),
        max_context_tokens=LONG_CONTEXT_TOKENS,
    )


@pytest.fixture(scope="module")
def long_served(long_teller: Teller) -> Iterator[Served]:
    with run_server([Opened(name="random", student=long_student(), engine=long_teller)], ServerConfig()) as running:
        yield running


class ByteRunner(RandomRunner):
    """Generates the bytes of `said`, a token each, after a prompt of `num_prompt_tokens`."""

    said = b""
    num_prompt_tokens = 0

    def forward(self, step: StepInput) -> npt.NDArray[np.float32]:
        positions = [row.position for row in step.decode]
        positions += [chunk.start + len(chunk.token_ids) - 1 for chunk in step.prefill if chunk.wants_logits]
        logits = np.zeros((len(positions), 258), np.float32)
        for row, position in enumerate(positions):
            index = position + 1 - self.num_prompt_tokens
            logits[row, self.said[index] if index < len(self.said) else 257] = 50.0
        return logits


@pytest.fixture(scope="module")
def runner() -> ByteRunner:
    return ByteRunner(258)


@pytest.fixture(scope="module")
def by_bytes(runner: ByteRunner) -> Iterator[Served]:
    """The real engine, whose tokens are bytes: every character beyond ASCII is cut over several of them."""
    student = long_student()
    engine = ModuleEngine(
        student, runner, EngineConfig(max_running=8), capacity_tokens=LONG_CONTEXT_TOKENS, variant="bytes"
    )
    with run_server([Opened(name="random", student=student, engine=engine)], ServerConfig()) as running:
        yield running


@search(40)
@given(st.lists(PIECES, max_size=6).map("".join))
@example(said="👩‍👩‍👧 💥 e\u0301 漢字")
@example(said="\r\n\u2028\x00\r")
def test_text_cut_over_tokens_is_told_as_it_was_said(by_bytes: Served, runner: ByteRunner, said: str) -> None:
    runner.said = said.encode()
    runner.num_prompt_tokens = len(make_tokenizer().encode("hello"))
    assert heard(by_bytes, "/v1/completions", temperature=0) == (said, said)


@search(40)
@given(said=st.text(alphabet="💥é漢a", min_size=1, max_size=6), num_tokens=st.integers(1, 12))
def test_text_cut_off_inside_a_character_ends_before_it(
    by_bytes: Served, runner: ByteRunner, said: str, num_tokens: int
) -> None:
    runner.said = (said * 12).encode()
    runner.num_prompt_tokens = len(make_tokenizer().encode("hello"))
    kept = runner.said[:num_tokens].decode(errors="ignore")
    body = BODIES["/v1/completions"] | {"max_tokens": num_tokens, "temperature": 0}
    assert whole_text("completions", by_bytes.post("/v1/completions", body, headers=NO_STORE).json()) == kept
    raw = by_bytes.post("/v1/completions", body | {"stream": True}, headers=NO_STORE).content
    assert "".join(chunk["choices"][0]["text"] for chunk in read_json_events(raw)) == kept
