// The AI SDK with its provider for OpenAI, whose default is /v1/responses.

import { createOpenAI } from "@ai-sdk/openai";

import { runWith } from "./ai_sdk.mjs";

// Without `store: false` it sends back not what was said but the name of what it believes to be stored.
const providerOptions = { openai: { store: false } };

await runWith(
  (to, apiKey, model) => createOpenAI({ baseURL: to.baseURL, apiKey })(model),
  { providerOptions },
  "@ai-sdk/openai",
);
