"""The official OpenAI Python client against a router. Usage: openai_client.py BASE_URL"""

import asyncio
import base64
import struct
import sys

import openai

from cases import equal, main, raises, true

MODEL, LORA, ALIAS, EMBED = "tiny", "ad1", "gpt-4o-mini", "tinyemb"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_unit",
        "description": "The unit of a temperature.",
        "parameters": {"type": "object", "properties": {"u": {"enum": ["C", "F"]}}, "required": ["u"]},
    },
}
FORCED = {"type": "function", "function": {"name": "get_unit"}}


def context(args):
    # No retries: what the router loses must be seen.
    return openai.OpenAI(base_url=args[0] + "/v1", api_key="none", max_retries=0, timeout=300)


def ask(c, **more):
    return c.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0, **more})


def text_of(chunks):
    return "".join(x.choices[0].delta.content or "" for x in chunks if x.choices)


def case_chat(c):
    r = ask(c)
    equal(r.object, "chat.completion")
    equal(r.model, MODEL)
    equal(r.choices[0].message.role, "assistant")
    true(r.choices[0].message.content, "content")
    equal(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens, "total_tokens")


def case_chat_content_parts(c):
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    equal(ask(c, messages=parts).choices[0].message.content, ask(c).choices[0].message.content, "same prompt, same answer")


def case_chat_non_ascii(c):
    true(ask(c, messages=[{"role": "user", "content": "h\u00e9llo \u4e16\u754c \U0001f30a \u0000 \"quoted\" \\n"}]).choices[0].message.content, "content")


def case_chat_stream(c):
    chunks = list(ask(c, stream=True, stream_options={"include_usage": True}))
    equal(len({x.id for x in chunks}), 1, "ids of one stream")
    equal(text_of(chunks), ask(c).choices[0].message.content, "streamed text against the plain one")
    equal(chunks[-1].choices, [], "choices of the last chunk")
    equal(chunks[-1].usage.completion_tokens, 16, "completion_tokens")
    equal([x.usage for x in chunks[:-1] if x.usage], [], "usage before the end")
    equal([x.choices[0].finish_reason for x in chunks[:-1]][-1], "length", "finish_reason")


def case_chat_stream_without_usage(c):
    chunks = list(ask(c, stream=True))
    equal([x.usage for x in chunks if x.usage], [], "usage not asked for")
    true(all(x.choices for x in chunks), "each chunk has a choice")


def case_chat_stream_helper(c):
    with c.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=16, temperature=0) as s:
        text = "".join(e.delta for e in s if e.type == "content.delta")
    equal(text, ask(c).choices[0].message.content, "text of the events")


def case_chat_stream_left_early(c):
    for _ in range(3):
        with ask(c, stream=True, max_tokens=400) as s:
            next(iter(s))
    true(ask(c).choices, "an answer after streams left early")


def case_chat_n2_logprobs(c):
    r = ask(c, n=2, logprobs=True, top_logprobs=2, temperature=1, seed=1, max_tokens=4)
    equal([x.index for x in r.choices], [0, 1], "choices")
    for choice in r.choices:
        equal(len(choice.logprobs.content), 4, "tokens with logprobs")
        for token in choice.logprobs.content:
            equal(len(token.top_logprobs) >= 2, True, "top_logprobs")


def case_chat_n2_stream(c):
    chunks = list(ask(c, n=2, temperature=1, seed=1, max_tokens=4, stream=True))
    equal({x.choices[0].index for x in chunks}, {0, 1}, "indexes")


def case_chat_seed_stop_and_unknown_field(c):
    a, b = (ask(c, temperature=1, seed=7, extra_body={"not_a_field": {"deep": [1]}}).choices[0].message.content for _ in "ab")
    equal(a, b, "same seed, same answer")
    first = a.strip()[:1]
    r = ask(c, temperature=1, seed=7, stop=[first])
    equal(r.choices[0].finish_reason, "stop", "finish_reason")
    true(first not in r.choices[0].message.content, "text up to the stop string")


