"""Counts what each process asks of PostgreSQL: a proxy that reads the frontend protocol and changes nothing.

A statement is one Execute or simple Query message. A round trip is one Sync or simple Query message: the client waits
for the answer to it. Source of the message formats: PostgreSQL's documentation, "Frontend/Backend Protocol".
"""

import asyncio
import contextlib
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_READ_BYTES = 1 << 18
_START_SECONDS = 10
_LENGTH = struct.Struct("!I")
_SYNC, _QUERY, _EXECUTE = b"S", b"Q", b"E"
_PROTOCOL_3 = 3 << 16


class PostgresCounts:
    """The statements and round trips of each process since the proxy started, by application name."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.url = ""
        self.statements: Counter[str] = Counter()
        self.round_trips: Counter[str] = Counter()
        self._upstream = upstream
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Future[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side closes it."""
        finished = asyncio.get_running_loop().create_future()
        self._serving.append(finished)
        self._writers.append(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.close()
        else:
            self._writers.append(up_writer)
            await asyncio.gather(self._requests(reader, up_writer), _forward(up_reader, writer))
        finished.set_result(None)

    async def close(self) -> None:
        """Abort every connection."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._serving)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, left = None, b""
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(_READ_BYTES):
                left += received
                if name is None:
                    name, left = _application(left)
                if name is not None:
                    left = self._count(name, left)
                # Counted before they are forwarded: a process that has its answer finds its request in the counts.
                writer.write(received)
                await writer.drain()
        writer.close()

    def _count(self, name: str, received: bytes) -> bytes:
        """Count the complete messages, and return the rest. Their length field counts itself, but not the kind."""
        at = 0
        while len(received) - at > _LENGTH.size:
            end = at + 1 + _LENGTH.unpack_from(received, at + 1)[0]
            if len(received) < end:
                break
            kind = received[at : at + 1]
            self.statements[name] += kind in (_EXECUTE, _QUERY)
            self.round_trips[name] += kind in (_SYNC, _QUERY)
            at = end
        return received[at:]


def _application(received: bytes) -> tuple[str | None, bytes]:
    """Return the application name of the startup message, and what follows it. No name: it is not complete yet.

    Requests for encryption before it have the same form, and are skipped.
    """
    while len(received) >= _LENGTH.size + _LENGTH.size:
        length, protocol = struct.unpack_from("!II", received)
        if len(received) < length:
            break
        message, received = received[8:length], received[length:]
        if protocol >> 16 == _PROTOCOL_3 >> 16:
            fields = message.split(b"\0")
            found = dict(zip(fields[::2], fields[1::2], strict=False))
            return found.get(b"application_name", b"").decode() or "unnamed", received
    return None, received


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while received := await reader.read(_READ_BYTES):
            writer.write(received)
            await writer.drain()
    writer.close()


@contextmanager
def counted(postgres_url: str) -> Iterator[PostgresCounts]:
    """Run the proxy in a thread, in front of this server. Its `url` leads through the proxy."""
    parameters = conninfo_to_dict(postgres_url)
    counts = PostgresCounts((str(parameters["host"]), int(str(parameters["port"]))))
    listening = threading.Event()
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(counts.serve, "127.0.0.1", 0)
        counts.url = make_conninfo(postgres_url, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        listening.set()
        await done.wait()
        server.close()
        await counts.close()

    def work() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(run())

    thread = threading.Thread(target=work, name="postgres-counts", daemon=True)
    thread.start()
    assert listening.wait(_START_SECONDS)
    try:
        yield counts
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
