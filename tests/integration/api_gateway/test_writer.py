"""Group commit on a real database: bad orders in a group, lost answers, limits, and a Postgres that is down."""

import asyncio
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from orderstream.api_gateway import routes
from orderstream.api_gateway.batcher import QueueFullError
from orderstream.api_gateway.orders.writer import WAITING_LINES_MAX, NewOrder, RefusedError, Stored, Writer
from orderstream.api_gateway.session import Session
from orderstream.domain.events import Item, OrderCreated
from orderstream.postgres.connect import Connection
from orderstream.telemetry.tracing import TraceContext
from tests.integration.api_gateway.application import application
from tests.integration.api_gateway.conftest import elapsed
from tests.integration.api_gateway.proxy import proxy
from tests.integration.api_gateway.test_post import JSON
from tests.support.asgi import Answer, call
from tests.support.bodies import README, many
from tests.support.bodies import order as order_body


def new(number: int, **changes: Any) -> NewOrder:
    fields: dict[str, Any] = {
        "order_id": f"01890a5d-ac96-774b-bcce-{number:012d}",
        "user_id": "u-1",
        "items": (Item(sku="A", qty=1, price=Decimal("1.00")), Item(sku="B", qty=2, price=Decimal("2.00"))),
        "amount": Decimal("5.00"),
        "currency": "USD",
        **changes,
    }
    return NewOrder(OrderCreated(**fields), TraceContext("00-" + "1" * 32 + "-" + "2" * 16 + "-01", None))


class CountingSession(Session):
    """Records the sizes of its groups, and waits for `go` before each statement."""

    def __init__(self, url: str, budget_seconds: float = 5.0) -> None:
        super().__init__(url, "test", budget_seconds)
        self.sizes: list[int] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def execute(self, statement: Any, parameters: Any, row_factory: Any) -> list[Any]:
        if "orders" in parameters:
            self.sizes.append(len(json.loads(parameters["orders"])))
        self.begun.set()
        await self.go.wait()
        return await super().execute(statement, parameters, row_factory)


def stored(connection: Connection) -> tuple[list[str], list[str], int]:
    """Return the ids in `orders`, the order ids in `outbox`, and the number of items."""
    orders = connection.execute("SELECT id FROM orders ORDER BY id").fetchall()
    outbox = connection.execute("SELECT order_id FROM outbox ORDER BY order_id").fetchall()
    items = connection.execute("SELECT order_id FROM order_items").fetchall()
    return [row[0] for row in orders], [row[0] for row in outbox], len(items)


def ids(orders: Sequence[NewOrder]) -> list[str]:
    return [order.created.order_id for order in orders]


def accepted(orders: Sequence[NewOrder]) -> list[Stored]:
    """Return the expected answers for new orders."""
    return [Stored(order_id) for order_id in ids(orders)]


async def store_all(writer: Writer, orders: Sequence[NewOrder]) -> list[BaseException | Stored]:
    return await asyncio.gather(*(writer.store(order) for order in orders), return_exceptions=True)


def test_orders_that_arrive_during_a_commit_are_stored_in_one_transaction(
    postgres_url: str, connection: Connection
) -> None:
    orders = [new(number) for number in range(20)]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=100) as writer:
            session.go.clear()
            first = asyncio.create_task(store_all(writer, orders[:1]))
            await session.begun.wait()
            rest = asyncio.create_task(store_all(writer, orders[1:]))
            await asyncio.sleep(0)
            session.go.set()
            assert await first + await rest == accepted(orders)
            assert session.sizes == [1, 19]

    asyncio.run(scenario())
    assert stored(connection) == (ids(orders), ids(orders), 40)
    transactions = connection.execute("SELECT count(DISTINCT xmin::text) FROM orders").fetchone()
    assert transactions == (2,)


def test_the_lines_of_one_group_are_limited(postgres_url: str, connection: Connection) -> None:
    lines = tuple(Item(sku=str(number), qty=1, price=Decimal(1)) for number in range(1_000))
    orders = [new(number, items=lines) for number in range(5)]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=100) as writer:
            assert await store_all(writer, orders) == accepted(orders)
            assert session.sizes == [2, 2, 1]

    asyncio.run(scenario())
    assert stored(connection)[2] == 5_000


@pytest.mark.parametrize(
    "bad",
    [
        {"user_id": "NUL \x00"},
        {"user_id": "surrogate \ud800"},
        {"amount": Decimal(-1)},
        {"items": (Item(sku="A", qty=0, price=Decimal(1)),)},
        {"items": (Item(sku="A", qty=1 << 40, price=Decimal(1)),)},
        {"items": (Item(sku="A", qty=1, price=Decimal(1)), Item(sku="A", qty=1, price=Decimal(1)))},
    ],
    ids=["NUL", "surrogate", "a CHECK", "an item's CHECK", "a number too large", "an item twice"],
)
def test_an_order_that_cannot_be_stored_fails_without_the_others_of_its_group(
    postgres_url: str, connection: Connection, bad: dict[str, Any]
) -> None:
    good = [new(number) for number in range(9)]
    group = [*good[:4], new(100, **bad), *good[4:]]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=100) as writer:
            answers = await store_all(writer, group)
            assert isinstance(answers.pop(4), RefusedError)
            assert answers == accepted(good)
            assert len(session.sizes) <= 10

    asyncio.run(scenario())
    assert stored(connection) == (ids(good), ids(good), 18)


