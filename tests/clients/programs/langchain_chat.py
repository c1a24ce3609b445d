"""LangChain (Python) with langchain-openai, `/v1/chat/completions`."""

from itertools import islice
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.clients.programs.openai_chat import Person
from tests.clients.programs.program import Result, Target, failure_of, get_weather, run


def model_for(to: Target, **options: Any) -> Any:
    settings = {"model": to.model, "max_tokens": 40, "temperature": 0, "api_key": to.key, "max_retries": 0, **options}
    return ChatOpenAI(base_url=to.base_url, **settings)


def usage_of(message: Any) -> list[int]:
    return [message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]]


def chat(to: Target) -> Result:
    model = model_for(to)
    answer = model.invoke(to.prompts["chat"])
    again = model.invoke([("user", to.prompts["chat"]), answer, ("user", to.prompts["more"])])
    finish = answer.response_metadata["finish_reason"]
    return {"text": answer.text, "finish": finish, "usage": usage_of(answer), "more": again.text}


def stream(to: Target) -> Result:
    model = model_for(to, stream_usage=True)
    chunks = list(model.stream(to.prompts["chat"]))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    finish = whole.response_metadata["finish_reason"]
    pieces = [chunk.text for chunk in chunks if chunk.text]
    return {
        "pieces": pieces,
        "finish": finish,
        "usage": usage_of(whole),
        "whole": model.invoke(to.prompts["chat"]).text,
    }


def tools(to: Target) -> Result:
    """Its agent's loop, whole and as a stream of messages."""
    agent = create_agent(model_for(to, max_tokens=200), tools=[tool(get_weather)])
    given = {"messages": [{"role": "user", "content": to.prompts["weather"]}]}
    answered = agent.invoke(given)["messages"]
    steps = list(agent.stream(given, stream_mode="values"))
    runs = [answered, steps[-1]["messages"]]
    return {"calls": [calls_in(messages) for messages in runs], "texts": [messages[-1].text for messages in runs]}


def calls_in(messages: Any) -> list[Any]:
    return [[call["name"], call["args"]] for message in messages for call in getattr(message, "tool_calls", [])]


def structured(to: Target) -> Result:
    """By each of its two methods: the schema as the answer's format, and as a function that must be called."""
    model = model_for(to, max_tokens=200)
    methods = ("json_schema", "function_calling")
    values = [model.with_structured_output(Person, method=method).invoke(to.prompts["person"]) for method in methods]
    return {"values": [value.model_dump() for value in values]}


def errors(to: Target) -> Result:
    return {
        "unknown_model": failure_of(lambda: model_for(to, model="no-such-model").invoke("hello")),
        "wrong_key": failure_of(lambda: model_for(to, api_key="wrong").invoke("hello")),
        "too_long": failure_of(lambda: model_for(to).invoke(to.prompts["long"])),
        "overloaded": failure_of(lambda: model_for(to).invoke(to.prompts["busy"])),
        "broken": failure_of(lambda: list(model_for(to).stream(to.prompts["broken"]))),
    }


def cancel(to: Target) -> Result:
    chunks = model_for(to, max_tokens=10_000).stream(to.prompts["endless"])
    pieces = [chunk.text for chunk in islice(chunks, 5)]
    chunks.close()
    return {"pieces": [piece for piece in pieces if piece]}


if __name__ == "__main__":
    capabilities = {"chat": chat, "stream": stream, "tools": tools, "structured": structured}
    run(capabilities | {"errors": errors, "cancel": cancel}, "langchain", "langchain-openai")
