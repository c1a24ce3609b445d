// OpenAI's Agents SDK (JavaScript) with its model for other servers, /v1/chat/completions.

import { OpenAIChatCompletionsModel } from "@openai/agents";

import { runWith } from "./agents_js.mjs";

await runWith((client, name) => new OpenAIChatCompletionsModel(client, name));
