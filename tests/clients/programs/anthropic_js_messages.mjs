// @anthropic-ai/sdk, /v1/messages.

import Anthropic from "@anthropic-ai/sdk";

import { bounded, failureOf, getWeather, placeSchema, run } from "./program.mjs";

const tool = { name: "get_weather", description: "The weather in a city", input_schema: placeSchema };
const FINISHES = { end_turn: "stop", stop_sequence: "stop", max_tokens: "length", tool_use: "tool_use" };
const user = (content) => ({ role: "user", content });
const clientFor = (to, key = to.key) => new Anthropic({ baseURL: to.url, apiKey: key, maxRetries: 0, timeout: 60000 });
const bodyOf = (to, messages, fields = {}) => ({ model: to.model, max_tokens: 40, temperature: 0, messages, ...fields });
const create = (to, messages, fields) => clientFor(to).messages.create(bodyOf(to, messages, fields));
const textOf = (message) => message.content.map((block) => block.text ?? "").join("");
const callsIn = (message) => message.content.filter((block) => block.type === "tool_use");

// Two turns with a system prompt in blocks; the second sends the first answer's blocks back.
async function chat(to) {
  const system = [{ type: "text", text: "Be kind.", cache_control: { type: "ephemeral" } }];
  const messages = [user(to.prompts.chat)];
  const answer = await create(to, messages, { system });
  const said = { role: "assistant", content: answer.content };
  const again = await create(to, [...messages, said, user(to.prompts.more)]);
  const counted = await clientFor(to).messages.countTokens({ model: to.model, messages });
  if (!(counted.input_tokens > 0)) throw new Error(JSON.stringify(counted));
  return {
    text: textOf(answer),
    finish: FINISHES[answer.stop_reason],
    usage: [answer.usage.input_tokens, answer.usage.output_tokens],
    more: textOf(again),
  };
}

async function stream(to) {
  const messages = [user(to.prompts.chat)];
  const pieces = [];
  const events = clientFor(to).messages.stream(bodyOf(to, messages)).on("text", (piece) => pieces.push(piece));
  const answer = await events.finalMessage();
  return {
    pieces,
    finish: FINISHES[answer.stop_reason],
    usage: [answer.usage.input_tokens, answer.usage.output_tokens],
    whole: textOf(await create(to, messages)),
  };
}

async function tools(to) {
  const messages = [user(to.prompts.weather)];
  const fields = { tools: [tool], max_tokens: 200 };
  const answer = await create(to, messages, fields);
  const streamed = await clientFor(to).messages.stream(bodyOf(to, messages, fields)).finalMessage();
  const texts = [];
  for (const said of [answer, streamed]) {
    const results = callsIn(said).map((call) => ({
      type: "tool_result",
      tool_use_id: call.id,
      content: getWeather(call.input),
    }));
    const more = [...messages, { role: "assistant", content: said.content }, user(results)];
    texts.push(textOf(await create(to, more, fields)));
  }
  const calls = [answer, streamed].map((said) => callsIn(said).map((call) => [call.name, call.input]));
  return { calls, texts };
}

// A forced tool, as this client makes values of a schema.
async function structured(to) {
  const properties = { name: bounded, age: { type: "integer", minimum: 0, maximum: 150 }, city: bounded };
  const required = Object.keys(properties);
  const person = { type: "object", properties, required, additionalProperties: false };
  const answer = await create(to, [user(to.prompts.person)], {
    tools: [{ name: "person", description: "A person", input_schema: person }],
    tool_choice: { type: "tool", name: "person" },
    max_tokens: 200,
  });
  return { values: callsIn(answer).map((call) => call.input) };
}

async function errors(to) {
  const ask = (prompt, fields) => failureOf(() => create(to, [user(to.prompts[prompt])], fields));
  const wrong = () => clientFor(to, "wrong").messages.create(bodyOf(to, [user("hello")]));
  return {
    unknown_model: await ask("chat", { model: "no-such-model" }),
    wrong_key: await failureOf(wrong),
    too_long: await ask("long"),
    overloaded: await ask("busy"),
    broken: await failureOf(() => clientFor(to).messages.stream(bodyOf(to, [user(to.prompts.broken)])).finalMessage()),
  };
}

async function cancel(to) {
  const pieces = [];
  const events = await create(to, [user(to.prompts.endless)], { stream: true, max_tokens: 10000 });
  for await (const event of events) {
    if (event.delta?.text) pieces.push(event.delta.text);
    if (pieces.length > 1) events.controller.abort();
  }
  return { pieces };
}

await run({ chat, stream, tools, structured, errors, cancel }, "@anthropic-ai/sdk");
