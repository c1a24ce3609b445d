"""`/v1/messages` as the official client sees it; its models check every answer strictly."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from engines.scripted import Line, ScriptedEngine
from models.errors import PathLoading, QueueFull, StepFailed
from server.settings.config import KeysConfig, Limits, ServerConfig
from server.students.open_student import Opened
from tests.server.conftest import SCRIPT, Served, Start, StartPool, make_engine, run_server
from tests.server.event_reader import read_events
from tests.server.random_engine import long_student

CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'
TOOL: Any = {
    "name": "get_time",
    "description": "The time in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
FORMAT = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
UNHELD = {"type": "object", "properties": {"a": {"not": {"type": "integer"}}}}
"""A schema that no grammar can hold."""
MAX_TOKENS = 300
SAID = "Hello, world!"


def client_of(served: Served, **options: Any) -> anthropic.Anthropic:
    fields = {"api_key": "none", "auth_token": None, "max_retries": 0, "timeout": 20} | options
    return anthropic.Anthropic(base_url=served.url, _strict_response_validation=True, **fields)


def user(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def create(served: Served, given: Any = "hello", **fields: Any) -> Any:
    messages = given if isinstance(given, list) else user(given)
    body = {"model": "auto", "max_tokens": MAX_TOKENS, "messages": messages, **fields}
    with client_of(served) as client:
        return client.messages.create(**body)


def post(served: Served, path: str = "/v1/messages", **fields: Any) -> Any:
    body = {"model": "auto", "messages": user("hello"), "max_tokens": MAX_TOKENS, **fields}
    return served.post(path, {name: value for name, value in body.items() if value is not ...})


def prompt_of(served: Served, given: Any, **fields: Any) -> str:
    create(served, given, **fields)
    tokenizer = served.context.students[0].tokenizer
    return tokenizer.decode(served.engine.submitted[-1].prompt_token_ids, skip_special=False)


def turns(*said: tuple[str, str]) -> str:
    """The prompt of these turns."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said) + "<|im_start|>assistant\n"


LEVELS = (100, 990, 1500)


def deep_call(levels: int) -> str:
    return CALL.replace('"Oslo"', "[" * levels + "]" * levels)


@pytest.fixture(scope="module")
def calling() -> Iterator[Served]:
    """A server whose student calls tools."""
    student = long_student()
    engine = ScriptedEngine(
        student="random",
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: student.tokenizer.decode(list(ids), skip_special=False),
        script={
            "<tool_response>\nnoon": Line(pieces=("It is ", "noon.")),
            "one call": Line(pieces=tuple(CALL)),
            "two calls": Line(pieces=("I look. ", CALL, "\n", CALL)),
            "half a character": Line(pieces=(CALL.replace("Oslo", r"O\ud83dslo\ude00\ud83d\ude00"),)),
            **{f"{levels} levels": Line(pieces=tuple(deep_call(levels))) for levels in LEVELS},
            "no call": Line(pieces=("No ", "call.")),
        },
    )
    with run_server([Opened(name="random", student=student, engine=engine)], ServerConfig()) as running:
        yield running


def test_message_answers_official_client(served: Served) -> None:
    message = create(served)
    assert [(block.type, block.text) for block in message.content] == [("text", SAID)]
    assert (message.role, message.type, message.stop_reason, message.stop_sequence) == (
        "assistant",
        "message",
        "end_turn",
        None,
    )
    assert message.id.startswith("msg_")
    assert message.model == "tiny"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (len("user\nhello\nassistant\n") + 3, 4)
    assert message._request_id


@pytest.mark.parametrize("is_awaited", [False, True])
async def test_message_stream_reads_in_the_official_client(served: Served, is_awaited: bool) -> None:
    fields: Any = {"model": "auto", "max_tokens": MAX_TOKENS, "messages": user("long")}
    if is_awaited:
        async with (
            anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as client,
            client.messages.stream(**fields) as stream,
        ):
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
    else:
        with client_of(served) as blocking, blocking.messages.stream(**fields) as blocking_stream:
            texts = list(blocking_stream.text_stream)
            final = blocking_stream.get_final_message()
    said = "".join(f"w{i} " for i in range(50))
    assert "".join(texts) == said
    assert [block.text for block in final.content] == [said]  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 50)


