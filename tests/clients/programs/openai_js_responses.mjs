// openai (JavaScript), /v1/responses.

import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { failureOf, getWeather, placeSchema, run } from "./program.mjs";

const Person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(150),
  city: z.string().max(20),
});
const tool = {
  type: "function",
  name: "get_weather",
  description: "The weather in a city",
  parameters: placeSchema,
  strict: false,
};
const user = (content) => ({ role: "user", content });
const clientFor = (to, key = to.key) => new OpenAI({ baseURL: to.baseURL, apiKey: key, maxRetries: 0, timeout: 60000 });
const create = (to, input, fields = {}) =>
  clientFor(to).responses.create({ model: to.model, max_output_tokens: 40, temperature: 0, input, ...fields });
const FINISHES = { completed: "stop", incomplete: "length" };

// Two turns; the second sends the items of the first answer back.
async function chat(to) {
  const input = [user(to.prompts.chat)];
  const answer = await create(to, input);
  const again = await create(to, [...input, ...answer.output, user(to.prompts.more)], { store: false });
  return {
    text: answer.output_text,
    finish: FINISHES[answer.status],
    usage: [answer.usage.input_tokens, answer.usage.output_tokens],
    more: again.output_text,
  };
}

async function stream(to) {
  const pieces = [];
  let last;
  for await (const event of await create(to, to.prompts.chat, { stream: true })) {
    if (event.type === "response.output_text.delta") pieces.push(event.delta);
    last = event.response ?? last;
  }
  const whole = (await create(to, to.prompts.chat)).output_text;
  const usage = [last.usage.input_tokens, last.usage.output_tokens];
  return { pieces, finish: FINISHES[last.status], usage, whole };
}

async function tools(to) {
  const input = [user(to.prompts.weather)];
  const answer = await create(to, input, { tools: [tool] });
  const streamed = await clientFor(to).responses.stream({ model: to.model, input, tools: [tool] }).finalResponse();
  const texts = [];
  for (const said of [answer, streamed]) {
    const results = callsIn(said).map((call) => ({
      type: "function_call_output",
      call_id: call.call_id,
      output: getWeather(JSON.parse(call.arguments)),
    }));
    texts.push((await create(to, [...input, ...said.output, ...results], { tools: [tool] })).output_text);
  }
  const calls = [answer, streamed].map((said) => callsIn(said).map((call) => [call.name, JSON.parse(call.arguments)]));
  return { calls, texts };
}

const callsIn = (response) => response.output.filter((item) => item.type === "function_call");

// `parse` and `stream` with a schema; then the parsed items sent back.
async function structured(to) {
  const input = [user(to.prompts.person)];
  const body = { model: to.model, temperature: 0, max_output_tokens: 200, input };
  body.text = { format: zodTextFormat(Person, "person") };
  const answer = await clientFor(to).responses.parse(body);
  const streamed = await clientFor(to).responses.stream(body).finalResponse();
  const more = await create(to, [...input, ...answer.output, ...streamed.output, user(to.prompts.more)]);
  return { values: [answer.output_parsed, streamed.output_parsed], more: more.output_text };
}

async function errors(to) {
  const ask = (prompt, fields) => failureOf(() => create(to, to.prompts[prompt], fields));
  return {
    unknown_model: await ask("chat", { model: "no-such-model" }),
    wrong_key: await failureOf(() => clientFor(to, "wrong").responses.create({ model: to.model, input: "hello" })),
    too_long: await ask("long"),
    overloaded: await ask("busy"),
    broken: await failureOf(async () => {
      for await (const event of await create(to, to.prompts.broken, { stream: true })) {
        if (event.type === "response.failed") throw new Error(event.response.error.message);
      }
    }),
  };
}

async function cancel(to) {
  const events = await create(to, to.prompts.endless, { stream: true, max_output_tokens: 10000 });
  const pieces = [];
  for await (const event of events) {
    if (event.type === "response.output_text.delta") pieces.push(event.delta);
    if (pieces.length > 1) events.controller.abort();
  }
  return { pieces };
}

await run({ chat, stream, tools, structured, errors, cancel }, "openai");
