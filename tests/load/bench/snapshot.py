"""`make bench-snapshot`: measures how fast orders settle while a held snapshot keeps millions of dead rows.

It starts its own system and places RATE orders per second. Then a session holds a snapshot, as pg_dump does, and
DEAD_ROWS dead rows are created in the outbox and in the watchdog's index of orders. Full load would leave as many in 15
minutes. The same load follows again. The figures are only reported. If orders do not settle, the exit code is 1.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

from tests.load.bench.smoke import (
    SETTLE_TIMES,
    SKU,
    STOCKED,
    await_settled,
    in_words,
    place_paced,
)
from tests.load.system import BENCH_DIR, AlreadyRunningError, exclusive_system, say
from tests.support.system import System

RATE = 100
WARM_UP_SECONDS = 45
PASSING_SECONDS = 15
"""Before the second measurement, the relay and the watchdog get time to skip the dead rows."""
MEASURED_SECONDS = 30
DEAD_ROWS = 2_500_000
ROWS_AT_ONCE = 250_000

# Each batch is inserted and deleted (or settled) in one transaction, so that the services see no live row of it.
_DEAD_IN_OUTBOX = (
    """
    INSERT INTO outbox (topic, order_id, event_id, value)
    SELECT 'dead', 'dead-' || number, gen_random_uuid(), repeat('x', 500)
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number
    """,
    "DELETE FROM outbox WHERE topic = 'dead' AND id > (SELECT max(id) FROM outbox) - %(rows)s",
)
_DEAD_IN_ORDERS = (
    """
    INSERT INTO orders (id, user_id, amount, currency, status, next_check_at)
    SELECT 'dead-' || number, 'dead', 1, 'USD', 'PROCESSING',
           now() - interval '15 min' + (number / 2800) * interval '1 s'
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number
    """,
    """
    UPDATE orders SET status = 'CANCELLED', payment = 'voided', stock = 'released'
    WHERE id = ANY(ARRAY(SELECT 'dead-' || number FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number))
    """,
)


def main() -> int:
    """Measure without and with the dead rows, and return the exit code."""
    with (
        exclusive_system(BENCH_DIR) as system,
        psycopg.connect(system.urls["POSTGRES_URL"], autocommit=True) as connection,
    ):
        system.command("stock", "set", SKU, str(STOCKED))
        say(f"Warming up for {WARM_UP_SECONDS} s")
        _place(system, "bench-warm-up", WARM_UP_SECONDS)
        say(f"Placing {RATE} orders/s for {MEASURED_SECONDS} s")
        without, problems = _measure(system, connection, "bench-without")
        with held_snapshot(system.urls["POSTGRES_URL"]):
            _leave_dead_rows(connection)
            say(f"Placing {RATE} orders/s for {PASSING_SECONDS} s, and then for {MEASURED_SECONDS} s")
            _place(system, "bench-passing", PASSING_SECONDS)
            among, more = _measure(system, connection, "bench-among")
    name = f"settle time at {RATE}/s, in Postgres (p50 / p95 / p99)"
    print("| figure | value |", "|---|---|", f"| {name} | {in_words(without)} |", sep="\n")
    print(f"| the same, with a snapshot held and {DEAD_ROWS:,} dead rows in outbox and orders | {in_words(among)} |")
    for problem in problems + more:
        print(problem, file=sys.stderr)
    return 1 if problems or more else 0


def _place(system: System, user: str, seconds: int) -> None:
    place_paced(system, user, RATE, seconds)


def _measure(system: System, connection: psycopg.Connection, user: str) -> tuple[Sequence[float], list[str]]:
    """Return the percentiles 50, 95 and 99 of the settle time in milliseconds, and the problems."""
    _place(system, user, MEASURED_SECONDS)
    problems = await_settled(connection)
    row = connection.execute(SETTLE_TIMES, (user,)).fetchone()
    return (row[0] if row and row[0] else (float("nan"),) * 3), problems


@contextmanager
def held_snapshot(postgres_url: str) -> Iterator[None]:
    """Hold a snapshot until the block ends."""
    with psycopg.connect(postgres_url, autocommit=True) as holder:
        holder.execute("SET idle_in_transaction_session_timeout = 0")
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        holder.execute("SELECT count(*) FROM orders")
        yield


def _leave_dead_rows(connection: psycopg.Connection) -> None:
    connection.execute("SET statement_timeout = 0")
    for name, statements in (("outbox", _DEAD_IN_OUTBOX), ("orders", _DEAD_IN_ORDERS)):
        say(f"Leaving {DEAD_ROWS:,} dead rows in {name}")
        for first in range(1, DEAD_ROWS + 1, ROWS_AT_ONCE):
            last = first + ROWS_AT_ONCE - 1
            with connection.transaction():
                for statement in statements:
                    connection.execute(statement.encode(), {"first": first, "last": last, "rows": ROWS_AT_ONCE})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AlreadyRunningError as error:
        sys.exit(str(error))
