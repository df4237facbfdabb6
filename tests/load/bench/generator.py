"""The load generator: sends HTTP requests in an open or in a closed loop, and costs little CPU itself.

It runs in a process of its own: `python -m tests.load.bench.generator` reads the size and the text of a job from stdin
and writes a `Report` to stdout, both as MessagePack. tests/load/bench/load.py starts it.

One thread waits with epoll for raw sockets. A request costs one `send` and one `recv`: the requests are prepared by the
sender of the job, and the generator reads from an answer only its status and its length.
"""

import errno
import gc
import math
import os
import select
import socket
import struct
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable

import msgspec

from tests.load.bench.generator_job import ClosedJob, OpenJob, Report, percentiles

PAUSE_SECONDS = 0.05
"""In a closed loop, a connection waits for this time after a refusal, and before it replaces a lost connection."""
NUMBER = struct.Struct("<Q")
"""A number on stdin: first the size of the job, then each time the number of settled requests."""
_STDIN = 0
_RECEIVED_AT_ONCE = 65_536
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_WITHOUT_BODY = (204, 304)


class Schedule:
    """The times of `count` requests, evenly spaced from `began` on. All times are in seconds of one clock."""

    def __init__(self, began: float, rate: float, count: int) -> None:
        self._began = began
        self._rate = rate
        self._count = count

    def at(self, number: int) -> float:
        """Return the time of the request `number`, counted from 0."""
        return self._began + number / self._rate

    def due(self, now: float) -> int:
        """Return how many requests were scheduled up to `now`."""
        return max(0, min(self._count, math.floor((now - self._began) * self._rate) + 1))


def answer_in(received: bytes) -> tuple[int, int] | None:
    """Return the status and the size of the answer at the start of `received`. None if it is not complete.

    Raises ValueError if it is no HTTP/1.1 answer, or has a body without a content-length.
    """
    head = received.find(_HEAD_END)
    if head < 0:
        return None
    if not received.startswith(b"HTTP/1.1 "):
        raise ValueError(f"no HTTP/1.1 answer: {received[:40]!r}")
    status = int(received[9:12])
    field = received.find(_LENGTH, 0, head)
    if field < 0:
        field = received[:head].lower().find(_LENGTH)
    if field < 0:
        if status not in _WITHOUT_BODY:
            raise ValueError(f"an answer without content-length: {received[:head]!r}")
        return status, head + len(_HEAD_END)
    end = head + len(_HEAD_END) + int(received[field + len(_LENGTH) : received.index(b"\r\n", field)])
    return None if len(received) < end else (status, end)


class _Connection:
    """A connection with at most one request in flight. `intended` is the scheduled time of that request."""

    __slots__ = ("fd", "intended", "is_made", "received", "recv", "send", "socket")

    def __init__(self, host: str, port: int) -> None:
        """Begin to connect. Raises OSError if that fails at once."""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if (error := self.socket.connect_ex((host, port))) not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(error, os.strerror(error))
        self.fd = self.socket.fileno()
        self.send = self.socket.send
        self.recv = self.socket.recv
        self.received = b""
        self.intended: float | None = None
        self.is_made = False


