"""A proxy in front of Postgres that loses answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """Passes everything on. While `lose_answers` is above 0, each answer of the server is swallowed, its connection
    cut, and one less is to be lost: the client cannot know whether the server did as told. One answer more is lost as
    soon as the client says what is in `lose_answer_to`."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.lose_answers = 0
        self.lose_answer_to: bytes | None = None
        self.connections = 0
        self.url = ""
        self._upstream = upstream
        self._lines: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Future[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side closes it, or an answer is lost."""
        self.connections += 1
        finished = asyncio.get_running_loop().create_future()
        self._serving.append(finished)
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        self._lines += (writer, up_writer)
        await asyncio.gather(self._ask(reader, up_writer), self._answer(up_reader, writer, up_writer))
        finished.set_result(None)

    async def close(self) -> None:
        """Cut every connection."""
        for line in self._lines:
            line.transport.abort()
        await asyncio.gather(*self._serving)

    async def _answer(
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

    async def _ask(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while asked := await reader.read(65536):
                if self.lose_answer_to is not None and self.lose_answer_to in asked:
                    self.lose_answers, self.lose_answer_to = 1, None
                up_writer.write(asked)
                await up_writer.drain()
        up_writer.close()


@asynccontextmanager
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """Run a proxy in front of this server; `url` leads through it."""
    parameters = conninfo_to_dict(postgres_url)
    between = Proxy((str(parameters["host"]), int(str(parameters["port"]))))
    server = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    between.url = make_conninfo(postgres_url, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    try:
        yield between
    finally:
        server.close()
        await between.close()
