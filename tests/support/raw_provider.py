"""A payment provider that answers with any bytes, for tests of its client."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class RawProvider:
    """Reads requests and sends the answers in their order; the last one repeats. An answer that is empty is never sent.

    An answer with `Connection: close`, or one without a length, ends its connection.
    """

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.requests: list[bytes] = []
        self.received = asyncio.Event()
        self.connections = 0
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                self.requests.append(head + await reader.readexactly(int(length[1]) if length else 0))
                self.received.set()
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                writer.write(answer)
                await writer.drain()
                head = answer.partition(b"\r\n\r\n")[0].lower()
                if answer and (b"connection: close" in head or not _LENGTH.search(head)):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed the connection
        finally:
            writer.close()

    @asynccontextmanager
    async def serve(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Yield the URL at which the provider listens, on a free port of the loopback address."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        finally:
            server.close()


def answer(body: bytes | str, status: str = "200 OK", *fields: str, version: str = "1.1") -> bytes:
    """Return an HTTP answer with a body, its length and further header fields."""
    content = body.encode() if isinstance(body, str) else body
    head = [f"HTTP/{version} {status}", f"Content-Length: {len(content)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content
