// OpenAI's Agents SDK (JavaScript) with its default model, /v1/responses.

import { OpenAIResponsesModel } from "@openai/agents";

import { runWith } from "./agents_js.mjs";

await runWith((client, name) => new OpenAIResponsesModel(client, name));
