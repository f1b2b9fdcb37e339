"""An application that answers /classify as vLLM does, below the layers of ours that scoring servers have."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from types import SimpleNamespace
from typing import Any

import httpx
from PIL import Image

from dt2it_pipeline.serve.key_guard import KeyGuard
from dt2it_pipeline.serve.score_route import App, Receive, Scope, ScoreResponses, Send


def png(mode: str = "RGB", size: tuple[int, int] = (4, 4)) -> str:
    buffer = io.BytesIO()
    Image.new(mode, size, 300 if mode == "I;16" else "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Engine:
    """Scores an answer by its length; longer ones than 50 characters are refused, `crash` fails."""

    def __init__(self, key: str = "") -> None:
        self.bodies: list[dict[str, Any]] = []
        self.state = SimpleNamespace(args=SimpleNamespace(model="a/hub-id", api_key=[key] if key else None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, answer = 200, {"path": scope["path"]}
        if scope["path"] == "/classify":
            body = json.loads((await receive())["body"])
            self.bodies.append(body)
            text = body["messages"][-1]["content"]
            answer = {"data": [{"probs": [math.nan if text == "odd" else float(len(text))]}]}
            if len(text) > 50:
                status, answer = 400, {"error": {"message": "This model's maximum context length is 50 tokens."}}
            elif text == "narrow":
                message = "Failed to apply Qwen3VLProcessor on data={'text': '<|im_start|>', 'images': [<PIL 0x7f>]}"
                status, answer = 400, {"error": {"message": message}}
            elif text == "refused":
                status, answer = 400, {"error": {"message": "no"}}
            elif text == "other":
                answer = {"data": []}
            elif text == "crash":
                status, answer = 500, {"error": {"message": "engine dead"}}
            elif text == "patient":
                assert (await receive())["type"] == "http.disconnect"
        data = json.dumps(answer).encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": data})


def request(engine: Engine, method: str, path: str, body: Any = None, headers: Any = None) -> httpx.Response:
    """What our layers around the engine answer."""
    layers: App = KeyGuard(ScoreResponses(engine))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await layers({**scope, "app": engine}, receive, send)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            given = {"content": body} if isinstance(body, bytes) else {"json": body}
            return await client.request(method, path, headers=headers, **(given if body is not None else {}))

    return asyncio.run(ask())
