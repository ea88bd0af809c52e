"""The official Anthropic Python client against a router. Usage: anthropic_client.py BASE_URL"""

import sys

import anthropic

from cases import equal, main, raises, true

MODEL, LORA, ALIAS = "tiny", "ad1", "gpt-4o-mini"
HELLO = [{"role": "user", "content": "hello"}]


def context(args):
    return anthropic.Anthropic(base_url=args[0], api_key="none", max_retries=0, timeout=300)


def ask(c, **more):
    return c.messages.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 8, "extra_body": {"temperature": 0}, **more})


def case_messages(c):
    r = ask(c)
    equal((r.type, r.role, r.model), ("message", "assistant", MODEL))
    true(r.content[0].text, "text")
    equal(r.stop_reason, "max_tokens")
    equal(r.usage.output_tokens, 8, "output_tokens")


def case_messages_system_and_parts(c):
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    true(ask(c, messages=parts, system="Answer in one word.").content[0].text, "text")


def case_messages_stream(c):
    with c.messages.stream(model=MODEL, messages=HELLO, max_tokens=8, extra_body={"temperature": 0}) as s:
        text = "".join(s.text_stream)
        whole = s.get_final_message()
    equal(text, whole.content[0].text, "deltas against the whole")
    equal(text, ask(c).content[0].text, "streamed text against the plain one")
    equal(whole.stop_reason, "max_tokens")
    equal(whole.usage.output_tokens, 8, "output_tokens")


def case_messages_stream_events(c):
    kinds = [e.type for e in ask(c, stream=True)]
    equal((kinds[0], kinds[-1]), ("message_start", "message_stop"), "first and last event")


def case_messages_stream_left_early(c):
    for _ in range(3):
        with ask(c, stream=True, max_tokens=400) as s:
            next(iter(s))
    true(ask(c).content, "an answer after streams left early")


def case_messages_tools(c):
    tool = {"name": "get_unit", "description": "A unit.", "input_schema": {"type": "object", "properties": {"u": {"type": "string"}}}}
    r = ask(c, tools=[tool], tool_choice={"type": "auto"})
    equal(r.type, "message")


def case_count_tokens(c):
    n = c.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
    equal(n, ask(c).usage.input_tokens, "counted against used")


def case_alias(c):
    equal(ask(c, model=ALIAS).content[0].text, ask(c).content[0].text, "same model, same answer")


def case_lora(c):
    equal(ask(c, model=LORA).model, LORA)


def case_err_unknown_model(c):
    e = raises(anthropic.NotFoundError, lambda: ask(c, model="nope"))
    equal(e.body["type"], "error")
    true(e.body["error"]["message"], "message")
    raises(anthropic.NotFoundError, lambda: ask(c, model="nope", stream=True))


def case_err_bad_request(c):
    equal(raises(anthropic.BadRequestError, lambda: ask(c, extra_body={"temperature": 9})).status_code, 400)
    equal(raises(anthropic.BadRequestError, lambda: ask(c, max_tokens="many")).status_code, 400)


if __name__ == "__main__":
    main(sys.modules["__main__"], context)
