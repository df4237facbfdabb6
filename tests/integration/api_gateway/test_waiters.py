"""`Prefer: wait=N`: a read waits until its order settles, with Postgres alone (P11) and within limits."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.orders import waiters as waiters_module
from orderstream.api_gateway.orders.waiters import Waiters
from orderstream.api_gateway.session import Session
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start, elapsed
from tests.integration.api_gateway.test_cancel import cancel, set_state
from tests.integration.api_gateway.test_get import place, settle
from tests.support.samples import ORDER_ID
from tests.support.waiting import wait_until

OTHER_ID = ORDER_ID.replace("0", "1")
Reads = list[Any]


def waiting_reads(gateway: Gateway) -> float:
    """Return the number of waiting reads."""
    lines = gateway.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("orderstream_waiting_reads"))


def read(gateway: Gateway, path: str, prefer: str, **headers: str) -> Any:
    return gateway.client.get(path, headers={"prefer": prefer, **headers})


def start_read(gateway: Gateway, path: str, prefer: str, **headers: str) -> tuple[threading.Thread, Reads]:
    """Start a waiting read in a thread. When the thread ends, the list has the response."""
    responses: Reads = []
    thread = threading.Thread(target=lambda: responses.append(read(gateway, path, prefer, **headers)))
    thread.start()
    wait_until(lambda: waiting_reads(gateway) == 1, 10, "the read waits")
    return thread, responses


Settle = Callable[[Gateway, Connection, str], object]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda _, rows, path: settle(rows, path), "CONFIRMED"),
        (lambda _, rows, path: set_state(rows, path, "FAILED", "failed", "none", "PAYMENT_DECLINED"), "FAILED"),
        (lambda gateway, _, path: cancel(gateway, path), "CANCELLED"),
    ],
    ids=["confirmed", "failed", "cancelled"],
)
def test_a_read_waits_until_its_order_settles(shared: Gateway, rows: Connection, end: Settle, status: str) -> None:
    path = place(shared)
    thread, responses = start_read(shared, path, "wait=20")
    set_state(rows, path, "PAID", "authorized", "none")
    assert thread.is_alive()
    end(shared, rows, path)
    assert elapsed(thread.join) < 5
    assert responses[0].status_code == 200
    assert responses[0].json()["status"] == status
    assert responses[0].headers["preference-applied"] == "wait=20"
    assert responses[0].headers["x-cache"] == "MISS"
    assert shared.client.get(path).headers["x-cache"] == "HIT"
    assert waiting_reads(shared) == 0


def test_a_read_waits_at_most_the_preferred_time(shared: Gateway) -> None:
    path = place(shared)
    started = time.monotonic()
    response = read(shared, path, "wait=1")
    assert 1 <= time.monotonic() - started < 5
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"
    assert "retry-after" in response.headers


def test_if_none_match_is_compared_after_the_wait(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    thread, responses = start_read(shared, path, "wait=20", **{"if-none-match": '"1"'})
    settle(rows, path)
    thread.join()
    assert responses[0].status_code == 200
    response = read(shared, path, "wait=20", **{"if-none-match": '"3"'})
    assert (response.status_code, response.headers["preference-applied"]) == (304, "wait=20")


def test_a_read_does_not_wait_for_a_settled_or_unknown_order(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    settle(rows, path)
    for _ in range(2):
        response = read(shared, path, "wait=99")
        assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=30")
    assert elapsed(lambda: read(shared, path[:-1] + ("0" if path[-1] != "0" else "1"), "wait=30")) < 5


@pytest.mark.parametrize("prefer", ["", "respond-async", "wait", "wait=", "wait=0", "wait=-1", "wait=x", "wait-x=5"])
def test_an_invalid_wait_preference_is_ignored(shared: Gateway, prefer: str) -> None:
    response = read(shared, place(shared), prefer)
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


def test_a_read_can_wait_for_its_order_without_redis(start: Start, connection: Connection) -> None:
    gateway = start(REDIS_URL="redis://127.0.0.1:1/0")
    path = place(gateway)
    thread, responses = start_read(gateway, path, "wait=20")
    settle(connection, path)
    assert elapsed(thread.join) < 5
    assert (responses[0].status_code, responses[0].headers["x-cache"]) == (200, "BYPASS")


def test_a_client_that_disconnects_no_longer_counts_as_waiting(shared: Gateway) -> None:
    path = place(shared)
    with shared.connect() as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nhost: x\r\nprefer: wait=30\r\n\r\n" % path.encode())
        wait_until(lambda: waiting_reads(shared) == 1, 10, "the read waits")
    wait_until(lambda: waiting_reads(shared) == 0, 10, "no read waits")


def test_a_stopping_gateway_answers_all_waiting_reads_at_once(start: Start) -> None:
    gateway = start()
    thread, responses = start_read(gateway, place(gateway), "wait=30")
    gateway.process.send_signal(signal.SIGTERM)
    assert elapsed(thread.join) < 4
    assert responses[0].status_code == 202
    assert "preference-applied" not in responses[0].headers
    assert gateway.process.wait(10) == 0


class PollingSession(Session):
    """Records the order ids of each poll. The next `fail` polls fail."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test")
        self.polls: list[list[str]] = []
        self.fail = 0

    async def check(self, statement: Any, parameters: Any, row_factory: Any) -> list[Any]:
        self.polls.append(parameters["ids"])
        if self.fail:
            self.fail -= 1
            raise TryAgainError
        return await super().check(statement, parameters, row_factory)


