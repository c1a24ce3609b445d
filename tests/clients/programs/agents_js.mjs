// OpenAI's Agents SDK (JavaScript) on whichever of its models.

import { Agent, Runner, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";

import { failureOf, getWeather, run } from "./program.mjs";

const Person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(150),
  city: z.string().max(20),
});
const weather = tool({
  name: "get_weather",
  description: "The weather in a city",
  parameters: z.object({ city: z.string() }),
  execute: getWeather,
});
const runner = new Runner({ tracingDisabled: true });
const user = (content) => ({ role: "user", content });
const callsIn = (answer) =>
  answer.newItems
    .filter((item) => item.type === "tool_call_item")
    .map((item) => [item.rawItem.name, JSON.parse(item.rawItem.arguments)]);
const usageOf = (answer) => [answer.state.usage.inputTokens, answer.state.usage.outputTokens];

// `modelFor(client, name)` makes the model that is asked.
export async function runWith(modelFor) {
  const agentFor = (to, { key = to.key, model = to.model, maxTokens = 400, ...fields } = {}) => {
    const client = new OpenAI({ baseURL: to.baseURL, apiKey: key, maxRetries: 0 });
    return new Agent({
      name: "clerk",
      model: modelFor(client, model),
      modelSettings: { temperature: 0, maxTokens },
      ...fields,
    });
  };

  async function chat(to) {
    const agent = agentFor(to);
    const answer = await runner.run(agent, to.prompts.chat);
    const again = await runner.run(agent, [...answer.history, user(to.prompts.more)]);
    return { text: answer.finalOutput, finish: null, usage: usageOf(answer), more: again.finalOutput };
  }

  async function streamed(agent, prompt, signal) {
    const answer = await runner.run(agent, prompt, { stream: true, signal });
    const pieces = [];
    for await (const piece of answer.toTextStream()) pieces.push(piece);
    await answer.completed;
    return { pieces, answer };
  }

  async function stream(to) {
    const { pieces, answer } = await streamed(agentFor(to), to.prompts.chat);
    const whole = (await runner.run(agentFor(to), to.prompts.chat)).finalOutput;
    return { pieces, finish: null, usage: usageOf(answer), whole };
  }

  // Its loop, whole and as a stream.
  async function tools(to) {
    const agent = agentFor(to, { tools: [weather] });
    const answer = await runner.run(agent, to.prompts.weather);
    const other = (await streamed(agent, to.prompts.weather)).answer;
    return { calls: [callsIn(answer), callsIn(other)], texts: [answer.finalOutput, other.finalOutput] };
  }

  async function structured(to) {
    const answer = await runner.run(agentFor(to, { outputType: Person }), to.prompts.person);
    return { values: [answer.finalOutput] };
  }

  async function errors(to) {
    const ask = (prompt, fields) => failureOf(() => runner.run(agentFor(to, fields), to.prompts[prompt]));
    return {
      unknown_model: await ask("chat", { model: "no-such-model" }),
      wrong_key: await ask("chat", { key: "wrong" }),
      too_long: await ask("long"),
      overloaded: await ask("busy"),
      broken: await failureOf(() => streamed(agentFor(to), to.prompts.broken)),
    };
  }

  async function cancel(to) {
    const leaving = new AbortController();
    const options = { stream: true, signal: leaving.signal };
    const answer = await runner.run(agentFor(to, { maxTokens: 10000 }), to.prompts.endless, options);
    const pieces = [];
    try {
      for await (const piece of answer.toTextStream()) {
        pieces.push(piece);
        if (pieces.length > 1) leaving.abort();
      }
      await answer.completed;
    } catch (error) {
      if (!leaving.signal.aborted) throw error;
    }
    return { pieces };
  }

  await run({ chat, stream, tools, structured, errors, cancel }, "@openai/agents");
}
