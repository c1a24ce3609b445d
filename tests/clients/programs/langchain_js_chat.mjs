// LangChain (JavaScript) with @langchain/openai, /v1/chat/completions.

import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

import { failureOf, getWeather, run } from "./program.mjs";

const Person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(150),
  city: z.string().max(20),
});
const weather = tool(getWeather, {
  name: "get_weather",
  description: "The weather in a city",
  schema: z.object({ city: z.string() }),
});
const modelFor = (to, fields = {}) =>
  new ChatOpenAI({
    model: to.model,
    apiKey: to.key,
    configuration: { baseURL: to.baseURL },
    maxTokens: 40,
    temperature: 0,
    maxRetries: 0,
    streamUsage: true,
    ...fields,
  });
const usageOf = (message) => [message.usage_metadata.input_tokens, message.usage_metadata.output_tokens];

async function chat(to) {
  const model = modelFor(to);
  const asked = new HumanMessage(to.prompts.chat);
  const answer = await model.invoke([asked]);
  const again = await model.invoke([asked, answer, new HumanMessage(to.prompts.more)]);
  const finish = answer.response_metadata.finish_reason;
  return { text: answer.text, finish, usage: usageOf(answer), more: again.text };
}

async function stream(to) {
  const model = modelFor(to);
  const pieces = [];
  let whole;
  for await (const chunk of await model.stream(to.prompts.chat)) {
    if (chunk.text) pieces.push(chunk.text);
    whole = whole === undefined ? chunk : whole.concat(chunk);
  }
  const finish = whole.response_metadata.finish_reason;
  return { pieces, finish, usage: usageOf(whole), whole: (await model.invoke(to.prompts.chat)).text };
}

async function tools(to) {
  const model = modelFor(to, { maxTokens: 200 }).bindTools([weather]);
  const messages = [new HumanMessage(to.prompts.weather)];
  const answer = await model.invoke(messages);
  let streamed;
  for await (const chunk of await model.stream(messages)) streamed = streamed?.concat(chunk) ?? chunk;
  const texts = [];
  for (const said of [answer, streamed]) {
    const results = await Promise.all(said.tool_calls.map((call) => weather.invoke(call)));
    if (!results.every((result) => result instanceof ToolMessage)) throw new Error(JSON.stringify(results));
    texts.push((await model.invoke([...messages, said, ...results])).text);
  }
  const calls = [answer, streamed].map((said) => said.tool_calls.map((call) => [call.name, call.args]));
  return { calls, texts };
}

// By each of its two methods: the schema as the answer's format, and as a function that must be called.
async function structured(to) {
  const model = modelFor(to, { maxTokens: 200 });
  const values = [];
  for (const method of ["jsonSchema", "functionCalling"]) {
    values.push(await model.withStructuredOutput(Person, { method, name: "person" }).invoke(to.prompts.person));
  }
  return { values };
}

async function errors(to) {
  const ask = (prompt, fields) => failureOf(() => modelFor(to, fields).invoke(to.prompts[prompt]));
  return {
    unknown_model: await ask("chat", { model: "no-such-model" }),
    wrong_key: await ask("chat", { apiKey: "wrong" }),
    too_long: await ask("long"),
    overloaded: await ask("busy"),
    broken: await failureOf(async () => {
      for await (const chunk of await modelFor(to).stream(to.prompts.broken));
    }),
  };
}

async function cancel(to) {
  const leaving = new AbortController();
  const pieces = [];
  const chunks = await modelFor(to, { maxTokens: 10000 }).stream(to.prompts.endless, { signal: leaving.signal });
  try {
    for await (const chunk of chunks) {
      if (chunk.text) pieces.push(chunk.text);
      if (pieces.length > 1) leaving.abort();
    }
  } catch (error) {
    if (!leaving.signal.aborted) throw error;
  }
  return { pieces };
}

await run({ chat, stream, tools, structured, errors, cancel }, "@langchain/core", "@langchain/openai");
