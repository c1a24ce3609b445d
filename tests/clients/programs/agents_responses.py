"""OpenAI's Agents SDK (Python) with its default model, `/v1/responses`."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool

from tests.clients.programs.openai_chat import Person
from tests.clients.programs.program import Result, Target, failure_of, get_weather, run

MakeModel = Callable[[str, openai.AsyncOpenAI], Any]


def responses_model(name: str, client: openai.AsyncOpenAI) -> Any:
    return OpenAIResponsesModel(model=name, openai_client=client)


class Programs:
    """What this SDK does, on whichever of its models. It takes an answer that is cut off for a failure."""

    def __init__(self, make_model: MakeModel) -> None:
        self._make_model = make_model

    def agent(
        self, to: Target, *, key: str | None = None, model: str | None = None, num_tokens: int = 400, **options: Any
    ) -> Any:
        client = openai.AsyncOpenAI(base_url=to.base_url, api_key=key or to.key, max_retries=0)
        settings = ModelSettings(temperature=0, max_tokens=num_tokens, include_usage=True)
        chosen = self._make_model(model or to.model, client)
        return Agent(name="clerk", model=chosen, model_settings=settings, **options)

    def chat(self, to: Target) -> Result:
        agent = self.agent(to)
        answer = Runner.run_sync(agent, to.prompts["chat"])
        again = Runner.run_sync(agent, [*answer.to_input_list(), {"role": "user", "content": to.prompts["more"]}])
        return {
            "text": answer.final_output,
            "finish": None,
            "usage": usage_of(answer),
            "more": again.final_output,
        }

    def stream(self, to: Target) -> Result:
        pieces, answer = asyncio.run(streamed(self.agent(to), to.prompts["chat"]))
        whole = Runner.run_sync(self.agent(to), to.prompts["chat"]).final_output
        return {"pieces": pieces, "finish": None, "usage": usage_of(answer), "whole": whole}

    def tools(self, to: Target) -> Result:
        """Its loop, whole and as a stream."""
        tool = function_tool(get_weather)
        answer = Runner.run_sync(self.agent(to, tools=[tool]), to.prompts["weather"])
        _, other = asyncio.run(streamed(self.agent(to, tools=[tool]), to.prompts["weather"]))
        return {
            "calls": [calls_in(one) for one in (answer, other)],
            "texts": [answer.final_output, other.final_output],
        }

    def structured(self, to: Target) -> Result:
        answer = Runner.run_sync(self.agent(to, output_type=Person), to.prompts["person"])
        return {"values": [answer.final_output.model_dump()]}

    def errors(self, to: Target) -> Result:
        def failing(prompt: str, **options: Any) -> Result:
            return failure_of(lambda: Runner.run_sync(self.agent(to, **options), prompt))

        return {
            "unknown_model": failing("hello", model="no-such-model"),
            "wrong_key": failing("hello", key="wrong"),
            "too_long": failing(to.prompts["long"]),
            "overloaded": failing(to.prompts["busy"]),
            "broken": failure_of(lambda: asyncio.run(streamed(self.agent(to), to.prompts["broken"]))),
        }

    def cancel(self, to: Target) -> Result:
        async def leave() -> list[str]:
            run_ = Runner.run_streamed(self.agent(to, num_tokens=10_000), to.prompts["endless"])
            pieces = []
            async for event in run_.stream_events():
                pieces += text_of(event)
                if len(pieces) == 2:
                    run_.cancel()
            return pieces

        return {"pieces": asyncio.run(leave())}

    def run(self) -> None:
        capabilities = {"chat": self.chat, "stream": self.stream, "tools": self.tools, "structured": self.structured}
        run(capabilities | {"errors": self.errors, "cancel": self.cancel}, "openai-agents")


async def streamed(agent: Any, prompt: str) -> Any:
    answer = Runner.run_streamed(agent, prompt)
    pieces = [piece async for event in answer.stream_events() for piece in text_of(event)]
    return pieces, answer


def text_of(event: Any) -> list[str]:
    is_text = event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    return [event.data.delta] if is_text and event.data.delta else []


def usage_of(answer: Any) -> list[int]:
    usage = answer.context_wrapper.usage
    return [usage.input_tokens, usage.output_tokens]


def calls_in(answer: Any) -> list[Any]:
    items = [item.raw_item for item in answer.new_items if item.type == "tool_call_item"]
    return [[item.name, json.loads(item.arguments)] for item in items]


if __name__ == "__main__":
    Programs(responses_model).run()
