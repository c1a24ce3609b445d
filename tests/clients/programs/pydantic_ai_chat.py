"""pydantic-ai, `/v1/chat/completions`."""

import asyncio
import json
from typing import Any

import openai
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.programs.openai_chat import Person
from tests.clients.programs.program import Result, Target, failure_of, get_weather, run


def agent_for(
    to: Target, *, key: str | None = None, model: str | None = None, num_tokens: int = 40, **options: Any
) -> Any:
    client = openai.AsyncOpenAI(base_url=to.base_url, api_key=key or to.key, max_retries=0)
    chosen = OpenAIChatModel(model or to.model, provider=OpenAIProvider(openai_client=client))
    return Agent(chosen, model_settings={"temperature": 0, "max_tokens": num_tokens}, **options)


def chat(to: Target) -> Result:
    agent = agent_for(to)
    answer = agent.run_sync(to.prompts["chat"])
    again = agent.run_sync(to.prompts["more"], message_history=answer.all_messages())
    usage = answer.usage
    return {
        "text": answer.output,
        "finish": answer.response.finish_reason,
        "usage": [usage.input_tokens, usage.output_tokens],
        "more": again.output,
    }


async def pieces_of(agent: Any, prompt: str) -> Any:
    async with agent.run_stream(prompt) as answer:
        pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
    return pieces, answer


def stream(to: Target) -> Result:
    pieces, answer = asyncio.run(pieces_of(agent_for(to), to.prompts["chat"]))
    usage = answer.usage
    return {
        "pieces": pieces,
        "finish": answer.response.finish_reason,
        "usage": [usage.input_tokens, usage.output_tokens],
        "whole": agent_for(to).run_sync(to.prompts["chat"]).output,
    }


def tools(to: Target) -> Result:
    """Its agent's loop, whole and as a stream."""
    agent = agent_for(to, num_tokens=200, tools=[get_weather])
    answer = agent.run_sync(to.prompts["weather"])
    agent = agent_for(to, num_tokens=200, tools=[get_weather])
    pieces, streamed = asyncio.run(pieces_of(agent, to.prompts["weather"]))
    calls = [calls_in(messages) for messages in (answer.all_messages(), streamed.all_messages())]
    return {"calls": calls, "texts": [answer.output, "".join(pieces)]}


def calls_in(messages: Any) -> list[Any]:
    parts = [part for message in messages for part in message.parts if part.part_kind == "tool-call"]
    return [[part.tool_name, part.args_as_dict()] for part in parts]


def structured(to: Target) -> Result:
    """By each of its ways: a tool that must be called, and the schema as the answer's format."""
    from pydantic_ai import NativeOutput

    kinds = (Person, NativeOutput(Person))
    answers = [agent_for(to, num_tokens=200, output_type=kind).run_sync(to.prompts["person"]) for kind in kinds]
    return {"values": [json.loads(answer.output.model_dump_json()) for answer in answers]}


def errors(to: Target) -> Result:
    return {
        "unknown_model": failure_of(lambda: agent_for(to, model="no-such-model").run_sync("hello")),
        "wrong_key": failure_of(lambda: agent_for(to, key="wrong").run_sync("hello")),
        "too_long": failure_of(lambda: agent_for(to).run_sync(to.prompts["long"])),
        "overloaded": failure_of(lambda: agent_for(to).run_sync(to.prompts["busy"])),
        "broken": failure_of(lambda: asyncio.run(pieces_of(agent_for(to), to.prompts["broken"]))),
    }


def cancel(to: Target) -> Result:
    async def leave() -> list[str]:
        pieces = []
        async with agent_for(to, num_tokens=10_000).run_stream(to.prompts["endless"]) as answer:
            async for piece in answer.stream_text(delta=True, debounce_by=None):
                pieces.append(piece)
                if len(pieces) == 2:
                    await answer.cancel()
                    break
        return pieces

    return {"pieces": asyncio.run(leave())}


if __name__ == "__main__":
    capabilities = {"chat": chat, "stream": stream, "tools": tools, "structured": structured}
    run(capabilities | {"errors": errors, "cancel": cancel}, "pydantic-ai-slim")
