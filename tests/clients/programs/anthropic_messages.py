"""anthropic (Python), `/v1/messages`."""

from collections.abc import Iterable, Iterator
from typing import Any

import anthropic

from tests.clients.programs.program import Result, Target, failure_of, first, get_weather, run

TOOL: Any = {
    "name": "get_weather",
    "description": get_weather.__doc__,
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
GREEDY = {"temperature": 0}
"""The client has no parameter for it any more; the endpoint has."""
FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_use"}


def client_for(to: Target, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(**{"base_url": to.url, "api_key": to.key, "max_retries": 0, "timeout": 60, **options})


def create(to: Target, messages: Any, **fields: Any) -> Any:
    options = {"model": to.model, "max_tokens": 40, "extra_body": GREEDY, **fields}
    return client_for(to).messages.create(messages=messages, **options)


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def chat(to: Target) -> Result:
    """Two turns with a system prompt in blocks; the second sends the first answer's blocks back."""
    system = [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    messages = [user(to.prompts["chat"])]
    answer = create(to, messages, system=system)
    more = [*messages, {"role": "assistant", "content": answer.content}, user(to.prompts["more"])]
    counted = client_for(to).messages.count_tokens(model=to.model, messages=messages)
    assert counted.input_tokens > 0
    return {
        "text": text_of(answer),
        "finish": FINISHES[answer.stop_reason],
        "usage": [answer.usage.input_tokens, answer.usage.output_tokens],
        "more": text_of(create(to, more)),
    }


def stream(to: Target) -> Result:
    messages = [user(to.prompts["chat"])]
    with client_for(to).messages.stream(model=to.model, messages=messages, max_tokens=40, extra_body=GREEDY) as events:
        pieces = list(events.text_stream)
        answer = events.get_final_message()
    return {
        "pieces": pieces,
        "finish": FINISHES[str(answer.stop_reason)],
        "usage": [answer.usage.input_tokens, answer.usage.output_tokens],
        "whole": text_of(create(to, messages)),
    }


def tools(to: Target) -> Result:
    messages = [user(to.prompts["weather"])]
    answer = create(to, messages, tools=[TOOL], max_tokens=200)
    with client_for(to).messages.stream(model=to.model, messages=messages, tools=[TOOL], max_tokens=200) as events:
        streamed = events.get_final_message()
    after = []
    for said in (answer, streamed):
        assert said.stop_reason == "tool_use"
        more = [*messages, {"role": "assistant", "content": said.content}, user(list(map(result_of, calls_in(said))))]
        after.append(text_of(create(to, more, tools=[TOOL])))
    return {"calls": [[[call.name, call.input] for call in calls_in(said)] for said in (answer, streamed)],
            "texts": after}  # fmt: skip


def calls_in(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


def result_of(call: Any) -> Any:
    return {"type": "tool_result", "tool_use_id": call.id, "content": get_weather(**call.input)}


def structured(to: Target) -> Result:
    """A forced tool, as this client makes values of a schema."""
    bounded = {"type": "string", "maxLength": 20}
    properties = {"name": bounded, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "city": bounded}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    tool = {"name": "person", "description": "A person", "input_schema": schema}
    choice = {"type": "tool", "name": "person"}
    answer = create(to, [user(to.prompts["person"])], tools=[tool], tool_choice=choice, max_tokens=200)
    return {"values": [call.input for call in calls_in(answer)]}


def errors(to: Target) -> Result:
    def ask(prompt: str, **fields: Any) -> Any:
        return create(to, [user(to.prompts[prompt])], **fields)

    def with_wrong_key() -> Any:
        client = client_for(to, api_key="wrong")
        return client.messages.create(model=to.model, messages=[user("hello")], max_tokens=40)

    return {
        "unknown_model": failure_of(lambda: ask("chat", model="no-such-model")),
        "wrong_key": failure_of(with_wrong_key),
        "too_long": failure_of(lambda: ask("long")),
        "overloaded": failure_of(lambda: ask("busy")),
        "broken": failure_of(lambda: list(ask("broken", stream=True))),
    }


def cancel(to: Target) -> Result:
    events = create(to, [user(to.prompts["endless"])], stream=True, max_tokens=10_000)
    pieces = first(texts(events))
    events.close()
    return {"pieces": pieces}


def texts(events: Iterable[Any]) -> Iterator[str]:
    deltas = (event.delta for event in events if event.type == "content_block_delta")
    return (delta.text for delta in deltas if delta.type == "text_delta")


if __name__ == "__main__":
    capabilities = {"chat": chat, "stream": stream, "tools": tools, "structured": structured}
    run(capabilities | {"errors": errors, "cancel": cancel}, "anthropic")
