"""A minimal HTTP/1.1 client that keeps its connections. Hundreds of requests per second must not use a whole core."""

import asyncio
from collections.abc import Mapping

import msgspec

LIMIT_SECONDS = 45.0
"""Longer than a read may wait, and longer than every time limit of the gateway."""
HEAD_LIMIT_BYTES = 65_536


class UnansweredError(Exception):
    """The connection or the time ended before the answer arrived. The effect of the request is unknown."""


class Answer(msgspec.Struct, frozen=True):
    """The answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """The connections to one server: one for each open request."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[_Connection] = []

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, stray: bytes = b""
    ) -> Answer:
        """Send a request once and return the answer. Raises UnansweredError.

        The bytes `stray` follow the request in the same segment. The connection is then closed.
        """
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}:{self._port}", f"content-length: {len(body)}"]
        if body:
            lines.append("content-type: application/json")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        request = "\r\n".join([*lines, "", ""]).encode() + body
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                return await self._exchange(request + stray, reuse=not stray)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise UnansweredError(repr(error)) from error

    async def _exchange(self, request: bytes, *, reuse: bool) -> Answer:
        reader, writer = await self._connection()
        kept = False
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status_line, *fields = head.decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            kept = reuse and headers.get("connection", "").lower() != "close"
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.close()
        return Answer(int(status_line.split(" ", 2)[1]), headers, body)

    async def _connection(self) -> _Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port, limit=HEAD_LIMIT_BYTES)

    def close(self) -> None:
        """Close the idle connections."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
