// The AI SDK with its provider for servers like OpenAI's, /v1/chat/completions.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

import { runWith } from "./ai_sdk.mjs";

const options = { name: "suite", includeUsage: true, supportsStructuredOutputs: true };

await runWith(
  (to, apiKey, model) => createOpenAICompatible({ baseURL: to.baseURL, apiKey, ...options })(model),
  {},
  "@ai-sdk/openai-compatible",
);