class _Loop:
    """What both loops have in common: the connections, the answers, and the report."""

    def __init__(self, job: OpenJob | ClosedJob, clock: Callable[[], float] = time.perf_counter) -> None:
        self._target = (job.host, job.port)
        self._requests = job.requests
        self._expected = job.expected
        self._clock = clock
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._sent = 0
        self._lost = 0
        self._statuses: Counter[int] = Counter()
        self._latency = array("d")
        self._late = array("d")
        self._began = clock()
        self._deadline = math.inf

    def run(self) -> Report:
        """Send everything, wait for the answers, and return the report."""
        cpu = time.process_time()
        while True:
            now = self._clock()
            wait = self._act(now)
            if wait is None or now >= self._deadline:
                break
            self._await(min(wait, self._deadline - now))
        report = self._report(self._clock() - self._began, time.process_time() - cpu)
        for connection in self._connections.values():
            connection.socket.close()
        self._epoll.close()
        return report

    def _act(self, now: float) -> float | None:
        """Do what is due, and return the seconds until something is due again. None: the job is done."""
        raise NotImplementedError

    def _is_free(self, connection: _Connection) -> None:
        """Use a connection that is new, or whose request was accepted."""
        raise NotImplementedError

    def _is_refused(self, connection: _Connection) -> None:
        raise NotImplementedError

    def _is_lost(self, _connection: _Connection) -> None:
        raise NotImplementedError

    def _planned(self) -> int:
        """Return how many requests were to be sent until now."""
        return self._sent

    def _connect(self) -> bool:
        """Begin to open a connection. Return whether that was possible."""
        try:
            connection = _Connection(*self._target)
        except OSError:
            return False
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLOUT)
        return True

    def _send(self, connection: _Connection, request: bytes, intended: float) -> None:
        connection.intended = intended
        self._sent += 1
        try:
            size = connection.send(request)
        except OSError:
            self._close(connection)
            return
        if size != len(request):
            raise ValueError(f"a request of {len(request)} bytes does not fit into the buffer of a socket")

    def _await(self, seconds: float) -> None:
        """Wait until a socket is ready, at most `seconds`, and handle what is ready.

        epoll rounds the time up to milliseconds. So the last millisecond is left to select, which does not.
        """
        timeout = 0.0
        if seconds >= 0.001:
            timeout = int(min(seconds, 60.0) * 1_000) / 1_000 - 0.000_5
        elif seconds > 0:
            select.select([self._epoll], [], [], seconds)
        for fd, _ in self._epoll.poll(timeout):
            connection = self._connections.get(fd)
            if connection is None:
                self._is_told(fd)
            elif connection.is_made:
                self._receive(connection)
            else:
                self._is_connected(connection)

    def _is_told(self, fd: int) -> None:
        """Read a file descriptor that is no connection. Only a closed loop has one."""
        raise NotImplementedError

    def _is_connected(self, connection: _Connection) -> None:
        if connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._close(connection)
            return
        connection.is_made = True
        self._epoll.modify(connection.fd, select.EPOLLIN)
        self._is_free(connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            received = connection.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._close(connection)
            return
        if connection.received:
            received = connection.received + received
        answer = answer_in(received)
        if answer is None:
            connection.received = received
            return
        status, end = answer
        if end != len(received) or connection.intended is None:
            raise ValueError("the server sent more than one answer")
        connection.received = b""
        self._latency.append(self._clock() - connection.intended)
        connection.intended = None
        self._statuses[status] += 1
        if status == self._expected:
            self._is_free(connection)
        else:
            self._is_refused(connection)

    def _close(self, connection: _Connection) -> None:
        """Forget a connection that ended, and count the request that it carried."""
        del self._connections[connection.fd]
        connection.socket.close()
        if connection.intended is not None:
            self._lost += 1
        self._is_lost(connection)

    def _report(self, seconds: float, cpu_seconds: float) -> Report:
        accepted = self._statuses[self._expected]
        answered = len(self._latency)
        return Report(
            accepted=accepted,
            refused=answered - accepted,
            unanswered=self._planned() - answered,
            statuses=dict(self._statuses),
            latency_ms=[value * 1_000 for value in percentiles(self._latency)],
            late_ms=[value * 1_000 for value in percentiles(self._late)],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
        )


class OpenLoop(_Loop):
    """Runs an open job. Its schedule begins when it is created."""

    def __init__(self, job: OpenJob) -> None:
        super().__init__(job)
        self._job = job
        self._schedule = Schedule(self._began, job.rate, job.count)
        self._deadline = self._schedule.at(job.count - 1) + job.answer_limit_seconds
        self._scheduled = 0
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._free: list[_Connection] = []

    def _act(self, now: float) -> float | None:
        for number in range(self._scheduled, self._schedule.due(now)):
            intended = self._schedule.at(number)
            self._late.append(now - intended)
            self._scheduled = number + 1
            self._send_or_queue(self._requests[number % len(self._requests)], intended)
        if len(self._latency) + self._lost == self._job.count:
            return None
        return math.inf if self._scheduled == self._job.count else self._schedule.at(self._scheduled) - self._clock()

    def _planned(self) -> int:
        return self._job.count

    def _send_or_queue(self, request: bytes, intended: float) -> None:
        if self._free:
            self._send(self._free.pop(), request, intended)
            return
        self._waiting.append((request, intended))
        if len(self._connections) < self._job.connections_max and not self._connect():
            self._give_up_one()

    def _give_up_one(self) -> None:
        """Count the request that waits longest as lost, because the connection that it needs cannot be opened."""
        if self._waiting:
            self._waiting.popleft()
            self._lost += 1

    def _is_free(self, connection: _Connection) -> None:
        """Use a connection for the request that waits longest. The connection used last is used first."""
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self._free.append(connection)

    def _is_refused(self, connection: _Connection) -> None:
        self._is_free(connection)

    def _is_lost(self, connection: _Connection) -> None:
        if connection in self._free:
            self._free.remove(connection)
            return
        if not connection.is_made:
            self._give_up_one()
        while self._waiting and not self._connect():
            self._give_up_one()


class ClosedLoop(_Loop):
    """Runs a closed job. Its time begins when it is created."""

    def __init__(self, job: ClosedJob) -> None:
        super().__init__(job)
        self._end = self._began + job.seconds
        self._deadline = self._end + job.answer_limit_seconds
        self._in_flight_max = job.in_flight_max
        self._settled = 0
        self._parked: list[_Connection] = []
        self._to_open = job.connections
        self._pauses: deque[tuple[float, _Connection | None]] = deque()
        if self._in_flight_max is not None:
            os.set_blocking(_STDIN, False)
            self._epoll.register(_STDIN, select.EPOLLIN)

    def _act(self, now: float) -> float | None:
        if now >= self._end:
            return None if len(self._latency) + self._lost == self._sent else self._deadline - now
        while self._to_open:
            self._to_open -= 1
            self._open()
        while self._pauses and self._pauses[0][0] <= now:
            _, connection = self._pauses.popleft()
            if connection is None:
                self._open()
            elif connection.fd in self._connections:
                self._is_free(connection)
        return min(self._end, self._pauses[0][0] if self._pauses else math.inf) - now

    def _open(self) -> None:
        if not self._connect():
            self._pauses.append((self._clock() + PAUSE_SECONDS, None))

    def _is_free(self, connection: _Connection) -> None:
        now = self._clock()
        if now >= self._end:
            return
        if self._in_flight_max is not None and self._unsettled() >= self._in_flight_max:
            self._parked.append(connection)
            return
        self._send(connection, self._requests[self._sent % len(self._requests)], now)

    def _unsettled(self) -> int:
        refused = len(self._latency) - self._statuses[self._expected]
        return self._sent - refused - self._settled

    def _is_told(self, fd: int) -> None:
        """Read the newest number of settled requests, and use the connections that waited for it."""
        told = os.read(fd, _RECEIVED_AT_ONCE)
        if not told:
            self._epoll.unregister(fd)
            return
        (self._settled,) = NUMBER.unpack(told[-NUMBER.size :])
        parked, self._parked = self._parked, []
        for connection in parked:
            if connection.fd in self._connections:
                self._is_free(connection)

    def _is_refused(self, connection: _Connection) -> None:
        self._pauses.append((self._clock() + PAUSE_SECONDS, connection))

    def _is_lost(self, _connection: _Connection) -> None:
        self._pauses.append((self._clock() + PAUSE_SECONDS, None))


def run(job: OpenJob | ClosedJob) -> Report:
    """Run a job and return its report. A closed job with `in_flight_max` reads stdin."""
    return OpenLoop(job).run() if isinstance(job, OpenJob) else ClosedLoop(job).run()


def _main() -> None:
    (size,) = NUMBER.unpack(_read(NUMBER.size))
    job = msgspec.msgpack.decode(_read(size), type=OpenJob | ClosedJob)
    # A pause of the garbage collector would delay requests. The generator creates no cycles while it runs.
    gc.freeze()
    gc.disable()
    sys.stdout.buffer.write(msgspec.msgpack.encode(run(job)))


def _read(size: int) -> bytes:
    """Read `size` bytes from stdin, without taking more of it."""
    parts = []
    while size:
        part = os.read(_STDIN, size)
        if not part:
            raise EOFError("stdin ended before the job was complete")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    _main()
