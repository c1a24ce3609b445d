// openai (JavaScript), /v1/chat/completions; also /v1/completions for scores.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { failureOf, getWeather, placeSchema, run } from "./program.mjs";

const Person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(150),
  city: z.string().max(20),
});
const tool = {
  type: "function",
  function: { name: "get_weather", description: "The weather in a city", parameters: placeSchema },
};
const user = (content) => ({ role: "user", content });
const clientFor = (to, key = to.key) => new OpenAI({ baseURL: to.baseURL, apiKey: key, maxRetries: 0, timeout: 60000 });
const create = (to, messages, fields = {}) =>
  clientFor(to).chat.completions.create({ model: to.model, max_tokens: 40, temperature: 0, messages, ...fields });

// Two turns; the second sends the first one's message object back.
async function chat(to) {
  const messages = [user(to.prompts.chat)];
  const answer = await create(to, messages);
  const { message, finish_reason } = answer.choices[0];
  const again = await create(to, [...messages, message, user(to.prompts.more)]);
  return {
    text: message.content,
    finish: finish_reason,
    usage: [answer.usage.prompt_tokens, answer.usage.completion_tokens],
    more: again.choices[0].message.content,
  };
}

async function stream(to) {
  const messages = [user(to.prompts.chat)];
  const pieces = [];
  let finish, usage;
  for await (const chunk of await create(to, messages, { stream: true, stream_options: { include_usage: true } })) {
    pieces.push(...chunk.choices.map((choice) => choice.delta.content).filter(Boolean));
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  const whole = (await create(to, messages)).choices[0].message.content;
  return { pieces, finish, usage: [usage.prompt_tokens, usage.completion_tokens], whole };
}

// Its helper for the whole loop, and a stream whose message is sent back by hand.
async function tools(to) {
  const messages = [user(to.prompts.weather)];
  const runner = clientFor(to).chat.completions.runTools({
    model: to.model,
    messages: [...messages],
    tools: [{ type: "function", function: { ...tool.function, function: getWeather, parse: JSON.parse } }],
  });
  const text = await runner.finalContent();
  const asked = runner.messages.find((message) => message.tool_calls?.length);
  const helper = clientFor(to).chat.completions.stream({ model: to.model, messages, tools: [tool] });
  const streamed = await helper.finalMessage();
  const results = streamed.tool_calls.map((call) => ({
    role: "tool",
    tool_call_id: call.id,
    content: getWeather(JSON.parse(call.function.arguments)),
  }));
  const after = await create(to, [...messages, streamed, ...results], { tools: [tool] });
  return { calls: [callsIn(asked), callsIn(streamed)], texts: [text, after.choices[0].message.content] };
}

const callsIn = (message) =>
  message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);

// `parse` and `stream` with a schema; then the parsed messages sent back.
async function structured(to) {
  const messages = [user(to.prompts.person)];
  const body = { model: to.model, temperature: 0, max_tokens: 200, messages };
  body.response_format = zodResponseFormat(Person, "person");
  const answer = (await clientFor(to).chat.completions.parse(body)).choices[0].message;
  const streamed = await clientFor(to).chat.completions.stream(body).finalMessage();
  const more = await create(to, [...messages, answer, streamed, user(to.prompts.more)]);
  return { values: [answer.parsed, streamed.parsed], more: more.choices[0].message.content };
}

async function errors(to) {
  const ask = (prompt, fields) => failureOf(() => create(to, [user(to.prompts[prompt])], fields));
  const wrong = () => clientFor(to, "wrong").chat.completions.create({ model: to.model, messages: [user("hello")] });
  return {
    unknown_model: await ask("chat", { model: "no-such-model" }),
    wrong_key: await failureOf(wrong),
    too_long: await ask("long"),
    overloaded: await ask("busy"),
    broken: await failureOf(async () => {
      for await (const chunk of await create(to, [user(to.prompts.broken)], { stream: true }));
    }),
  };
}

async function cancel(to) {
  const chunks = await create(to, [user(to.prompts.endless)], { stream: true, max_tokens: 10000 });
  const pieces = [];
  for await (const chunk of chunks) {
    pieces.push(...chunk.choices.map((choice) => choice.delta.content).filter(Boolean));
    if (pieces.length > 1) chunks.controller.abort();
  }
  return { pieces };
}

async function scores(to) {
  const answer = await create(to, [user(to.prompts.chat)], { logprobs: true, top_logprobs: 3, max_tokens: 3 });
  const body = { model: to.model, prompt: "the quick", max_tokens: 0, echo: true, logprobs: 2 };
  const known = (await clientFor(to).completions.create(body)).choices[0].logprobs;
  return {
    answer: answer.choices[0].logprobs.content.map((token) => [token.logprob, token.top_logprobs.length]),
    prompt: known.token_logprobs,
    prompt_text: known.tokens.join(""),
  };
}

await run({ chat, stream, tools, structured, errors, cancel, scores }, "openai");