def typed_events(raw: bytes) -> list[Any]:
    events = read_events(raw)
    bodies = [json.loads(event.data) for event in events]
    assert [event.kind for event in events] == [body["type"] for body in bodies]
    return bodies


def test_message_stream_has_the_events_of_the_specification_in_order(served: Served) -> None:
    response = post(served, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = typed_events(response.content)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, end = events[0]["message"], events[-2]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert start["usage"]["input_tokens"] == len("user\nhello\nassistant\n") + 3
    assert "".join(delta["text"] for delta in deltas) == SAID
    assert {delta["type"] for delta in deltas} == {"text_delta"}
    assert {event["index"] for event in events if "index" in event} == {0}
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == 4


@pytest.mark.parametrize(
    ("given", "fields", "reason", "sequence", "text"),
    [
        ("hello", {}, "end_turn", None, SAID),
        ("long", {"max_tokens": 2}, "max_tokens", None, "w0 w1 "),
        ("stop here", {"stop_sequences": ["never", "END"]}, "stop_sequence", "END", "one two "),
        ("stop here", {"stop_sequences": [f"never {i}" for i in range(31)] + ["two"]}, "stop_sequence", "two", "one "),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_message_says_why_it_stopped(
    served: Served, given: str, fields: dict[str, Any], reason: str, sequence: str | None, text: str, is_stream: bool
) -> None:
    if is_stream:
        events = typed_events(post(served, messages=user(given), stream=True, **fields).content)
        ends = [event["delta"] for event in events if event["type"] == "message_delta"]
        assert ends == [{"stop_reason": reason, "stop_sequence": sequence}]
        return
    message = create(served, given, **fields)
    assert (message.stop_reason, message.stop_sequence, message.content[0].text) == (reason, sequence, text)


def test_message_of_nothing_has_no_block(start: Start) -> None:
    served = start({"mute": Line(pieces=())})
    assert create(served, "mute").content == []
    events = typed_events(post(served, messages=user("mute"), stream=True).content)
    assert [event["type"] for event in events] == ["message_start", "ping", "message_delta", "message_stop"]


def test_message_of_no_tokens_computes_the_prompt_alone(served: Served) -> None:
    message = create(served, max_tokens=0)
    assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "max_tokens", 0)


def test_cached_prompt_tokens_are_told_apart(served: Served) -> None:
    usage = create(served, "cached").usage
    assert usage.cache_read_input_tokens == 7
    assert usage.input_tokens + 7 == len("user\ncached\nassistant\n") + 3
    events = typed_events(post(served, messages=user("cached"), stream=True).content)
    assert events[-2]["usage"]["cache_read_input_tokens"] == 7


TEXT = {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}
EARLIER = {"type": "tool_use", "id": "toolu_1", "name": "get_time", "input": {"city": "Oslo"}}
CALLED = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
"""As an MCP server gives it."""


def result(**fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", **fields}


@pytest.mark.parametrize(
    ("system", "messages", "expected"),
    [
        ("zero", user("one"), [("system", "zero"), ("user", "one")]),
        ([{"type": "text", "text": "a"}, TEXT], user([TEXT]), [("system", "a\ntwo"), ("user", "two")]),
        (None, user([TEXT, {"type": "text", "text": "three", "citations": None}]), [("user", "two\nthree")]),
        (None, user("one") + user([TEXT]), [("user", "one\ntwo")]),
        (
            None,
            [*user("one"), {"role": "assistant", "content": "x"}, *user("two")],
            [("user", "one"), ("assistant", "x"), ("user", "two")],
        ),
        (None, [*user("one"), {"role": "system", "content": "now"}], [("user", "one"), ("system", "now")]),
        (
            None,
            [
                *user("one"),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": "I look."},
                        EARLIER,
                    ],
                },
                *user([result(content=[{"type": "text", "text": "noon"}]), TEXT]),
            ],
            [
                ("user", "one"),
                ("assistant", f"I look.\n{CALLED}"),
                ("user", "<tool_response>\nnoon\n</tool_response>"),
                ("user", "two"),
            ],
        ),
        (
            None,
            [*user("one"), {"role": "assistant", "content": [EARLIER]}, *user([result(content="bad", is_error=True)])],
            [
                ("user", "one"),
                ("assistant", CALLED),
                ("user", "<tool_response>\nError: bad\n</tool_response>"),
            ],
        ),
        (
            None,
            [
                *user("one"),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
                        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
                        {"type": "hologram"},
                        {"type": "text", "text": "Found.", "citations": [{"type": "web_search_result_location"}]},
                    ],
                },
                *user("two"),
            ],
            [("user", "one"), ("assistant", "Found."), ("user", "two")],
        ),
        (
            None,
            [*user("one"), {"role": "assistant", "content": None}, *user("two")],
            [("user", "one\ntwo")],
        ),
        (
            None,
            [*user("one"), {"role": "assistant", "content": [EARLIER]}, *user([result()])],
            [("user", "one"), ("assistant", CALLED), ("user", "<tool_response>\n\n</tool_response>")],
        ),
    ],
)
def test_turns_become_a_prompt(served: Served, system: Any, messages: Any, expected: Any) -> None:
    options = {} if system is None else {"system": system}
    assert prompt_of(served, messages, **options) == turns(*expected)


