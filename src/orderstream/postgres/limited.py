"""A blocking connection that does not wait without end: for a backend that hangs, or a network that drops packets.

A server's statement_timeout does not help there: the server is what does not answer.
"""

from typing import TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

T = TypeVar("T")

ANSWER_LIMIT_SECONDS = 15.0
"""Longer than any statement may take in the server, so that the server's own limits come first."""


class LimitedConnection(psycopg.Connection[TupleRow]):
    """A connection that closes itself when an answer takes longer than `answer_limit_seconds`."""

    answer_limit_seconds = ANSWER_LIMIT_SECONDS

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait as psycopg does, but not without end. Raises psycopg.OperationalError at the limit.

        Who gives a timeout, as a wait for notices does, has that one.
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
