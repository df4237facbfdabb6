"""A TLS proxy for PostgreSQL and Valkey, whose packaged servers are built without TLS.

The proxy speaks TLS to the client and plain TCP to the server. For a client this is the same as a server with TLS.
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""The message with which a client asks a PostgreSQL server for TLS. The answer `S` accepts it."""


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: int, postgres_tls: ssl.SSLContext | None
) -> None:
    lines = [writer]
    try:
        if postgres_tls is not None:
            assert await reader.readexactly(len(_SSL_REQUEST)) == _SSL_REQUEST
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(postgres_tls)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", upstream)
        lines.append(up_writer)
        await asyncio.gather(_carry(reader, up_writer), _carry(up_reader, writer))
    except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
        # A client that does not trust the certificate disconnects with one of these errors.
        return
    finally:
        for line in lines:
            line.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def tls_proxy(upstream: int, tls: ssl.SSLContext, *, postgres: bool = False) -> Iterator[int]:
    """Run a TLS proxy for the loopback port `upstream` until the block ends. Yield the port of the proxy."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tls-proxy")
    thread.start()

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(
            lambda reader, writer: _serve(reader, writer, upstream, tls if postgres else None),
            "127.0.0.1",
            0,
            ssl=None if postgres else tls,
        )

    async def end(server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
