"""LiteLLM's SDK, its provider `openai`, `/v1/chat/completions`."""

import json
from typing import Any

import litellm

from tests.clients.programs.openai_chat import TOOL, Person, calls_of, results_for, texts, user
from tests.clients.programs.program import Result, Target, failure_of, first, run


def create(to: Target, messages: Any, **fields: Any) -> Any:
    options = {"model": f"openai/{to.model}", "api_key": to.key, "max_tokens": 40, "temperature": 0, **fields}
    return litellm.completion(messages=messages, api_base=to.base_url, num_retries=0, **options)


def chat(to: Target) -> Result:
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
    whole = litellm.stream_chunk_builder(chunks, messages=messages)
    return {
        "pieces": [piece for piece in texts(chunks) if piece],
        "finish": whole.choices[0].finish_reason,
        "usage": [whole.usage.prompt_tokens, whole.usage.completion_tokens],
        "whole": create(to, messages).choices[0].message.content,
    }


def tools(to: Target) -> Result:
    messages = [user(to.prompts["weather"])]
    answer = create(to, messages, tools=[TOOL], max_tokens=200).choices[0].message
    chunks = list(create(to, messages, tools=[TOOL], max_tokens=200, stream=True))
    streamed = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message
    after = [create(to, [*messages, said, *results_for(said)], tools=[TOOL]) for said in (answer, streamed)]
    told = [answered.choices[0].message.content for answered in after]
    return {"calls": [calls_of(answer), calls_of(streamed)], "texts": told}


def structured(to: Target) -> Result:
    answer = create(to, [user(to.prompts["person"])], response_format=Person, max_tokens=200)
    return {"values": [json.loads(answer.choices[0].message.content)]}


def errors(to: Target) -> Result:
    def ask(prompt: str, **fields: Any) -> Any:
        return create(to, [user(to.prompts[prompt])], **fields)

    return {
        "unknown_model": failure_of(lambda: ask("chat", model="openai/no-such-model")),
        "wrong_key": failure_of(lambda: ask("chat", api_key="wrong")),
        "too_long": failure_of(lambda: ask("long")),
        "overloaded": failure_of(lambda: ask("busy")),
        "broken": failure_of(lambda: list(ask("broken", stream=True))),
    }


def cancel(to: Target) -> Result:
    chunks = create(to, [user(to.prompts["endless"])], stream=True, max_tokens=10_000)
    pieces = first(texts(chunks))
    chunks.completion_stream.close()
    return {"pieces": pieces}


if __name__ == "__main__":
    capabilities = {"chat": chat, "stream": stream, "tools": tools, "structured": structured}
    run(capabilities | {"errors": errors, "cancel": cancel}, "litellm")