@pytest.mark.parametrize("losses", [1, 2])
def test_a_commit_whose_answer_was_lost_is_repeated_without_effect(
    postgres_url: str, connection: Connection, losses: int
) -> None:
    orders = [new(number) for number in range(5)]

    async def scenario() -> None:
        async with (
            proxy(postgres_url) as proxied,
            CountingSession(proxied.url) as session,
            Writer(session, waiting_limit=100) as writer,
        ):
            assert await store_all(writer, orders[:1]) == accepted(orders[:1])
            proxied.lose_answers = 1
            assert await store_all(writer, orders) == accepted(orders)
            proxied.lose_answers = losses
            assert await store_all(writer, [new(9)]) == accepted([new(9)])
            assert proxied.lose_answers == 0
            assert proxied.connections == 2 + losses

    asyncio.run(scenario())
    everything = ids([*orders, new(9)])
    assert stored(connection) == (everything, everything, 12)
    traced = connection.execute("SELECT DISTINCT traceparent FROM orders").fetchall()
    assert traced == [("00-" + "1" * 32 + "-" + "2" * 16 + "-01",)]


def test_a_repeated_group_waits_for_its_first_transaction(postgres_url: str, connection: Connection) -> None:
    """The first connection is lost, but its transaction still runs. The repeated group must not insert again."""

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=10) as writer:
            order_id = new(1).created.order_id
            with connection.transaction():
                connection.execute(
                    "INSERT INTO orders (id, user_id, amount, currency) VALUES (%s, 'first', 1, 'USD')", (order_id,)
                )
                second = asyncio.create_task(store_all(writer, [new(1)]))
                await session.begun.wait()
                done, _ = await asyncio.wait([second], timeout=0.2)
                assert not done
            assert await second == accepted([new(1)])

    asyncio.run(scenario())
    assert connection.execute("SELECT user_id FROM orders").fetchall() == [("first",)]
    assert stored(connection)[1:] == ([], 0)


async def post(url: str, redis_url: str, *, waiting_limit: int = 100, count: int = 1) -> list[Answer]:
    """Send the order of the README `count` times at once to the application."""
    async with application(url, redis_url, waiting_limit=waiting_limit, budget_seconds=0.5) as api:
        headers = {"content-type": "application/json"}
        return await asyncio.gather(*(call(api, "POST", "/orders", [README], headers) for _ in range(count)))


def assert_try_again(answer: Answer) -> None:
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert b"urn:orderstream:problem:unavailable" in answer.body


def test_an_order_is_answered_503_if_the_queue_of_the_writer_is_full(
    postgres_url: str, redis_url: str, connection: Connection
) -> None:
    answers = asyncio.run(post(postgres_url, redis_url, waiting_limit=3, count=10))
    assert [answer.status for answer in answers].count(201) == 3
    for answer in answers:
        if answer.status != 201:
            assert_try_again(answer)
    assert len(stored(connection)[0]) == 3


def test_without_postgres_the_answer_is_503_within_the_time_limit(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "BUDGET_SECONDS", 0.3)
    url = "postgresql://nobody@127.0.0.1:1/orders"
    seconds = elapsed(lambda: assert_try_again(asyncio.run(post(url, redis_url))[0]))
    assert 0.3 <= seconds < 4


def test_an_order_is_answered_503_if_postgres_does_not_answer(
    postgres_url: str, redis_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "BUDGET_SECONDS", 0.3)
    connection.execute("BEGIN")
    connection.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
    seconds = elapsed(lambda: assert_try_again(asyncio.run(post(postgres_url, redis_url))[0]))
    connection.execute("ROLLBACK")
    assert 0.3 <= seconds < 4


def test_an_order_is_accepted_if_postgres_is_back_in_time(
    postgres_url: str, redis_url: str, connection: Connection
) -> None:
    async def scenario() -> None:
        async with proxy(postgres_url) as proxied:
            proxied.lose_answers = 3
            answers = await post(proxied.url, redis_url, count=2)
            assert [answer.status for answer in answers] == [201, 201]

    asyncio.run(scenario())
    assert len(stored(connection)[0]) == 2


def test_the_waiting_limit_does_not_count_the_group_in_progress(postgres_url: str) -> None:
    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=1) as writer:
            session.go.clear()
            first = writer.store(new(1))
            await session.begun.wait()
            second = writer.store(new(2))
            assert len(writer) == 1
            with pytest.raises(QueueFullError):
                writer.store(new(3))
            session.go.set()
            await asyncio.gather(first, second)
            assert len(writer) == 0

    asyncio.run(scenario())


def test_the_lines_of_the_orders_that_wait_for_a_commit_are_limited(
    postgres_url: str, redis_url: str, connection: Connection
) -> None:
    body = order_body(items=many(1_000))
    count = WAITING_LINES_MAX // 1_000 + 5

    async def scenario() -> list[int]:
        async with application(postgres_url, redis_url, waiting_limit=1_000) as api:
            answers = await asyncio.gather(*(call(api, "POST", "/orders", [body], JSON) for _ in range(count)))
        return [answer.status for answer in answers]

    statuses = asyncio.run(scenario())
    assert statuses.count(503) == 5
    assert statuses.count(201) == count - 5
