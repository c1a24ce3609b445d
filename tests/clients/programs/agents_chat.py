"""OpenAI's Agents SDK (Python) with its model for other servers, `/v1/chat/completions`."""

from typing import Any

import openai
from agents import OpenAIChatCompletionsModel

from tests.clients.programs.agents_responses import Programs


def chat_model(name: str, client: openai.AsyncOpenAI) -> Any:
    return OpenAIChatCompletionsModel(model=name, openai_client=client)


if __name__ == "__main__":
    Programs(chat_model).run()
