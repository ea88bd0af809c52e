"""A small OpenAI-like application for Ray Serve: the routes that Ray Serve LLM's ingress has, and no more."""

import json

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from starlette.requests import Request

api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class OpenAI:
    def __init__(self, model, text):
        self.model = model
        self.text = text

    @api.get("/v1/models")
    def models(self):
        return {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "serve"}]}

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request):
        body = await request.json()
        if body.get("model") != self.model:
            return JSONResponse({"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}, 404)
        head = {"id": "chatcmpl-serve", "created": 0, "model": self.model}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": self.text}, "finish_reason": "stop"}
            return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}

        def events():
            choice = {"index": 0, "delta": {"role": "assistant", "content": self.text}, "finish_reason": "stop"}
            yield "data: " + json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]}) + "\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


def build(args):
    return OpenAI.bind(args["model"], args.get("text", "Hello from Ray Serve."))


# For serve run.
imperative = OpenAI.bind("imperative", "Hello.")
