"""Each worker decides a batch with a constant number of statements, and so does each of its timers."""

from collections.abc import Callable, Sequence
from functools import partial
from uuid import uuid4

import pytest

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import Event, Payload
from orderstream.domain.payment import Authorized, Declined, Voided
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.order_service.handler import OrderHandler
from orderstream.order_service.watchdog import Watchdog, WatchdogSchedule
from orderstream.postgres.connect import Connection
from tests.integration.decisions import orders
from tests.integration.decisions.orders import aborted, authorized, created, place, received, record, result
from tests.integration.decisions.payments import payment_in_state
from tests.integration.set_based.counting import SKU, Case, Counting, Work, assert_set_based
from tests.support.payments import Payments, ScriptedProvider, payments

Build = Callable[[str], Event[Payload]]


def _skus(counting: Counting, number: int) -> dict[str, int]:
    """Stock new SKUs, and return one unit of each."""
    skus = [f"{uuid4()}" for _ in range(number)]
    counting.tables.execute("INSERT INTO inventory SELECT unnest(%s::text[]), 10, 0", (skus,))
    return dict.fromkeys(skus, 1)


def _place(counting: Counting, number: int, lines: dict[str, int] | None = None) -> list[str]:
    return [place(counting.tables, lines) for _ in range(number)]


def _decide(counting: Counting, handler: object, events: Sequence[Event[Payload]]) -> int:
    """Decide a batch, and return the number of records that were answered or rejected."""
    decided = orders.decide(handler, counting.work, *events)
    return len({outgoing.cause.order_id for outgoing in decided.emit} | {r.received.order_id for r in decided.reject})


def _paying(counting: Counting, provider: ScriptedProvider) -> Payments:
    return counting.opened.enter_context(payments(provider))


def _rows(connection: Connection, table: str, ids: Sequence[str], state: str) -> int:
    query = f"SELECT count(*) FROM {table} WHERE order_id = ANY(%s) AND state = %s"  # noqa: S608 - a name from here
    ((number,),) = connection.execute(query.encode(), (ids, state)).fetchall()
    return int(number)


def _new_payments(counting: Counting, number: int) -> Work:
    worker = _paying(counting, ScriptedProvider(Authorized()))
    events = [created(order_id) for order_id in _place(counting, number)]
    return lambda: _decide(counting, worker.handler, events)


def _refused_payments(counting: Counting, number: int) -> Work:
    worker = _paying(counting, ScriptedProvider(Declined()))
    events = [created(order_id) for order_id in _place(counting, number)]
    return lambda: _decide(counting, worker.handler, events)


def _repeated_payments(counting: Counting, number: int) -> Work:
    worker = _paying(counting, ScriptedProvider(Authorized()))
    events = [created(order_id) for order_id in _place(counting, number)]
    orders.decide(worker.handler, counting.tables, *events)
    return lambda: _decide(counting, worker.handler, events)


def _aborts(counting: Counting, number: int, *, paid: bool) -> Work:
    worker = _paying(counting, ScriptedProvider(Authorized()))
    ids = _place(counting, number)
    if paid:
        orders.decide(worker.handler, counting.tables, *map(created, ids))
    events = [aborted(order_id) for order_id in ids]
    record(counting.tables, *events)

    def work() -> int:
        orders.decide(worker.handler, counting.work, *events)
        return _rows(counting.tables, "payments", ids, "VOIDING")

    return work


def _authorized_too_late(counting: Counting, number: int) -> Work:
    """Another process has recorded that the payments failed, while this one got their authorizations."""
    worker = _paying(counting, ScriptedProvider(Authorized()))
    ids = _place(counting, number)
    batch = received([created(order_id) for order_id in ids])

    def work() -> int:
        prepared = worker.handler.prepare(counting.work, batch)
        record(counting.tables, *(result("payment.failed", order_id) for order_id in ids))
        with counting.work.transaction():
            worker.handler.decide(counting.work, batch, prepared).after_commit()
        return _rows(counting.tables, "payments", ids, "VOIDING")

    return work


