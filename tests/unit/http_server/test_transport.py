"""A response is written once, at the end of its round of the event loop, and never after the connection is closed."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from orderstream.http_server.server_state import Limits, ServerState
from orderstream.http_server.transport import CONTINUE, ClientTransport
from orderstream.telemetry.tracing import Tracer


class RecordingTransport(asyncio.Transport):
    """Records its calls. `unsent_bytes` is the size of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | str] = []
        self.unsent_bytes = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing."""

    def get_write_buffer_size(self) -> int:
        """Return the size that the test has set."""
        return self.unsent_bytes

    def write(self, data: Any) -> None:
        """Record the bytes."""
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """Record the bytes."""
        self.calls.append(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Record the call."""
        self.calls.append("eof")

    def close(self) -> None:
        """Record the call."""
        self.calls.append("close")

    def abort(self) -> None:
        """Record the call."""
        self.calls.append("abort")


def run(scenario: Callable[[ServerState], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on the event loop that the gateway uses. Afterwards no bytes may be counted as held."""

    async def ignore(*_arguments: object) -> None:
        """Serve nothing."""

    async def checked() -> None:
        state = ServerState(
            ignore, Tracer(None, 0), Limits(connections=10, connections_per_peer=10, request_timeout_seconds=5)
        )
        await scenario(state)
        assert state.held_bytes == 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(checked())


def client(state: ServerState) -> tuple[ClientTransport, RecordingTransport]:
    """Return a connection."""
    transport = RecordingTransport()
    return ClientTransport(transport, state), transport


async def next_round() -> None:
    """Wait until the next round of the event loop is over."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_the_responses_of_a_round_are_written_together_and_in_order() -> None:
    async def scenario(state: ServerState) -> None:
        (first, first_transport), (second, second_transport) = client(state), client(state)
        first.send(b"head 1,", b"body 1,")
        second.send(b"other", b"")
        first.send(b"head 2,", b"x" * 100_000)
        assert first_transport.calls == second_transport.calls == []
        await next_round()
        assert first_transport.calls == [b"head 1,body 1,head 2," + b"x" * 100_000]
        assert second_transport.calls == [b"other"]
        first.send(b"head 3", b"")
        await next_round()
        assert first_transport.calls[1:] == [b"head 3"]

    run(scenario)


@pytest.mark.parametrize(
    ("act", "call"),
    [
        (ClientTransport.end_output, "eof"),
        (ClientTransport.close, "close"),
        (ClientTransport.send_continue, CONTINUE),
    ],
)
def test_what_follows_a_response_comes_after_it(act: Callable[[ClientTransport], None], call: bytes | str) -> None:
    async def scenario(state: ServerState) -> None:
        sender, transport = client(state)
        sender.send(b"head,", b"body")
        act(sender)
        await next_round()
        assert transport.calls == [b"head,body", call]

    run(scenario)


@pytest.mark.parametrize("act", [ClientTransport.abort, ClientTransport.lose])
def test_nothing_is_written_to_a_closed_connection(act: Callable[[ClientTransport], None]) -> None:
    async def scenario(state: ServerState) -> None:
        sender, transport = client(state)
        sender.send(b"head", b"body")
        act(sender)
        await next_round()
        assert [call for call in transport.calls if call != "abort"] == []

    run(scenario)


def test_all_bytes_that_a_client_does_not_take_are_counted() -> None:
    """The next request may have begun before the socket refused the first response, so a second response follows."""

    async def scenario(state: ServerState) -> None:
        sender, transport = client(state)
        transport.unsent_bytes = 100
        sender.pause_writing()
        assert state.held_bytes == 100
        sender.send(b"x" * 50, b"")
        transport.unsent_bytes = 150
        await next_round()
        assert state.held_bytes == 150
        sender.resume_writing()

    run(scenario)
