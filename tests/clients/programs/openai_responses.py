"""openai (Python), `/v1/responses`."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tests.clients.programs.openai_chat import Person, client_for
from tests.clients.programs.program import Result, Target, failure_of, first, get_weather, run

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": get_weather.__doc__,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


def create(to: Target, given: Any, **fields: Any) -> Any:
    options = {"model": to.model, "max_output_tokens": 40, "temperature": 0, **fields}
    return client_for(to).responses.create(input=given, **options)


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def chat(to: Target) -> Result:
    """Two turns; the second sends the items of the first answer back."""
    given = [user(to.prompts["chat"])]
    answer = create(to, given)
    again = create(to, [*given, *answer.output, user(to.prompts["more"])], store=False)
    return {
        "text": answer.output_text,
        "finish": {"completed": "stop", "incomplete": "length"}[answer.status],
        "usage": [answer.usage.input_tokens, answer.usage.output_tokens],
        "more": again.output_text,
    }


def stream(to: Target) -> Result:
    events = list(create(to, to.prompts["chat"], stream=True))
    last = events[-1].response
    return {
        "pieces": list(texts(events)),
        "finish": {"completed": "stop", "incomplete": "length"}[last.status],
        "usage": [last.usage.input_tokens, last.usage.output_tokens],
        "whole": create(to, to.prompts["chat"]).output_text,
    }


def texts(events: Iterable[Any]) -> Iterator[str]:
    return (event.delta for event in events if event.type == "response.output_text.delta")


def tools(to: Target) -> Result:
    given = [user(to.prompts["weather"])]
    answer = create(to, given, tools=[TOOL])
    with client_for(to).responses.stream(model=to.model, input=given, tools=[TOOL]) as events:
        streamed = events.get_final_response()
    after = [
        create(to, [*given, *said.output, *map(result_of, calls_in(said))], tools=[TOOL]) for said in (answer, streamed)
    ]
    return {
        "calls": [[[call.name, json.loads(call.arguments)] for call in calls_in(said)] for said in (answer, streamed)],
        "texts": [said.output_text for said in after],
    }


def calls_in(response: Any) -> list[Any]:
    return [item for item in response.output if item.type == "function_call"]


def result_of(call: Any) -> Any:
    output = get_weather(**json.loads(call.arguments))
    return {"type": "function_call_output", "call_id": call.call_id, "output": output}


def structured(to: Target) -> Result:
    """`parse` and `stream` with a model class; then the parsed items sent back."""
    given = [user(to.prompts["person"])]
    options: Any = {"model": to.model, "temperature": 0, "max_output_tokens": 200, "text_format": Person}
    answer = client_for(to).responses.parse(input=given, **options)
    with client_for(to).responses.stream(input=given, **options) as events:
        streamed = events.get_final_response()
    values = [said.output_parsed.model_dump() for said in (answer, streamed) if said.output_parsed is not None]
    more = create(to, [*given, *answer.output, *streamed.output, user(to.prompts["more"])])
    return {"values": values, "more": more.output_text}


def errors(to: Target) -> Result:
    def with_wrong_key() -> Any:
        return client_for(to, api_key="wrong").responses.create(model=to.model, input="hello")

    def read_broken() -> None:
        for event in create(to, to.prompts["broken"], stream=True):
            if event.type == "response.failed":
                raise RuntimeError(event.response.error.message)

    return {
        "unknown_model": failure_of(lambda: create(to, "hello", model="no-such-model")),
        "wrong_key": failure_of(with_wrong_key),
        "too_long": failure_of(lambda: create(to, to.prompts["long"])),
        "overloaded": failure_of(lambda: create(to, to.prompts["busy"])),
        "broken": failure_of(read_broken),
    }


def cancel(to: Target) -> Result:
    events = create(to, to.prompts["endless"], stream=True, max_output_tokens=10_000)
    pieces = first(texts(events))
    events.close()
    return {"pieces": pieces}


if __name__ == "__main__":
    capabilities = {"chat": chat, "stream": stream, "tools": tools, "structured": structured}
    run(capabilities | {"errors": errors, "cancel": cancel}, "openai")
