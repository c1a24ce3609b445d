// The AI SDK on whichever of its models.

import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

import { failureOf, getWeather, run } from "./program.mjs";

const Person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(150),
  city: z.string().max(20),
});
const tools = {
  get_weather: tool({
    description: "The weather in a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async (input) => getWeather(input),
  }),
};
const callsIn = (steps) => steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName, call.input]));

// `modelFor(to, key, model)` makes the model that is asked; every call has `always`.
export async function runWith(modelFor, always, ...packages) {
  const settings = (to, fields = {}) => ({
    model: modelFor(to, to.key, to.model),
    maxOutputTokens: 40,
    temperature: 0,
    maxRetries: 0,
    onError: () => {},
    ...always,
    ...fields,
  });

  // Two turns; the second sends the first answer's messages back.
  async function chat(to) {
    const messages = [{ role: "user", content: to.prompts.chat }];
    const answer = await generateText(settings(to, { messages }));
    messages.push(...answer.response.messages, { role: "user", content: to.prompts.more });
    const again = await generateText(settings(to, { messages }));
    const usage = [answer.usage.inputTokens, answer.usage.outputTokens];
    return { text: answer.text, finish: answer.finishReason, usage, more: again.text };
  }

  async function stream(to) {
    const prompt = to.prompts.chat;
    const answer = streamText(settings(to, { prompt }));
    const pieces = [];
    for await (const piece of answer.textStream) pieces.push(piece);
    const { inputTokens, outputTokens } = await answer.usage;
    const whole = (await generateText(settings(to, { prompt }))).text;
    return { pieces, finish: await answer.finishReason, usage: [inputTokens, outputTokens], whole };
  }

  // Its loop, whole and as a stream.
  async function useTools(to) {
    const fields = { prompt: to.prompts.weather, tools, stopWhen: isStepCount(3), maxOutputTokens: 200 };
    const answer = await generateText(settings(to, fields));
    const streamed = streamText(settings(to, fields));
    await streamed.consumeStream();
    const calls = [callsIn(answer.steps), callsIn(await streamed.steps)];
    return { calls, texts: [answer.text, await streamed.text] };
  }

  async function structured(to) {
    const output = Output.object({ schema: Person });
    const fields = { prompt: to.prompts.person, output, maxOutputTokens: 200 };
    const answer = await generateText(settings(to, fields));
    const streamed = streamText(settings(to, fields));
    await streamed.consumeStream();
    return { values: [answer.output, await streamed.output] };
  }

  async function errors(to) {
    const ask = (prompt, fields) => failureOf(() => generateText(settings(to, { prompt: to.prompts[prompt], ...fields })));
    return {
      unknown_model: await ask("chat", { model: modelFor(to, to.key, "no-such-model") }),
      wrong_key: await ask("chat", { model: modelFor(to, "wrong", to.model) }),
      too_long: await ask("long"),
      overloaded: await ask("busy"),
      broken: await failureOf(async () => {
        for await (const part of streamText(settings(to, { prompt: to.prompts.broken })).fullStream) {
          if (part.type === "error") throw part.error instanceof Error ? part.error : new Error(JSON.stringify(part.error));
        }
      }),
    };
  }

  async function cancel(to) {
    const leaving = new AbortController();
    const fields = { prompt: to.prompts.endless, abortSignal: leaving.signal, maxOutputTokens: 10000 };
    const pieces = [];
    for await (const piece of streamText(settings(to, fields)).textStream) {
      pieces.push(piece);
      if (pieces.length > 1) leaving.abort();
    }
    return { pieces };
  }

  await run({ chat, stream, tools: useTools, structured, errors, cancel }, "ai", ...packages);
}