def test_answer_that_is_begun_is_continued(served: Served) -> None:
    """Source: Anthropic API reference, messages: prefill."""
    begun = [*user("one"), {"role": "assistant", "content": "The best is ("}]
    assert prompt_of(served, begun) == turns(("user", "one")) + "The best is ("
    assert post(served, messages=begun).json()["content"][0]["text"] == SAID


def test_marks_of_turns_in_a_message_are_text(served: Served) -> None:
    create(
        served,
        [*user("<|im_end|>"), {"role": "assistant", "content": [EARLIER]}, *user([result(content="<|im_end|>")])],
    )
    ids = served.engine.submitted[-1].prompt_token_ids
    assert ids.count(257) == 3
    counted = post(served, "/v1/messages/count_tokens", messages=user("<|im_end|>"), max_tokens=...).json()
    create(served, "<|im_end|>")
    assert counted == {"input_tokens": len(served.engine.submitted[-1].prompt_token_ids)}


def test_answer_can_be_sent_back_as_it_came(calling: Served) -> None:
    with client_of(calling) as client:
        first: Any = client.messages.create(
            model="auto", max_tokens=MAX_TOKENS, messages=user("two calls"), tools=[TOOL]
        )
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "noon"}
            for block in first.content
            if block.type == "tool_use"
        ]
        assert len(results) == 2
        history: Any = [*user("no call"), {"role": "assistant", "content": first.content}, *user(results)]
        second = client.messages.create(model="auto", max_tokens=MAX_TOKENS, messages=history, tools=[TOOL])
    assert second.stop_reason == "end_turn"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("given", "text", "num"), [("one call", None, 1), ("two calls", "I look.", 2)])
def test_calls_come_as_blocks(calling: Served, given: str, text: str | None, num: int, is_stream: bool) -> None:
    fields: Any = {"model": "auto", "max_tokens": MAX_TOKENS, "messages": user(given), "tools": [TOOL]}
    with client_of(calling) as client:
        if is_stream:
            with client.messages.stream(**fields) as stream:
                message: Any = stream.get_final_message()
        else:
            message = client.messages.create(**fields)
    blocks = message.content if text is None else message.content[1:]
    assert [(block.type, block.name, block.input) for block in blocks] == [
        ("tool_use", "get_time", {"city": "Oslo"})
    ] * num
    assert text is None or message.content[0].text == text
    assert len({block.id for block in blocks}) == num
    assert all(block.id.startswith("toolu_") for block in blocks)
    assert message.stop_reason == "tool_use"


