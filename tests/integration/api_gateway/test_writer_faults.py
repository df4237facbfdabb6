"""Errors of Postgres that no order caused. The writer replaces the connection, and no order is refused."""

import asyncio
import contextlib
from typing import Any

import psycopg
import pytest

from orderstream.api_gateway import routes
from orderstream.api_gateway.orders.writer import FAULTS_MAX, RefusedError, Writer
from orderstream.api_gateway.session import Session
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.application import application
from tests.integration.api_gateway.test_get import JSON
from tests.integration.api_gateway.test_idempotency import keyed
from tests.integration.api_gateway.test_writer import CountingSession, accepted, ids, new, store_all, stored
from tests.support.asgi import call
from tests.support.bodies import README
from tests.support.servers import Servers

STATEMENT = "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'WITH incoming%'"


async def run_on(session: Session, *statements: str) -> None:
    """Run statements on the current connection of a session, and ignore their errors."""
    assert session._connection is not None
    for statement in statements:
        with contextlib.suppress(psycopg.Error):
            await session._connection.execute(statement.encode())


async def lose_prepared_statements(session: Session) -> None:
    """Deallocate the prepared statements of a session. The client library still believes that they exist."""
    assert session._connection is not None
    cursor = await session._connection.execute("SELECT name FROM pg_prepared_statements", prepare=False)
    await run_on(session, *(f"DEALLOCATE {name}" for (name,) in await cursor.fetchall()))


async def prepare_instead(session: Session, select: str) -> None:
    """Prepare another statement under the name of the writer's, as a pooler does that does not track names."""
    assert session._connection is not None
    cursor = await session._connection.execute(STATEMENT)
    ((name,),) = await cursor.fetchall()
    await run_on(session, f"DEALLOCATE {name}", f"PREPARE {name} (text, text) AS {select}")


BROKEN = {
    "25P02 the transaction has failed": ["BEGIN", "SELECT 1/0"],
    "25006 the session is read-only": ["SET default_transaction_read_only = on"],
    "3F000 another search path": ["SET search_path = nowhere"],
    "42501 another role": ["CREATE ROLE nobody_at_all", "SET ROLE nobody_at_all"],
}
ANOTHER_STATEMENT = {
    "22P02 that refuses the value": "SELECT $1::int8, NULL::text[], $2",
    "22012 that refuses every value": "SELECT 1 / (length($1) - length($1)), NULL::text[], $2",
    "that answers as if there were fewer orders": "SELECT 1::int8, NULL::text[], concat($1, $2)",
    "that has no row": "SELECT 1::int8, NULL::text[], concat($1, $2) WHERE FALSE",
}


@pytest.mark.parametrize("statements", BROKEN.values(), ids=BROKEN)
def test_an_error_of_the_session_replaces_the_connection_and_loses_no_order(
    postgres_url: str, connection: Connection, statements: list[str]
) -> None:
    orders = [new(1), keyed(2, "a"), new(3)]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=10) as writer:
            assert await store_all(writer, [new(9)]) == accepted([new(9)])
            await run_on(session, *statements)
            broken = session._connection
            assert await store_all(writer, orders) == accepted(orders)
            assert session._connection is not broken

    asyncio.run(scenario())
    connection.execute("DROP ROLE IF EXISTS nobody_at_all")
    assert stored(connection)[0] == ids([*orders, new(9)])


@pytest.mark.parametrize("select", ANOTHER_STATEMENT.values(), ids=ANOTHER_STATEMENT)
@pytest.mark.parametrize("count", [1, 3])
def test_an_order_is_stored_although_another_statement_has_the_name_of_the_prepared_one(
    postgres_url: str, connection: Connection, select: str, count: int
) -> None:
    orders = [new(number) for number in range(count)]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=10) as writer:
            assert await store_all(writer, [new(9)]) == accepted([new(9)])
            await prepare_instead(session, select.replace("1::int8", "7::int8"))
            assert await store_all(writer, orders) == accepted(orders)

    asyncio.run(scenario())
    assert stored(connection)[0] == ids([*orders, new(9)])


NO_FAULT_OF_THE_ORDER = [
    *("P0001", "XX000", "XX001", "0A000", "22003", "22P05"),
    *("23503", "23505", "23P01", "38000", "39000"),
]