def case_chat_vllm_fields(c):
    r = ask(c, max_tokens=5, extra_body={"return_token_ids": True, "ignore_eos": True, "top_k": 1})
    equal(len(r.choices[0].token_ids), 5, "token_ids")
    true(r.prompt_token_ids, "prompt_token_ids")


def case_chat_json_schema(c):
    schema = {"type": "object", "properties": {"u": {"enum": ["C", "F"]}}, "required": ["u"]}
    r = ask(c, response_format={"type": "json_schema", "json_schema": {"name": "unit", "schema": schema}})
    true(r.choices[0].message.content.lstrip().startswith("{"), "content begins an object")


def forced_tool(c, **more):
    """The model's weights are random, so a call may be cut by its length: other seeds are tried."""
    for seed in range(10):
        yield ask(c, tools=[TOOL], tool_choice=FORCED, max_tokens=150, temperature=0 if seed == 0 else 1, seed=seed, **more)


def case_tool_forced(c):
    for r in forced_tool(c):
        calls = r.choices[0].message.tool_calls
        if calls:
            equal(calls[0].function.name, "get_unit", "tool")
            true(calls[0].id, "id of the call")
            return
    raise AssertionError("no tool call in 10 answers")


def case_tool_forced_stream(c):
    for stream in forced_tool(c, stream=True):
        names = [t.function.name for x in stream if x.choices for t in x.choices[0].delta.tool_calls or [] if t.function.name]
        if names:
            equal(names[0], "get_unit", "tool")
            return
    raise AssertionError("no tool call in 10 streams")


def case_tool_result_round(c):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_unit", "arguments": '{"u":"C"}'}}
    told = HELLO + [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "C"},
    ]
    true(ask(c, messages=told, tools=[TOOL], tool_choice="none").choices[0].message.content is not None, "content")


def case_completions(c):
    r = c.completions.create(model=MODEL, prompt="def main(", max_tokens=8, temperature=0, echo=True, logprobs=1)
    true(r.choices[0].text.startswith("def main("), "echo")
    true(len(r.choices[0].logprobs.tokens) >= 8, "logprobs")


def case_completions_lists(c):
    one = c.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=4, temperature=0)
    two = c.completions.create(model=MODEL, prompt=[[5, 6, 7], [5, 6, 7]], max_tokens=4, temperature=0)
    equal([x.text for x in two.choices], [one.choices[0].text] * 2, "texts")
    equal(len(c.completions.create(model=MODEL, prompt=["a", "b", "c"], max_tokens=2).choices), 3, "choices")


def case_completions_stream(c):
    text = "".join(x.choices[0].text for x in c.completions.create(model=MODEL, prompt="a", max_tokens=8, temperature=0, stream=True))
    equal(text, c.completions.create(model=MODEL, prompt="a", max_tokens=8, temperature=0).choices[0].text, "text")


def case_responses(c):
    r = c.responses.create(model=MODEL, input="hello", max_output_tokens=8, temperature=0)
    true(r.id.startswith("resp_"), "id")
    true(r.output_text, "output_text")
    equal(r.usage.output_tokens, 8, "output_tokens")


def case_responses_retrieve(c):
    """Stored by one engine of two: the router must find which."""
    for _ in range(8):
        r = c.responses.create(model=MODEL, input="hello", max_output_tokens=8, temperature=0, store=True)
        equal(c.responses.retrieve(r.id).output_text, r.output_text, "stored text")
    second = c.responses.create(model=MODEL, input="and then?", previous_response_id=r.id, max_output_tokens=4)
    true(second.output_text, "an answer that goes on from a stored one")


def case_responses_retrieve_unknown(c):
    equal(raises(openai.NotFoundError, lambda: c.responses.retrieve("resp_0000000000000000")).status_code, 404)


def case_responses_stream(c):
    events = list(c.responses.create(model=MODEL, input="hello", max_output_tokens=8, temperature=0, stream=True))
    equal(events[0].type, "response.created")
    true(events[-1].type in ("response.completed", "response.incomplete"), "last event")
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    equal(text, events[-1].response.output_text, "deltas against the whole")
    equal([e.sequence_number for e in events], sorted(e.sequence_number for e in events), "sequence")


