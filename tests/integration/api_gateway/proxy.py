"""A proxy in front of Postgres that can lose answers of the server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """Forwards all bytes, except for answers that it loses.

    While `lose_answers` is above 0, the proxy drops the next answer of the server, closes the connection, and counts
    `lose_answers` down. The client cannot know whether the server has committed. When the client sends the bytes in
    `lose_answer_to`, the proxy loses the next answer.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.lose_answers = 0
        self.lose_answer_to: bytes | None = None
        self.connections = 0
        self.url = ""
        self._upstream = upstream
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Future[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side closes it, or the proxy loses an answer."""
        self.connections += 1
        finished = asyncio.get_running_loop().create_future()
        self._serving.append(finished)
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        self._writers += (writer, up_writer)
        await asyncio.gather(
            self._forward_requests(reader, up_writer), self._forward_answers(up_reader, writer, up_writer)
        )
        finished.set_result(None)

    async def close(self) -> None:
        """Abort every connection."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._serving)

    async def _forward_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up_writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while answer := await reader.read(65536):
                if self.lose_answers:
                    self.lose_answers -= 1
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()
        up_writer.close()

    async def _forward_requests(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while request := await reader.read(65536):
                if self.lose_answer_to is not None and self.lose_answer_to in request:
                    self.lose_answers, self.lose_answer_to = 1, None
                up_writer.write(request)
                await up_writer.drain()
        up_writer.close()


@asynccontextmanager
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """Run a proxy in front of this server. Its `url` leads through the proxy."""
    parameters = conninfo_to_dict(postgres_url)
    running = Proxy((str(parameters["host"]), int(str(parameters["port"]))))
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.url = make_conninfo(postgres_url, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        server.close()
        await running.close()
