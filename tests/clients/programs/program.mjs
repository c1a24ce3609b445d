// What the JavaScript programs share, as program.py does for the Python ones: commands on stdin, one JSON object a line;
// an answer to each, a line that begins with a mark.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const MARK = "reply: ";
const WEATHER = "12 degrees, light rain";

export async function run(capabilities, ...packages) {
  reply({ versions: Object.fromEntries(packages.map((name) => [name, versionOf(name)])) });
  for await (const line of createInterface({ input: process.stdin })) {
    const { capability, ...target } = JSON.parse(line);
    try {
      reply({ result: await capabilities[capability]({ ...target, baseURL: `${target.url}/v1` }) });
    } catch (error) {
      reply({ error: error.stack + "\n" + JSON.stringify(error, ["cause", "responseBody", "requestBodyValues"]) });
    }
  }
}

function reply(content) {
  process.stdout.write(`${MARK}${JSON.stringify(content)}\n`);
}

function versionOf(name) {
  const file = new URL(`../node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(file)).version;
}

// What a call throws: its class, the HTTP status that the client makes known, and its text.
export async function failureOf(call) {
  try {
    await call();
  } catch (error) {
    return { type: error.constructor.name, status: error.status ?? error.statusCode ?? null, message: String(error) };
  }
  throw new Error("the call threw nothing");
}

export const getWeather = ({ city }) => WEATHER;

export const bounded = { type: "string", maxLength: 20 };
export const placeSchema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
