"""The same Idempotency-Key gives the same order and the same response (P10), at any time and at any gateway."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from orderstream.api_gateway.orders.idempotency import IdempotencyKey
from orderstream.api_gateway.orders.writer import KeyReusedError, NewOrder, RefusedError, Stored, Writer
from orderstream.domain.events import Item
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.integration.api_gateway.proxy import proxy
from tests.integration.api_gateway.test_post import JSON, count, problem
from tests.integration.api_gateway.test_writer import CountingSession, accepted, ids, new, store_all, stored
from tests.support.bodies import README, order

ALIKE = [
    README,
    order(amount='"129.00"', price="129"),
    order(amount="1.29e2", more=',"note":"ignored"'),
    b'{"currency":"USD","amount":129,"items":[{"price":129,"qty":1,"sku":"SKU-1"}],"userId":"u-1"}',
]
TWO_LINES = '{"sku":"A","qty":1,"price":1},{"sku":"B","qty":2,"price":2}'
TURNED = '{"sku":"B","qty":1,"price":2},{"sku":"A","qty":1,"price":1},{"sku":"B","qty":1,"price":"2.00"}'


def post(gateway: Gateway, key: str, body: bytes = README) -> Any:
    return gateway.client.post("/orders", content=body, headers={**JSON, "idempotency-key": key})


def test_the_same_order_with_the_same_key_gets_the_same_response(shared: Gateway, rows: Connection) -> None:
    first = post(shared, "again")
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    before = count(rows)
    for body in ALIKE:
        response = post(shared, "again", body)
        assert (response.status_code, response.content) == (201, first.content)
        assert response.headers["location"] == first.headers["location"]
        assert response.headers["idempotent-replayed"] == "true"
    assert count(rows) == before


def test_an_order_with_its_lines_in_another_sequence_or_split_is_the_same_order(shared: Gateway) -> None:
    first = post(shared, "lines", order(items=f"[{TWO_LINES}]"))
    assert post(shared, "lines", order(items=f"[{TURNED}]")).content == first.content


@pytest.mark.parametrize(
    "other",
    [
        order(amount="129.01"),
        order(user='"u-2"'),
        order(currency='"EUR"'),
        order(qty="2"),
        order(price="128"),
        order(sku='"SKU-2"'),
    ],
    ids=["amount", "user", "currency", "quantity", "price", "SKU"],
)
def test_a_different_order_with_the_same_key_is_refused(shared: Gateway, rows: Connection, other: bytes) -> None:
    assert post(shared, "taken").status_code == 201
    before = count(rows)
    response = post(shared, "taken", other)
    assert response.status_code == 422
    problem(response, "idempotency-key-reused")
    assert count(rows) == before


@pytest.mark.parametrize(
    "key", [b"", b"a b", b"x" * 256, b"caf\xc3\xa9", b"a\tb", b"\xff"], ids=lambda key: repr(key)[:12]
)
def test_an_invalid_key_is_refused(shared: Gateway, rows: Connection, key: bytes) -> None:
    before = count(rows)
    headers: Any = {**JSON, "idempotency-key": key}
    response = shared.client.post("/orders", content=README, headers=headers)
    assert response.status_code == 400
    problem(response, "invalid-idempotency-key")
    assert count(rows) == before


def test_two_keys_in_one_request_are_refused(shared: Gateway) -> None:
    headers = [*JSON.items(), ("idempotency-key", "one"), ("idempotency-key", "two")]
    problem(shared.client.post("/orders", content=README, headers=headers), "invalid-idempotency-key")


def test_a_key_may_contain_every_visible_character(shared: Gateway) -> None:
    visible = "".join(map(chr, range(0x21, 0x7F)))
    for key in (visible, "x" * 255, "!"):
        first, second = post(shared, key), post(shared, key)
        assert first.status_code == second.status_code == 201
        assert first.content == second.content


def test_a_refused_order_does_not_use_up_its_key(shared: Gateway) -> None:
    assert post(shared, "free", b"{}").status_code == 400
    response = post(shared, "free")
    assert response.status_code == 201
    assert "idempotent-replayed" not in response.headers


def test_concurrent_requests_with_the_same_key_at_two_gateways_give_one_order(
    start: Start, connection: Connection
) -> None:
    gateways = [start(), start()]
    keys = [f"key-{number}" for number in range(10)]
    with ThreadPoolExecutor(16) as pool:
        posts = {key: [pool.submit(post, gateway, key) for gateway in gateways * 4] for key in keys}
    responses = {key: [response.result() for response in posts[key]] for key in keys}
    for answers in responses.values():
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert ["idempotent-replayed" in answer.headers for answer in answers].count(False) == 1
    found = connection.execute("SELECT idempotency_key, id FROM orders").fetchall()
    assert dict(found) == {key: json.loads(answers[0].content)["orderId"] for key, answers in responses.items()}
    assert len(found) == len(keys)
    assert len(stored(connection)[1]) == len(keys)


def keyed(number: int, key: str, digest: bytes = b"same", **changes: Any) -> NewOrder:
    plain = new(number, **changes)
    return NewOrder(plain.created, plain.trace_context, IdempotencyKey(key, digest))


def test_two_requests_with_the_same_key_in_one_group_give_one_order(postgres_url: str, connection: Connection) -> None:
    group = [new(1), keyed(2, "b"), keyed(3, "a"), keyed(4, "b"), keyed(5, "b", b"other"), new(6)]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=10) as writer:
            answers = await store_all(writer, group)
            assert session.sizes == [6]
            assert answers[:3] == accepted(group[:3])
            assert answers[3] == Stored(ids(group)[1], replayed=True)
            assert isinstance(answers[4], KeyReusedError)
            assert answers[5:] == accepted(group[5:])

    asyncio.run(scenario())
    winners = [order for order in group if order not in (group[3], group[4])]
    assert stored(connection) == (ids(winners), ids(winners), 8)


def test_orders_of_a_group_that_is_repeated_after_a_lost_answer_are_not_marked_as_replayed(
    postgres_url: str, connection: Connection
) -> None:
    orders = [keyed(1, "a"), new(2), keyed(3, "c"), keyed(4, "a")]

    async def scenario() -> None:
        async with (
            proxy(postgres_url) as proxied,
            CountingSession(proxied.url) as session,
            Writer(session, waiting_limit=10) as writer,
        ):
            assert await store_all(writer, [new(9)]) == accepted([new(9)])
            proxied.lose_answers = 1
            answers = await store_all(writer, orders)
            assert answers == [*accepted(orders[:3]), Stored(ids(orders)[0], replayed=True)]
            assert session.sizes == [1, 4, 4]

    asyncio.run(scenario())
    assert stored(connection)[0] == ids([*orders[:3], new(9)])


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_an_order_waits_for_a_concurrent_order_with_the_same_key(
    postgres_url: str, connection: Connection, end: str
) -> None:
    twin, own = keyed(1, "a"), keyed(2, "a")

    async def scenario() -> list[BaseException | Stored]:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=10) as writer:
            connection.execute("BEGIN")
            connection.execute(
                "INSERT INTO orders (id, user_id, amount, currency, idempotency_key, request_hash)"
                " VALUES (%s, 'twin', 1, 'USD', 'a', 'same')",
                (twin.created.order_id,),
            )
            second = asyncio.create_task(store_all(writer, [own]))
            await session.begun.wait()
            done, _ = await asyncio.wait([second], timeout=0.2)
            assert not done
            connection.execute(end.encode())
            return await second

    expected = Stored(twin.created.order_id, replayed=True) if end == "COMMIT" else Stored(own.created.order_id)
    assert asyncio.run(scenario()) == [expected]


def test_groups_with_the_same_keys_do_not_deadlock(postgres_url: str, connection: Connection) -> None:
    keys = [f"{number:03d}" for number in range(200)]

    async def scenario() -> None:
        async with (
            CountingSession(postgres_url) as session,
            CountingSession(postgres_url) as other_session,
            Writer(session, waiting_limit=1_000) as writer,
            Writer(other_session, waiting_limit=1_000) as other,
        ):
            ascending = [keyed(number, key) for number, key in enumerate(keys)]
            descending = [keyed(1_000 + number, key) for number, key in enumerate(reversed(keys))]
            first_answers, other_answers = await asyncio.gather(
                store_all(writer, ascending), store_all(other, descending)
            )
            assert [order_of(answer) for answer in first_answers] == [
                order_of(answer) for answer in reversed(other_answers)
            ]
            assert session.sizes == other_session.sizes == [200]

    asyncio.run(scenario())
    assert len(stored(connection)[0]) == len(keys)


def order_of(answer: BaseException | Stored) -> str:
    assert isinstance(answer, Stored)
    return answer.order_id


def test_an_order_that_cannot_be_stored_blocks_neither_its_key_nor_other_orders(
    postgres_url: str, connection: Connection
) -> None:
    nothing = (Item(sku="A", qty=0, price=Decimal(1)),)
    group: Sequence[NewOrder] = [keyed(1, "a", items=nothing), keyed(2, "a"), keyed(3, "b"), keyed(4, "a")]

    async def scenario() -> None:
        async with CountingSession(postgres_url) as session, Writer(session, waiting_limit=10) as writer:
            answers = await store_all(writer, group)
            assert isinstance(answers[0], RefusedError)
            assert answers[1:3] == accepted(group[1:3])
            assert answers[3] == Stored(ids(group)[1], replayed=True)

    asyncio.run(scenario())
    assert stored(connection)[0] == ids(group[1:3])