def test_stream_of_calls_has_the_events_of_the_specification_in_order(calling: Served) -> None:
    events = typed_events(post(calling, messages=user("two calls"), tools=[TOOL], stream=True).content)
    kinds = [(event["type"], event.get("index")) for event in events if event["type"] != "content_block_delta"]
    assert kinds == [
        ("message_start", None),
        ("ping", None),
        *[(f"content_block_{edge}", index) for index in range(3) for edge in ("start", "stop")],
        ("message_delta", None),
        ("message_stop", None),
    ]
    opened = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in opened] == ["text", "tool_use", "tool_use"]
    assert [block["input"] for block in opened[1:]] == [{}, {}]
    for index in (1, 2):
        deltas = [event["delta"] for event in events if event.get("index") == index and "delta" in event]
        assert {delta["type"] for delta in deltas} == {"input_json_delta"}
        assert json.loads("".join(delta["partial_json"] for delta in deltas)) == {"city": "Oslo"}


def test_half_characters_in_a_call_cost_no_more_than_themselves(calling: Served) -> None:
    fields: Any = {"model": "auto", "max_tokens": MAX_TOKENS, "messages": user("half a character"), "tools": [TOOL]}
    with client_of(calling) as client:
        message: Any = client.messages.create(**fields)
        assert message.content[0].input == {"city": "O\ufffdslo\ufffd\N{GRINNING FACE}"}
        history: Any = [*user("no call"), {"role": "assistant", "content": message.content}]
        results = user([{"type": "tool_result", "tool_use_id": message.content[0].id, "content": "noon"}])
        assert client.messages.create(**fields | {"messages": history + results}).stop_reason == "end_turn"


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("num_missing", [0, 1, 14, 20])
def test_call_nested_deeply_is_answered(calling: Served, levels: int, num_missing: int) -> None:
    """Whole, and cut off."""
    max_tokens = len(deep_call(levels)) - num_missing
    fields = {"messages": user(f"{levels} levels"), "max_tokens": max_tokens, "tools": [TOOL]}
    response = post(calling, **fields)
    assert response.status_code == 200, response.text
    city = response.json()["content"][0]["input"].get("city")
    assert json.dumps(city) == ("[" * levels + "]" * levels if levels == 100 and num_missing < 16 else "null")
    events = typed_events(post(calling, **fields, stream=True).content)
    assert events[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("is_stream", [False, True])
def test_call_that_is_cut_off_is_not_to_be_run(calling: Served, is_stream: bool) -> None:
    fields: Any = {"model": "auto", "max_tokens": 60, "messages": user("one call"), "tools": [TOOL]}
    with client_of(calling) as client:
        if is_stream:
            with client.messages.stream(**fields) as stream:
                message: Any = stream.get_final_message()
        else:
            message = client.messages.create(**fields)
    assert message.stop_reason == "max_tokens"
    assert message.content[0].name == "get_time"


@pytest.mark.parametrize(
    ("choice", "is_constrained", "is_in_prompt"),
    [
        (None, True, True),
        ({"type": "auto"}, True, True),
        ({"type": "any", "disable_parallel_tool_use": True}, True, True),
        ({"type": "tool", "name": "get_time"}, True, True),
        ({"type": "none"}, False, False),
    ],
)
def test_tool_choice_decides_what_is_compiled(
    calling: Served, choice: Any, is_constrained: bool, is_in_prompt: bool
) -> None:
    options = {} if choice is None else {"tool_choice": choice}
    prompt = prompt_of(calling, "no call", tools=[TOOL], **options)
    assert ("The time in a city" in prompt) == is_in_prompt
    assert (calling.engine.submitted[-1].sampling.grammar is not None) == is_constrained


@pytest.mark.parametrize("fields", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}])
def test_output_format_becomes_a_grammar(served: Served, fields: dict[str, Any]) -> None:
    assert post(served, **fields).status_code == 200
    assert served.engine.submitted[-1].sampling.grammar is not None


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search_20260318", "name": "web_search", "max_uses": 3},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "computer_toolset_20260801", "display_width_px": 1},
    ],
)
def test_tools_of_the_provider_are_left_out_and_named(calling: Served, tool: dict[str, Any]) -> None:
    for is_stream in (False, True):
        response = post(calling, messages=user("no call"), tools=[tool, TOOL], stream=is_stream)
        body = typed_events(response.content)[0]["message"] if is_stream else response.json()
        assert body["fenhe"]["left_out"] == [f"tools[0]: {tool['type']}"]
    assert "left_out" not in post(calling, messages=user("no call"), tools=[TOOL]).json()["fenhe"]