def _without_order(build: Build, handler: Callable[[Counting], object]) -> Case:
    def case(counting: Counting, number: int) -> Work:
        events = [build(str(uuid4())) for _ in range(number)]
        decider = handler(counting)
        return lambda: _decide(counting, decider, events)

    return case


def _not_aborted(handler: Callable[[Counting], object]) -> Case:
    def case(counting: Counting, number: int) -> Work:
        events = [aborted(order_id) for order_id in _place(counting, number)]
        decider = handler(counting)
        return lambda: _decide(counting, decider, events)

    return case


def _attempts(state: str, after: str) -> Case:
    def case(counting: Counting, number: int) -> Work:
        worker = _paying(counting, ScriptedProvider(Authorized(), Voided()))
        ids = [payment_in_state(counting.tables, state) for _ in range(number)]  # type: ignore[arg-type]

        def work() -> int:
            worker.run_timers(counting.work)
            return _rows(counting.tables, "payments", ids, after)

        return work

    return case


def _too_old(counting: Counting, number: int) -> Work:
    counting.tables.execute("DELETE FROM payments")
    worker = _paying(counting, ScriptedProvider())
    ids = [payment_in_state(counting.tables, "PENDING") for _ in range(number)]
    counting.tables.execute("UPDATE orders SET created_at = now() - interval '1 day'")

    def work() -> int:
        worker.run_timers(counting.work)
        return _rows(counting.tables, "payments", ids, "VOIDING")

    return work


def _webhook(counting: Counting, number: int) -> Work:
    worker = _paying(counting, ScriptedProvider())
    ids = [payment_in_state(counting.tables, "PENDING") for _ in range(number)]
    counting.tables.execute("UPDATE payments SET next_attempt_at = now() + interval '1 hour', pending_since = now()")
    for order_id in ids:
        worker.decided.add(order_id)

    def work() -> int:
        worker.attempts.record(counting.work)
        query = "SELECT count(*) FROM payments WHERE order_id = ANY(%s) AND next_attempt_at <= now()"
        ((number,),) = counting.tables.execute(query, (ids,)).fetchall()
        return int(number)

    return work


PAYMENTS = {
    "new payments": _new_payments,
    "declined payments": _refused_payments,
    "repeated records": _repeated_payments,
    "aborts of paid orders": partial(_aborts, paid=True),
    "aborts before the payment": partial(_aborts, paid=False),
    "authorizations that come too late": _authorized_too_late,
    "orders that do not exist": _without_order(created, lambda counting: _paying(counting, ScriptedProvider()).handler),
    "orders that are not aborted": _not_aborted(lambda counting: _paying(counting, ScriptedProvider()).handler),
    "further attempts": _attempts("PENDING", "AUTHORIZED"),
    "voids": _attempts("VOIDING", "VOIDED"),
    "attempts that are too old": _too_old,
    "keys from the webhook": _webhook,
}


@pytest.mark.parametrize("case", PAYMENTS.values(), ids=PAYMENTS)
def test_payment_worker(counting: Counting, case: Case) -> None:
    assert_set_based(counting, case)


def _authorizations(counting: Counting, events: Sequence[Event[Payload]]) -> Work:
    record(counting.tables, *events)
    return lambda: _decide(counting, InventoryHandler(), events)


def _reserve(counting: Counting, number: int) -> Work:
    skus = _skus(counting, number)
    return _authorizations(counting, [authorized(place(counting.tables, {sku: 1})) for sku in skus])


def _reserve_lines(counting: Counting, number: int) -> Work:
    """The items are the lines of one order."""
    lines = _skus(counting, number)
    event = authorized(place(counting.tables, lines), lines)
    work = _authorizations(counting, [event])
    return lambda: work() * number


def _out_of_stock(counting: Counting, number: int) -> Work:
    return _authorizations(counting, [authorized(order_id) for order_id in _place(counting, number, {"EMPTY": 1})])


def _repeated_reservations(counting: Counting, number: int) -> Work:
    events = [authorized(order_id) for order_id in _place(counting, number, {SKU: 1})]
    work = _authorizations(counting, events)
    orders.decide(InventoryHandler(), counting.tables, *events)
    return work