def case_embeddings(c):
    r = c.embeddings.create(model=EMBED, input=["hello", "world"], encoding_format="float")
    equal(len(r.data), 2, "vectors")
    equal(len(r.data[0].embedding), 64, "dimensions")
    raw = c.embeddings.with_raw_response.create(model=EMBED, input=["hello", "world"], encoding_format="base64")
    for want, got in zip(r.data, raw.http_response.json()["data"]):
        vector = struct.unpack("<64f", base64.b64decode(got["embedding"]))
        true(all(abs(x - y) < 1e-5 for x, y in zip(vector, want.embedding)), "base64 against float")
    default = c.embeddings.create(model=EMBED, input=[5, 6, 7])  # base64 on the wire, floats for the caller
    equal(len(default.data[0].embedding), 64, "dimensions")


def case_embeddings_on_causal_model(c):
    raises(openai.NotFoundError, lambda: c.embeddings.create(model=MODEL, input="hello"))


def case_models(c):
    cards = {m.id: m for m in c.models.list()}
    for name in (MODEL, LORA, EMBED):
        true(name in cards, f"{name} in the list of {list(cards)}")
    equal(cards[LORA].parent, MODEL, "parent of the LoRA")
    equal(cards[MODEL].max_model_len, 2048, "max_model_len")


def case_models_retrieve(c):
    equal(c.models.retrieve(MODEL).id, MODEL)
    equal(c.models.retrieve(LORA).parent, MODEL)
    raises(openai.NotFoundError, lambda: c.models.retrieve("nope"))


def case_alias(c):
    equal(ask(c, model=ALIAS).choices[0].message.content, ask(c).choices[0].message.content, "same model, same answer")
    equal(text_of(ask(c, model=ALIAS, stream=True)), ask(c).choices[0].message.content, "the same in a stream")
    true(c.models.retrieve(ALIAS).id, "an alias can be retrieved")


def case_lora(c):
    r = ask(c, model=LORA)
    equal(r.model, LORA)
    true(r.choices[0].message.content != ask(c).choices[0].message.content, "the LoRA changes the answer")


def case_many_at_once(c):
    async def all_of():
        async with openai.AsyncOpenAI(base_url=c.base_url, api_key="none", max_retries=0, timeout=300) as a:
            async def one(i):
                words = [{"role": "user", "content": f"count to {i}"}]
                s = await a.chat.completions.create(model=MODEL, messages=words, max_tokens=20, stream=True, extra_body={"ignore_eos": True}, stream_options={"include_usage": True})
                return [x async for x in s][-1].usage.completion_tokens
            return await asyncio.gather(*(one(i) for i in range(24)))
    equal(asyncio.run(all_of()), [20] * 24, "tokens of each stream")


def case_answer_names_engine_and_request(c):
    r = c.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=1, extra_headers={"X-Request-Id": "abc-1"})
    true(r.headers.get("x-mobula-endpoint"), "x-mobula-endpoint")
    equal(r.headers.get("x-request-id"), "abc-1", "x-request-id")
    equal(r.parse().id, "chatcmpl-abc-1", "the engine sees the request's id")


def case_err_unknown_model(c):
    e = raises(openai.NotFoundError, lambda: ask(c, model="nope"))
    equal((e.status_code, e.type, e.param, e.code), (404, "NotFoundError", "model", "404"))
    raises(openai.NotFoundError, lambda: ask(c, model="nope", stream=True))


def case_err_temperature(c):
    e = raises(openai.BadRequestError, lambda: ask(c, temperature=9))
    equal((e.status_code, e.code), (400, "400"))


def case_err_context_too_long(c):
    e = raises(openai.BadRequestError, lambda: ask(c, messages=[{"role": "user", "content": "one two three " * 3000}]))
    equal((e.type, e.param), ("BadRequestError", "input_tokens"))


def case_err_wrong_type(c):
    raises(openai.BadRequestError, lambda: ask(c, max_tokens="many"))
    raises(openai.BadRequestError, lambda: ask(c, messages="hello"))


def case_err_body_of_message(c):
    e = raises(openai.BadRequestError, lambda: ask(c, messages=[]))
    true(e.body["message"], "message")


if __name__ == "__main__":
    main(sys.modules["__main__"], context)
