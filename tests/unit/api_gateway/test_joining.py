"""What is written in one turn of the loop leaves in one piece, in order, and all of it before the end."""

import asyncio
from typing import Any, cast

from orderstream.api_gateway.joining import JoiningTransport


class Socket:
    """Notes what a transport is told to do."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return f"its {name}"


def _joining(socket: Socket) -> JoiningTransport:
    return JoiningTransport(cast("Any", socket), asyncio.get_running_loop())


async def _turn() -> None:
    await asyncio.sleep(0)


def test_what_is_written_in_one_turn_leaves_in_one_piece() -> None:
    async def scenario() -> None:
        socket = Socket()
        joining = _joining(socket)
        joining.write(b"head,")
        joining.write(b"body")
        assert socket.done == []
        await _turn()
        joining.write(b"next")
        await _turn()
        assert socket.done == [b"head,body", b"next"]

    asyncio.run(scenario())


def test_closing_sends_what_was_written_and_nothing_after_it() -> None:
    async def scenario() -> None:
        socket = Socket()
        joining = _joining(socket)
        joining.write(b"last")
        joining.close()
        joining.write(b"too late")
        await _turn()
        assert socket.done == [b"last", "closed"]

    asyncio.run(scenario())


def test_all_else_is_the_transport_s_own_affair() -> None:
    async def scenario() -> None:
        assert _joining(Socket()).get_extra_info("peername") == "its peername"

    asyncio.run(scenario())