def raise_on(connection: Connection, user: str, sqlstate: str) -> None:
    """Make Postgres raise an error for the orders of one user."""
    connection.execute(
        f"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF NEW.user_id = '{user}' THEN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END IF;"
        f" RETURN NEW; END $$".encode()
    )
    connection.execute("CREATE TRIGGER no BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION no()")


@pytest.mark.parametrize(
    "sqlstate", ["P0001", "XX000", "XX001", "0A000", "22P05", "22003", "23503", "23505", "23P01", "38000", "39000"]
)
def test_an_order_that_causes_an_error_of_postgres_is_not_refused_and_does_not_block_others(
    postgres_url: str, connection: Connection, sqlstate: str
) -> None:
    raise_on(connection, "unlucky", sqlstate)
    group = [new(number) for number in range(20)]
    group[7] = new(7, user_id="unlucky")

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=100) as writer:
            stores = [writer.store(order) for order in group]
            others = [*stores[:7], *stores[8:]]
            assert await asyncio.gather(*others) == accepted([*group[:7], *group[8:]])
            assert not stores[7].done()
            assert len(session.sizes) < 4 * len(group)
            connection.execute("DROP TRIGGER no ON orders")
            assert await stores[7] == accepted(group)[7]

    asyncio.run(scenario())
    assert stored(connection)[0] == ids(group)


@pytest.mark.parametrize("sqlstate", ["22001", "22026", "23502", "23514", "54000"])
def test_an_order_is_refused_for_a_value_that_postgres_cannot_store(
    postgres_url: str, connection: Connection, sqlstate: str
) -> None:
    raise_on(connection, "bad", sqlstate)
    group = [new(1), new(2, user_id="bad"), new(3)]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=10) as writer:
            answers = await store_all(writer, group)
            assert isinstance(answers.pop(1), RefusedError)
            assert answers == accepted([group[0], group[2]])

    asyncio.run(scenario())


def test_the_number_of_attempts_is_limited_if_postgres_refuses_every_statement(
    postgres_url: str, connection: Connection
) -> None:
    raise_on(connection, "u-1", "XX000")
    group = [new(number) for number in range(200)]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=1_000) as writer:
            stores = [writer.store(order) for order in group]
            await session.begun.wait()
            await asyncio.wait(stores, timeout=0.5)
            attempts = session.sizes.count(len(group))
            assert 0 < len(session.sizes) <= attempts * (FAULTS_MAX + 1)
            connection.execute("DROP TRIGGER no ON orders")
            assert await asyncio.gather(*stores) == accepted(group)

    asyncio.run(scenario())


def test_an_error_of_postgres_is_answered_503_and_not_400(
    postgres_url: str, connection: Connection, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "BUDGET_SECONDS", 0.5)
    raise_on(connection, "u-1", "P0001")

    async def scenario() -> Any:
        async with application(postgres_url, servers.redis_url) as api:
            return await call(api, "POST", "/orders", [README], JSON)

    assert asyncio.run(scenario()).status == 503
    assert stored(connection) == ([], [], 0)


@pytest.mark.parametrize("request_of", ["order", "read", "cancel"])
def test_every_session_replaces_a_connection_without_its_prepared_statements(
    postgres_url: str, servers: Servers, request_of: str
) -> None:
    """All sessions of the gateway lose their prepared statements, as behind a pooler."""
    sessions: list[Session] = []
    init = Session.__init__

    def remember(self: Session, *arguments: Any) -> None:
        init(self, *arguments)
        sessions.append(self)

    async def read_or_cancel(api: Any, path: str) -> int:
        if request_of == "cancel":
            return (await call(api, "POST", f"{path}/cancel")).status
        return (await call(api, "GET", path)).status

    async def scenario(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Session, "__init__", remember)
        async with application(postgres_url, servers.redis_url) as api:
            first = await call(api, "POST", "/orders", [README], {**JSON, "idempotency-key": "a"})
            path = first.headers["location"]
            if request_of == "order":
                again = await call(api, "POST", "/orders", [README], {**JSON, "idempotency-key": "a"})
                assert again.status == 201
            else:
                assert await read_or_cancel(api, path) == 202
            for session in sessions:
                if session._connection is not None:
                    await lose_prepared_statements(session)
            if request_of == "order":
                again = await call(api, "POST", "/orders", [README], {**JSON, "idempotency-key": "a"})
                assert again.body == first.body
            else:
                assert await read_or_cancel(api, path) == 202

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(scenario(patch))
