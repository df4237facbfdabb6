"""A blocking connection with a time limit for each response of the server.

It protects against a server that hangs and against a network that drops packets. A statement_timeout of the server does
not help then.
"""

from typing import TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

T = TypeVar("T")

ANSWER_LIMIT_SECONDS = 15.0
"""Longer than the server's own limits for a statement, so that those apply first."""


class LimitedConnection(psycopg.Connection[TupleRow]):
    """A connection that closes itself if a response takes longer than `answer_limit_seconds`."""

    answer_limit_seconds = ANSWER_LIMIT_SECONDS

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for a response, at most `answer_limit_seconds`. Raises psycopg.OperationalError at the limit.

        A timeout of the caller replaces the limit, as in a wait for notifications.
        """
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.answer_limit_seconds)
        except psycopg.errors._WaitTimeout as error:
            self.close()
            raise psycopg.OperationalError(
                f"Postgres gave no answer for {self.answer_limit_seconds:g} s, and the connection was closed"
            ) from error