HARMLESS: list[dict[str, Any]] = [
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {"type": "adaptive"}},
    {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
    {"metadata": {"user_id": "u"}, "service_tier": "standard_only"},
    {"output_config": {"effort": "high"}},
    {"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}},
    {"system": None, "tools": None, "tool_choice": None, "stop_sequences": None, "temperature": None},
    {"tools": []},
    {"mcp_servers": [], "fallbacks": "default", "thread": {"type": "create"}},
    {"anthropic_version": "bedrock-2023-05-31", "anthropic_beta": ["context-management-2025-06-27"]},
    {"betas": ["context-management-2025-06-27"]},
    {"anthropic_beta": "context-management-2025-06-27"},
    {"tool_choice": {"type": "auto"}},
    {"container": None, "inference_geo": "eu", "speed": "fast", "mcp_servers": None, "surprise": None},
    {"tools": [{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}, "input_examples": [{"city": "x"}]}]},
    {"tools": [{**TOOL, "eager_input_streaming": True, "defer_loading": False, "allowed_callers": ["direct"]}]},
    {"messages": [{"role": "user", "content": "hello", "id": "m1", "cache_control": None}]},
]


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_what_cannot_change_the_answer_is_ignored(calling: Served, path: str, fields: dict[str, Any]) -> None:
    response = post(calling, path, **fields)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("is_stream", [False, True])
def test_tool_runner_of_the_official_client_runs_its_tools(calling: Served, is_stream: bool) -> None:
    """It keeps its conversations on the server where there is such a thing, and else sends them whole."""
    asked: list[str] = []

    @anthropic.beta_tool
    def get_time(city: str) -> str:
        """The time in a city.

        Args:
            city: The city.
        """
        asked.append(city)
        return "noon"

    fields: Any = {"model": "auto", "max_tokens": MAX_TOKENS, "messages": user("one call"), "tools": [get_time]}
    with client_of(calling) as client:
        if is_stream:
            last: Any = [turn.get_final_message() for turn in client.beta.messages.tool_runner(**fields, stream=True)][
                -1
            ]
        else:
            last = client.beta.messages.tool_runner(**fields).until_done()
    assert asked == ["Oslo"]
    assert (last.stop_reason, last.content[0].text) == ("end_turn", "It is noon.")


def test_thread_is_replayed_as_a_whole(served: Served) -> None:
    with client_of(served) as client:
        thread = client.beta.messages.thread(model="auto", max_tokens=MAX_TOKENS)
        thread.send(user("hello")[0])
        thread.send(user("math please")[0])
    tokenizer = served.context.students[0].tokenizer
    prompt = tokenizer.decode(served.engine.submitted[-1].prompt_token_ids, skip_special=False)
    assert prompt == turns(("user", "hello"), ("assistant", SAID), ("user", "math please"))
    response = post(served, thread={"type": "continue", "previous_message_id": "msg_1"})
    assert response.status_code == 404
    assert response.json()["error"]["details"] == {"error_code": "thread_not_found"}


@pytest.mark.parametrize("headers", [{"anthropic-version": "2023-06-01"}, {"anthropic-version": "1999-01-01"}, {}])
def test_versions_are_accepted(served: Served, headers: dict[str, str]) -> None:
    body = {"model": "auto", "max_tokens": 5, "messages": user("hello")}
    response = served.post("/v1/messages?beta=true", body, headers={**headers, "anthropic-beta": "a-2026,b-2026"})
    assert response.status_code == 200


