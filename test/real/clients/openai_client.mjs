// The official OpenAI Node client against a router.
// Usage: node openai_client.mjs BASE_URL FOLDER, where FOLDER holds node_modules.
// Prints one line of JSON for each case, then how many there were.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [baseURL, folder] = process.argv.slice(2);
const OpenAI = createRequire(folder + "/")("openai");

// No retries: what the router loses must be seen.
const client = new OpenAI({ baseURL: baseURL + "/v1", apiKey: "none", maxRetries: 0, timeout: 300_000 });
const [model, lora, alias, embed] = ["tiny", "ad1", "gpt-4o-mini", "tinyemb"];
const messages = [{ role: "user", content: "hello" }];
const body = (more) => ({ model, messages, max_tokens: 16, temperature: 0, ...more });
const ask = (more) => client.chat.completions.create(body(more));
const textOf = (answer) => answer.choices[0].message.content;
const tool = {
  type: "function",
  function: {
    name: "get_unit",
    parameters: { type: "object", properties: { u: { enum: ["C", "F"] } }, required: ["u"] },
  },
};

async function collect(stream) {
  const all = [];
  for await (const event of stream) all.push(event);
  return all;
}

const cases = {
  async chat() {
    const r = await ask();
    assert.equal(r.model, model);
    assert.ok(textOf(r));
    assert.equal(r.usage.completion_tokens, 16);
  },

  async chat_stream() {
    const chunks = await collect(await ask({ stream: true, stream_options: { include_usage: true } }));
    const text = chunks.map((c) => c.choices[0]?.delta.content ?? "").join("");
    assert.equal(text, textOf(await ask()));
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.completion_tokens, 16);
  },

  async chat_stream_helper() {
    const runner = client.chat.completions.stream(body());
    assert.equal(textOf(await runner.finalChatCompletion()), textOf(await ask()));
  },

  async chat_stream_aborted() {
    for (let i = 0; i < 3; i++) {
      const stream = await ask({ stream: true, max_tokens: 400 });
      for await (const _ of stream) break;
      assert.ok(stream.controller.signal.aborted);
    }
    assert.ok(textOf(await ask()));
  },

  async chat_plain_aborted() {
    const abort = new AbortController();
    const asked = client.chat.completions.create(body({ max_tokens: 1500, ignore_eos: true }), { signal: abort.signal });
    setTimeout(() => abort.abort(), 100);
    await assert.rejects(asked, OpenAI.APIUserAbortError);
    assert.ok(textOf(await ask()));
  },

  async chat_n2_logprobs() {
    const r = await ask({ n: 2, logprobs: true, top_logprobs: 2, temperature: 1, seed: 1, max_tokens: 4 });
    assert.equal(r.choices.length, 2);
    assert.equal(r.choices[1].logprobs.content.length, 4);
  },

  async tool_forced() {
    // The model's weights are random, so a call may be cut by its length: other seeds are tried.
    for (let seed = 0; seed < 10; seed++) {
      const tool_choice = { type: "function", function: { name: "get_unit" } };
      const r = await ask({ tools: [tool], tool_choice, max_tokens: 150, temperature: seed ? 1 : 0, seed });
      const calls = r.choices[0].message.tool_calls;
      if (calls?.length) return assert.equal(calls[0].function.name, "get_unit");
    }
    assert.fail("no tool call in 10 answers");
  },

  async completions() {
    const r = await client.completions.create({ model, prompt: ["a", "b"], max_tokens: 4, temperature: 0 });
    assert.equal(r.choices.length, 2);
  },

  async responses() {
    const r = await client.responses.create({ model, input: "hello", max_output_tokens: 8, temperature: 0 });
    assert.ok(r.output_text);
    assert.equal((await client.responses.retrieve(r.id)).output_text, r.output_text);
  },

  async responses_stream() {
    const events = await collect(
      await client.responses.create({ model, input: "hello", max_output_tokens: 8, temperature: 0, stream: true }),
    );
    assert.equal(events[0].type, "response.created");
    const text = events.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta).join("");
    assert.equal(text, events.at(-1).response.output[0].content[0].text);
  },

  async embeddings() {
    const floats = await client.embeddings.create({ model: embed, input: "hello", encoding_format: "float" });
    const packed = await client.embeddings.create({ model: embed, input: "hello" });
    assert.equal(floats.data[0].embedding.length, 64);
    packed.data[0].embedding.forEach((x, i) => assert.ok(Math.abs(x - floats.data[0].embedding[i]) < 1e-5));
  },

  async models() {
    const ids = (await collect(await client.models.list())).map((m) => m.id);
    for (const id of [model, lora, embed]) assert.ok(ids.includes(id), `${id} in ${ids}`);
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve("nope"), OpenAI.NotFoundError);
  },

  async alias() {
    assert.equal(textOf(await ask({ model: alias })), textOf(await ask()));
  },

  async lora() {
    assert.equal((await ask({ model: lora })).model, lora);
  },

  async many_at_once() {
    const one = async (i) => {
      const words = [{ role: "user", content: `count to ${i}` }];
      const more = { messages: words, max_tokens: 20, ignore_eos: true, stream: true, stream_options: { include_usage: true } };
      return (await collect(await ask(more))).at(-1).usage.completion_tokens;
    };
    const counts = await Promise.all(Array.from({ length: 24 }, (_, i) => one(i)));
    assert.deepEqual(counts, Array(24).fill(20));
  },

  async err_unknown_model() {
    await assert.rejects(ask({ model: "nope" }), (e) => {
      assert.ok(e instanceof OpenAI.NotFoundError, `${e}`);
      assert.deepEqual([e.status, e.type, e.param], [404, "NotFoundError", "model"]);
      return true;
    });
  },

  async err_temperature() {
    await assert.rejects(ask({ temperature: 9 }), OpenAI.BadRequestError);
  },

  async err_context_too_long() {
    const long = [{ role: "user", content: "one two three ".repeat(3000) }];
    await assert.rejects(ask({ messages: long }), OpenAI.BadRequestError);
  },
};

for (const [name, run] of Object.entries(cases)) {
  const line = { case: name, ok: true };
  try {
    await run();
  } catch (e) {
    Object.assign(line, { ok: false, detail: e?.stack ?? String(e) });
  }
  console.log(JSON.stringify(line));
}
console.log(JSON.stringify({ done: Object.keys(cases).length }));