def insert(connection: Connection, order_id: str) -> None:
    connection.execute("INSERT INTO orders (id, user_id, amount, currency) VALUES (%s, 'u-1', 1, 'USD')", (order_id,))


def never() -> asyncio.Future[bool]:
    return asyncio.get_running_loop().create_future()


def test_one_query_serves_all_waiting_reads_and_no_query_runs_if_no_read_waits(
    postgres_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters_module, "POLL_AFTER_FAILURE_SECONDS", 0.01)
    for order_id in (ORDER_ID, OTHER_ID):
        insert(connection, order_id)

    async def scenario() -> None:
        async with PollingSession(postgres_url) as session, Waiters(session) as waiters:
            session.fail = 2
            ids = [ORDER_ID, OTHER_ID] * 3
            waits = [asyncio.create_task(waiters.wait(order_id, 20, never())) for order_id in ids]
            while len(session.polls) < 4:
                await asyncio.wait(waits, timeout=0.01)
            assert all(sorted(polled) == sorted([ORDER_ID, OTHER_ID]) for polled in session.polls)
            settle(connection, ORDER_ID)
            assert await asyncio.gather(*waits[::2]) == ["over"] * 3
            assert len(waiters) == 3
            settle(connection, OTHER_ID)
            assert await asyncio.gather(*waits[1::2]) == ["over"] * 3
            assert session.polls[-1] == [OTHER_ID]
            async with asyncio.timeout(10):
                while waiters._has_waiters.is_set():
                    await asyncio.wait([never()], timeout=0.001)
            assert len(waiters) == 0
            assert session.polls[-1] == [OTHER_ID]

    asyncio.run(scenario())


def test_the_number_of_waiting_reads_is_limited(postgres_url: str, connection: Connection) -> None:
    insert(connection, ORDER_ID)

    async def scenario() -> None:
        async with PollingSession(postgres_url) as session, Waiters(session, limit=2) as waiters:
            disconnected = never()
            waits = [asyncio.create_task(waiters.wait(ORDER_ID, 20, future)) for future in (disconnected, never())]
            await asyncio.wait(waits, timeout=0.05)
            assert len(waiters) == 2
            assert await waiters.wait(ORDER_ID, 20, never()) == "refused"
            disconnected.set_result(True)
            await waits[0]
            assert len(waiters) == 1
            third = asyncio.create_task(waiters.wait(OTHER_ID, 20, never()))
            await asyncio.wait([third], timeout=0.05)
            waiters.drain()
            assert [await waits[1], await third] == ["refused", "refused"]
            assert await waiters.wait(ORDER_ID, 20, never()) == "refused"

    asyncio.run(scenario())