def test_beta_client_is_answered(served: Served) -> None:
    with client_of(served) as client:
        message = client.beta.messages.create(
            model="auto", max_tokens=MAX_TOKENS, messages=user("hello"), betas=["context-management-2025-06-27"]
        )
    assert message.content[0].text == SAID  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": ...}, "messages"),
        ({"messages": user([{"type": "image", "source": {}}])}, "messages[0].content[0].type"),
        ({"messages": user([{"type": "document", "source": {}}])}, "document"),
        ({"messages": user([{"type": "hologram"}])}, "hologram"),
        ({"messages": user([result(content=[{"type": "image"}])])}, "messages[0].content[0].content[0].type"),
        ({"messages": user([TEXT, result(content=[TEXT, IMAGE])])}, "messages[0].content[1].content[1].type"),
        ({"messages": user([result(content=[IMAGE])])}, "reads text only"),
        ({"messages": user([result(content=[{"type": "document", "source": {}}])])}, "'document' is not supported"),
        ({"messages": user([result(content=[{"type": "search_result"}])])}, "'search_result' is not supported"),
        ({"system": [TEXT, IMAGE]}, "`system[1].type`: content of type 'image' is not supported"),
        ({"tools": [{**TOOL, "name": f"f{number}"} for number in range(129)]}, "`tools`: 129 are more than 128"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "developer"),
        ({"surprise": 1}, "surprise"),
        ({"max_token": 1}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools"),
        ({"tools": [{"input_schema": {"type": "object"}}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{"type": "x", "name": "x"}, {**TOOL, "input_schema": {"type": "array"}}]}, "tools[1].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "nobody"}}, "tool_choice.name"),
        ({"tools": [{"type": "bash_20250124"}], "tool_choice": {"type": "any"}}, "bash_20250124"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "output_config.format.schema",
        ),
    ],
)
def test_message_refuses_by_name(served: Served, fields: dict[str, Any], named: str) -> None:
    response = post(served, **fields)
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert named in body["error"]["message"], body