def _release(counting: Counting, number: int) -> Work:
    ids = [place(counting.tables, {sku: 1}) for sku in _skus(counting, number)]
    record(counting.tables, *map(authorized, ids))
    orders.decide(InventoryHandler(), counting.tables, *map(authorized, ids))
    return _authorizations(counting, [aborted(order_id) for order_id in ids])


def _tombstones(counting: Counting, number: int) -> Work:
    return _authorizations(counting, [aborted(order_id) for order_id in _place(counting, number)])


STOCK = {
    "orders with a SKU each": _reserve,
    "lines of an order": _reserve_lines,
    "orders without stock": _out_of_stock,
    "repeated records": _repeated_reservations,
    "aborts of reservations": _release,
    "aborts before the reservation": _tombstones,
    "orders that do not exist": _without_order(authorized, lambda _counting: InventoryHandler()),
    "orders that are not aborted": _not_aborted(lambda _counting: InventoryHandler()),
}


@pytest.mark.parametrize("case", STOCK.values(), ids=STOCK)
def test_inventory_worker(counting: Counting, case: Case) -> None:
    assert_set_based(counting, case)


def _merge(*event_types: str) -> Case:
    def case(counting: Counting, number: int) -> Work:
        events = [result(name, order_id) for order_id in _place(counting, number) for name in event_types]
        record(counting.tables, *events)
        cache = CacheInvalidator(counting.settings.redis_url, 1.0)
        counting.opened.callback(cache.close)
        return lambda: _decide(counting, OrderHandler(cache, ()), events)

    return case


def _unknown_results(counting: Counting, number: int) -> Work:
    cache = CacheInvalidator(counting.settings.redis_url, 1.0)
    counting.opened.callback(cache.close)
    events = [result("payment.failed", str(uuid4())) for _ in range(number)]
    return lambda: _decide(counting, OrderHandler(cache, ()), events)


def _stalled(age: str, nudges: int, event_types: set[str]) -> Case:
    def case(counting: Counting, number: int) -> Work:
        ids = _place(counting, number, {SKU: 1, "EMPTY": 1})
        counting.tables.execute(
            "UPDATE orders SET next_check_at = now() - interval '1 s', created_at = now() - %s::interval, nudges = %s"
            " WHERE id = ANY(%s)",
            (age, nudges, ids),
        )
        return lambda: _watched(counting, Watchdog(WatchdogSchedule()).nudge, ids, event_types)

    return case


def _uncompensated(counting: Counting, number: int) -> Work:
    ids = _place(counting, number)
    counting.tables.execute(
        "UPDATE orders SET status = 'FAILED', payment = 'authorized', failure_reason = 'TIMED_OUT',"
        " aborted_at = now() - interval '1 min', next_check_at = now() - interval '1 s' WHERE id = ANY(%s)",
        (ids,),
    )
    return lambda: _watched(counting, Watchdog(WatchdogSchedule()).repeat_aborts, ids, {"order.aborted"})


def _watched(counting: Counting, timer: Callable[[Connection], bool], ids: Sequence[str], event_types: set[str]) -> int:
    """Run a timer, and return for how many of the orders it has appended events of these types."""
    timer(counting.work)
    query = "SELECT order_id, topic FROM outbox WHERE order_id = ANY(%s)"
    topics: dict[str, set[str]] = {}
    for order_id, topic in counting.tables.execute(query, (ids,)):
        topics.setdefault(order_id, set()).add(topic.removesuffix(".v1"))
    return sum(found == event_types for found in topics.values())


ORDERS = {
    "confirmed orders": _merge("payment.authorized", "inventory.reserved"),
    "failed payments": _merge("payment.failed"),
    "orders to compensate": _merge("payment.authorized", "inventory.failed"),
    "orders that do not exist": _unknown_results,
    "stalled orders": _stalled("1 min", 0, {"order.created"}),
    "overdue orders": _stalled("1 day", 9, {"order.updated", "order.aborted"}),
    "orders that are not compensated": _uncompensated,
}


@pytest.mark.parametrize("case", ORDERS.values(), ids=ORDERS)
def test_order_service(counting: Counting, case: Case) -> None:
    assert_set_based(counting, case)
