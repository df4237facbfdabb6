"""The requests of one connection that have no response yet, in the order of arrival. The first one is worked on.

The server itself answers some requests, for example with 400, 408, 431 or 503. Such a response waits for its turn in
the same pipeline. It never answers an earlier request, nor a request that the application answers (P1).
"""

from collections import deque
from typing import Protocol

from orderstream.http_server import problems
from orderstream.http_server.exchange import Exchange
from orderstream.http_server.problems import Headers, Problem
from orderstream.http_server.server_state import ServerState


class PipelineOwner(Protocol):
    """The connection of a pipeline."""

    def send_response(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """Send the response of a request that has just left the pipeline."""

    def send_continue(self) -> None:
        """Ask the client for the body of the first request."""

    def body_taken(self) -> None:
        """Read on: the application has taken a piece of a body."""

    def close_without_response(self) -> None:
        """Close: the client disconnected before its request was complete."""


class Pipeline:
    """Starts requests one after the other, and counts their memory until they have a response."""

    __slots__ = ("_closed", "_exchanges", "_owner", "_state")

    def __init__(self, owner: PipelineOwner, state: ServerState) -> None:
        self._owner = owner
        self._state = state
        self._exchanges: deque[Exchange] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._exchanges)

    def add(self, exchange: Exchange) -> None:
        """Append a request."""
        self._state.held_bytes += exchange.held_bytes
        self._exchanges.append(exchange)

    def is_next(self, exchange: Exchange) -> bool:
        """Return whether the request is the first one and has not been started."""
        return exchange is self._exchanges[0] and exchange.task is None

    def start_next(self) -> None:
        """Start the first request, unless it has been started."""
        exchange = self._exchanges[0]
        if exchange.task is not None:
            return
        if exchange.problem is not None:
            self._respond_with_problem(exchange, exchange.problem)
        else:
            exchange.task = self._state.start(exchange, self._end_work)

    def _end_work(self, exchange: Exchange, *, stopped: bool) -> None:
        """Send the server's own response if the application has ended without one."""
        if self._closed or exchange.answered:
            return
        if exchange.problem is not None:
            self._respond_with_problem(exchange, exchange.problem)
        elif exchange.input_ended:
            self._owner.close_without_response()
        elif stopped:
            self._respond_with_problem(exchange, problems.unavailable("The gateway is stopping."))
        else:
            self._respond_with_problem(exchange, problems.internal_error())

    def _respond_with_problem(self, exchange: Exchange, problem: Problem) -> None:
        exchange.problem = problem
        self.respond(exchange, *self._state.problem_response(problem))

    # An exchange calls these three.

    def respond(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """Remove the first request from the pipeline and send its response."""
        if self._closed:
            return
        assert exchange is self._exchanges[0]
        self._exchanges.popleft()
        exchange.answered = True
        self._release(exchange)
        self._owner.send_response(exchange, status, headers, body)

    def send_continue(self) -> None:
        """Ask the client for the body of the first request."""
        if not self._closed:
            self._owner.send_continue()

    def body_taken(self, size: int) -> None:
        """Stop counting `size` bytes of a body that the application has taken."""
        self._state.held_bytes -= size
        self._owner.body_taken()

    # The connection ends requests with these.

    def end_all_input(self) -> None:
        """Tell every request that the client sends no more bytes. A read that waits for its order ends at once."""
        for exchange in self._exchanges:
            exchange.end_input()

    def drop_last(self) -> None:
        """Remove the last request without a response."""
        self._release(self._exchanges.pop())

    def stop_work(self) -> None:
        """Cancel the first request, which gets a 503, and remove the others without a response."""
        while len(self._exchanges) > 1:
            self.drop_last()
        if self._exchanges and (task := self._exchanges[0].task) is not None:
            task.cancel()

    def close(self) -> None:
        """Remove all requests without a response, and send nothing from now on."""
        self._closed = True
        for exchange in self._exchanges:
            self._release(exchange)
        self._exchanges.clear()

    def lose(self) -> None:
        """Close: the client has disconnected. The application still finishes the request that it works on."""
        for exchange in self._exchanges:
            exchange.complete = False
            exchange.end_input()
        self.close()

    def _release(self, exchange: Exchange) -> None:
        """Stop counting the memory of a request."""
        self._state.held_bytes -= exchange.held_bytes + len(exchange.body)
        exchange.held_bytes = 0
        exchange.body.clear()