@pytest.mark.parametrize(
    ("tools", "place"),
    [
        ([{**TOOL, "input_schema": UNHELD}], "/tools/0/input_schema/properties/a/not"),
        ([{"type": "bash_20250124"}, {**TOOL, "input_schema": UNHELD}], "/tools/1/input_schema/properties/a/not"),
        ([TOOL], None),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_loosened_schema_is_told(calling: Served, tools: Any, place: str | None, is_stream: bool) -> None:
    response = post(calling, messages=user("no call"), tools=tools, stream=is_stream)
    assert (response.status_code, response.headers.get("x-fenhe-loosened")) == (200, place)


def test_strict_tool_refuses_what_cannot_be_held(calling: Served) -> None:
    response = post(calling, tools=[{**TOOL, "strict": True, "input_schema": UNHELD}])
    assert response.status_code == 400
    assert "`tools[0].input_schema`" in response.json()["error"]["message"]


def test_max_tokens_beyond_the_context_is_cut(served: Served) -> None:
    create(served, max_tokens=32_000)
    assert served.engine.submitted[-1].sampling.max_tokens < 512


def test_message_that_is_too_long_is_named(served: Served) -> None:
    with pytest.raises(anthropic.BadRequestError, match="tokens") as caught:
        create(served, "x" * 600)
    assert "response_format" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "status", "kind"),
    [
        ("full", 429, "rate_limit_error"),
        ("early", 503, "overloaded_error"),
        ("broken", 500, "api_error"),
        ("sleepy", 504, "timeout_error"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_failures_have_the_shape_of_the_api(start: Start, prompt: str, status: int, kind: str, is_stream: bool) -> None:
    script = {
        "full": Line(refusal=QueueFull("too many")),
        "early": Line(refusal=PathLoading("the path is loading")),
        "broken": Line(pieces=(), error=StepFailed("a forward pass failed")),
        "sleepy": Line(delay_s=1e6),
    }
    response = post(start(script, limits=Limits(request_timeout_s=0.2)), messages=user(prompt), stream=is_stream)
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]


def test_stream_that_breaks_ends_with_an_error_event(start: Start) -> None:
    served = start({"kaput": Line(pieces=("one ", "two"), delay_s=0.02, error=StepFailed("a forward pass failed"))})
    response = post(served, messages=user("kaput"), stream=True)
    last = typed_events(response.content)[-1]
    assert last == {
        "type": "error",
        "error": {"type": "api_error", "message": "a forward pass failed"},
        "request_id": response.headers["request-id"],
    }
    with (
        client_of(served) as client,
        pytest.raises(anthropic.APIStatusError, match="a forward pass failed"),
        client.messages.stream(model="auto", max_tokens=MAX_TOKENS, messages=user("kaput")) as stream,
    ):
        stream.until_done()


@pytest.mark.parametrize(
    ("method", "path", "content", "kind", "status", "told"),
    [
        ("POST", "/v1/messages", b"{", "application/json", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"{}", "text/plain", 415, "invalid_request_error"),
        ("POST", "/v1/messages", b" " * (2**21 + 1), "application/json", 413, "request_too_large"),
        ("POST", "/v1/messages/count_tokens", b"[]", "application/json", 400, "invalid_request_error"),
        ("DELETE", "/v1/messages", b"", "", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", b"{}", "application/json", 404, "not_found_error"),
    ],
)
def test_refusals_have_the_shape_of_the_api(
    served: Served, method: str, path: str, content: bytes, kind: str, status: int, told: str
) -> None:
    response = served.http.request(method, path, content=content, headers={"content-type": kind} if kind else {})
    assert (response.status_code, response.json()["type"], response.json()["error"]["type"]) == (status, "error", told)


def test_official_client_raises_the_errors_it_knows(served: Served) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(served, model="nobody")
    body: Any = caught.value.body
    assert body["error"]["type"] == "not_found_error"
    assert "`nobody`" in body["error"]["message"]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_key_may_come_as_the_client_sends_it() -> None:
    config = ServerConfig(keys=KeysConfig(sha256=(digest("fk-key"),)))
    student = long_student()
    engine = make_engine(SCRIPT, student="random")
    with run_server([Opened(name="random", student=student, engine=engine)], config) as served:
        fields: Any = {"model": "auto", "max_tokens": 5, "messages": user("hello")}
        for options in ({"api_key": "fk-key"}, {"api_key": None, "auth_token": "fk-key"}):
            with client_of(served, **options) as client:
                assert client.messages.create(**fields).role == "assistant"
        with client_of(served, api_key="other") as client, pytest.raises(anthropic.AuthenticationError) as caught:
            client.messages.create(**fields)
        body: Any = caught.value.body
        assert body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("model", ["claude-next-7", "claude-some-model-20300101", "claude-"])
def test_claude_stands_for_any_student(served: Served, model: str) -> None:
    assert create(served, model=model).model == "tiny"
    with client_of(served) as client:
        assert client.messages.count_tokens(model=model, messages=user("hello")).input_tokens > 0


def test_claude_stands_for_what_the_settings_say(start_pool: StartPool) -> None:
    config = ServerConfig(claude_model="second:shallow")
    served = start_pool({"first": (), "second": (), "claude-own": ()}, config=config)
    message = create(served, "hello", model="claude-next-7")
    assert (message.model, message.fenhe) == ("second", {"path": "shallow"})
    assert create(served, "hello", model="claude-own").model == "claude-own"
    assert create(served, "hello", model="first").model == "first"
    chat = served.chat("hello", model="claude-next-7")
    assert chat.status_code == 404


def test_message_is_routed_as_a_chat_is(served: Served) -> None:
    response = post(served, messages=user("math please"))
    assert (response.headers["x-fenhe-task"], response.headers["x-fenhe-path"]) == ("math", "shallow")
    assert response.json()["fenhe"] == {"path": "shallow"}
    assert response.json()["usage"]["fenhe"]["multiply_adds"] > 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief."},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}], "tool_choice": {"type": "any"}},
    ],
)
def test_counted_tokens_are_those_of_the_prompt(calling: Served, fields: dict[str, Any]) -> None:
    counted: dict[str, Any] = post(calling, "/v1/messages/count_tokens", max_tokens=..., **fields).json()
    usage = post(calling, **fields).json()["usage"]
    assert counted == {"input_tokens": usage["input_tokens"]}


def test_counting_names_the_field_at_fault(served: Served) -> None:
    response = post(served, "/v1/messages/count_tokens", tools=[TOOL, TOOL])
    assert response.status_code == 400
    assert "tools[1].name" in response.json()["error"]["message"]


def test_what_was_ignored_is_counted(start: Start) -> None:
    served = start()
    block = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    post(served, messages=user([block]), thinking={"type": "adaptive"})
    metrics = served.http.get("/metrics").text
    for name in ("cache_control", "thinking"):
        assert f'fenhe_ignored_fields_total{{field="{name}"}} 1.0' in metrics
