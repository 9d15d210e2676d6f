// Asks a running `bitnet serve` with the `openai` package for JavaScript, as programs for Node and the browser do.
//
//   npm install openai && node scripts/check_client.mjs http://127.0.0.1:8080 [KEY]
//
// Ends with 1 if anything is wrong. `check_server.py` has the clients for Python.
import { createRequire } from "node:module";

// From the folder where it is installed, which need not be that of this file.
const require = createRequire(process.cwd() + "/");
const OpenAI = require("openai");
const { VERSION } = require("openai/version");
const [base, apiKey = "none"] = process.argv.slice(2);
if (!base) {
  console.error("usage: check_client.mjs URL [KEY]");
  process.exit(2);
}
let failed = 0;
const check = (name, holds, note = "") => {
  console.log((holds ? "ok    " : "WRONG ") + `openai for JavaScript: ${name}` + (note ? ` (${note})` : ""));
  failed += holds ? 0 : 1;
};

const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
check("model by id", (await client.models.retrieve(model)).id === model, VERSION);

const ask = { model, messages: [{ role: "user", content: "Hello there" }], temperature: 0, max_completion_tokens: 12 };
const whole = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 3 });
const said = whole.choices[0].message.content;
check("usage and log-probabilities", whole.usage.completion_tokens >= whole.choices[0].logprobs.content.length);

let pieces = "", usage = null;
for await (const event of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  pieces += event.choices[0]?.delta.content ?? "";
  usage = event.usage ?? usage;
}
check("a stream says the same", pieces === said);
check("a stream ends with usage", usage?.total_tokens === whole.usage.total_tokens);
const helper = client.chat.completions.stream(ask);
check("the package's own stream says the same", (await helper.finalChatCompletion()).choices[0].message.content === said);

const text = await client.completions.create({ model, prompt: ["One", "Two"], max_tokens: 5, echo: true, logprobs: 2 });
check("completions of two prompts", text.choices.map(choice => choice.text.slice(0, 3)).join() === "One,Two");

const schema = { type: "object", properties: { city: { enum: ["Rome", "Oslo"] } }, required: ["city"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "place", schema, strict: true } };
const place = await client.chat.completions.create({ ...ask, max_completion_tokens: 100, response_format: format });
check("an answer keeps to its schema", ["Rome", "Oslo"].includes(JSON.parse(place.choices[0].message.content).city));
const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
const call = await client.chat.completions.create({ ...ask, max_completion_tokens: 100, tools, tool_choice: "required" });
check("a call keeps to its schema", "city" in JSON.parse(call.choices[0].message.tool_calls[0].function.arguments));
const response = await client.responses.create({ model, input: "Hello there", max_output_tokens: 12, temperature: 0 });
check("responses have text", response.output_text.length > 0);

for (const [name, wrong, kind] of [
  ["400", { ...ask, temperature: 9 }, OpenAI.BadRequestError],
  ["404", { ...ask, model: "another" }, OpenAI.NotFoundError],
]) {
  const error = await client.chat.completions.create(wrong).then(() => null, error => error);
  check(name, error instanceof kind && Boolean(error.code), error?.code);
}

const stop = new AbortController();
const long = await client.chat.completions.create({ ...ask, max_completion_tokens: 400, stream: true }, { signal: stop.signal });
let events = 0;
for await (const _ of long) if (++events === 3) stop.abort();
check("a stream that is aborted ends, and the next is answered", events < 400 &&
  (await client.chat.completions.create(ask)).choices[0].message.content === said);
process.exit(failed ? 1 : 0);
