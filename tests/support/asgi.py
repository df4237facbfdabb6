"""Calls an ASGI application without a server."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from starlette.types import ASGIApp, Message


class Answer(Struct):
    """The response of an application."""

    status: int
    headers: dict[str, str]
    body: bytes


async def call(
    app: ASGIApp, method: str, path: str, body: Sequence[bytes] = (b"",), headers: dict[str, str] | None = None
) -> Answer:
    """Send one request with a body in the given pieces, and return the response. The path may have a query."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }
    pieces = [
        {"type": "http.request", "body": piece, "more_body": number < len(body) - 1}
        for number, piece in enumerate(body)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, content = sent
    names: Any = start["headers"]
    return Answer(start["status"], {name.decode(): value.decode() for name, value in names}, content["body"])
