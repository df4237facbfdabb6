"""Runs the statements on a pool of psycopg connections, for the threads of DBOS."""

import psycopg
from order import Authorization, Order
from psycopg_pool import ConnectionPool
from statements import CONFIRM, FAIL, RECORD, to_confirm, to_fail, to_record


class Store:
    """The tables of the orders. Opens a pool with a fixed number of connections."""

    def __init__(self, postgres_url: str, connections: int) -> None:
        options = {"autocommit": True, "cursor_factory": psycopg.RawCursor}
        self._pool = ConnectionPool(postgres_url, min_size=connections, max_size=connections, open=True, kwargs=options)

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()

    def record(self, order: Order) -> None:
        """Record an order and its items."""
        with self._pool.connection() as connection:
            connection.execute(RECORD, to_record(order))

    def settle(self, order: Order, payment: Authorization) -> None:
        """Reserve the stock and confirm the order, or fail it if the stock is too small."""
        with self._pool.connection() as connection:
            try:
                confirmed = connection.execute(CONFIRM, to_confirm(order, payment)).fetchone()
            except psycopg.errors.CheckViolation:
                confirmed = None
            if confirmed is None:
                connection.execute(FAIL, to_fail(order, payment))
