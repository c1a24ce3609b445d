"""openai (Python), `/v1/chat/completions`; also `/v1/completions` for scores."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import openai
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.programs.program import Result, Target, failure_of, first, get_weather, run

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": get_weather.__doc__,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    city: str = Field(max_length=20)


def client_for(to: Target, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": to.base_url, "api_key": to.key, "max_retries": 0, "timeout": 60, **options})


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def create(to: Target, messages: Any, **fields: Any) -> Any:
    """One call with the defaults of this program; `fields` are the client's own."""
    options = {"model": to.model, "max_tokens": 40, "temperature": 0, **fields}
    return client_for(to).chat.completions.create(messages=messages, **options)


def chat(to: Target) -> Result:
    """Two turns; the second sends the first one's message object back."""
    messages = [user(to.prompts["chat"])]
    answer = create(to, messages)
    message = answer.choices[0].message
    again = create(to, [*messages, message, user(to.prompts["more"])])
    return {
        "text": message.content,
        "finish": answer.choices[0].finish_reason,
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "more": again.choices[0].message.content,
    }


def stream(to: Target) -> Result:
    messages = [user(to.prompts["chat"])]
    chunks = list(create(to, messages, stream=True, stream_options={"include_usage": True}))
    usage = chunks[-1].usage
    return {
        "pieces": [piece for piece in texts(chunks) if piece],
        "finish": next(choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason),
        "usage": [usage.prompt_tokens, usage.completion_tokens],
        "whole": create(to, messages).choices[0].message.content,
    }


def texts(chunks: Iterable[Any]) -> Iterator[str]:
    return (choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def tools(to: Target) -> Result:
    """A call, whole and as a stream; its result sent back; the answer."""
    messages = [user(to.prompts["weather"])]
    message = create(to, messages, tools=[TOOL]).choices[0].message
    helper = client_for(to).chat.completions.stream(model=to.model, messages=messages, tools=[TOOL])
    with helper as events:
        streamed = events.get_final_completion().choices[0].message
    after = [create(to, [*messages, said, *results_for(said)], tools=[TOOL]) for said in (message, streamed)]
    return {
        "calls": [calls_of(message), calls_of(streamed)],
        "texts": [answer.choices[0].message.content for answer in after],
    }


def results_for(message: Any) -> list[Any]:
    return [
        {"role": "tool", "tool_call_id": call.id, "content": get_weather(**json.loads(call.function.arguments))}
        for call in message.tool_calls
    ]


def calls_of(message: Any) -> list[Any]:
    return [[call.function.name, json.loads(call.function.arguments)] for call in message.tool_calls]


def structured(to: Target) -> Result:
    """`parse` and `stream` with a model class; then `parse`'s message object sent back."""
    messages = [user(to.prompts["person"])]
    client = client_for(to)
    options: Any = {"model": to.model, "temperature": 0, "max_tokens": 200, "response_format": Person}
    answer = client.chat.completions.parse(messages=messages, **options).choices[0].message
    with client.chat.completions.stream(messages=messages, **options) as events:
        streamed = events.get_final_completion().choices[0].message
    more: Any = [*messages, answer, streamed, user(to.prompts["more"])]
    return {
        "values": [said.parsed.model_dump() for said in (answer, streamed) if said.parsed is not None],
        "more": create(to, more).choices[0].message.content,
    }


def errors(to: Target) -> Result:
    prompts, client = to.prompts, client_for(to)

    def ask(prompt: str, **fields: Any) -> Any:
        return create(to, [user(prompts[prompt])], **fields)

    def with_wrong_key() -> Any:
        return client_for(to, api_key="wrong").chat.completions.create(model=to.model, messages=[user("hello")])

    return {
        "unknown_model": failure_of(lambda: ask("chat", model="no-such-model")),
        "wrong_key": failure_of(with_wrong_key),
        "too_long": failure_of(lambda: ask("long")),
        "overloaded": failure_of(lambda: ask("busy")),
        "broken": failure_of(lambda: list(client.chat.completions.create(
            model=to.model, messages=[user(prompts["broken"])], stream=True))),
    }  # fmt: skip


def cancel(to: Target) -> Result:
    chunks = create(to, [user(to.prompts["endless"])], stream=True, max_tokens=10_000)
    pieces = first(texts(chunks))
    chunks.close()
    return {"pieces": pieces}


def scores(to: Target) -> Result:
    """Log-probabilities of an answer's tokens, and of a prompt's own, which evaluations read."""
    answer = create(to, [user(to.prompts["chat"])], logprobs=True, top_logprobs=3, max_tokens=3)
    client = client_for(to)
    scored = client.completions.create(model=to.model, prompt="the quick", max_tokens=0, echo=True, logprobs=2)
    known = scored.choices[0].logprobs
    assert known is not None
    return {
        "answer": [[token.logprob, len(token.top_logprobs)] for token in answer.choices[0].logprobs.content],
        "prompt": known.token_logprobs,
        "prompt_text": "".join(known.tokens or []),
    }


if __name__ == "__main__":
    capabilities = {"chat": chat, "stream": stream, "tools": tools, "structured": structured}
    run(capabilities | {"errors": errors, "cancel": cancel, "scores": scores}, "openai")
