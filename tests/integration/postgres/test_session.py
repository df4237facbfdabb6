"""The session of a worker or relay: it is replaced after errors, and every wait for a response is bounded."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.faults import StaleSessionError, is_fatal, is_transient
from orderstream.postgres.limited import ANSWER_LIMIT_SECONDS, LimitedConnection
from orderstream.postgres.session import Session
from orderstream.postgres.session_settings import STATEMENT_TIMEOUT_SECONDS
from tests.integration.api_gateway.conftest import free_port


@pytest.fixture
def session(postgres_url: str) -> Iterator[Session]:
    opened = Session(postgres_url, "test")
    yield opened
    opened.close()


def _pid(session: Session) -> int:
    with session.use() as connection:
        return connection.info.backend_pid


def _fails(session: Session, statement: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as failed, session.use() as connection, connection.transaction():
        connection.execute(statement.encode(), prepare=False)
    return failed.value


@contextmanager
def read_only(url: str) -> Iterator[None]:
    """Make the database read-only for new sessions, and end the existing sessions."""
    given = conninfo_to_dict(url)
    name = sql.Identifier(str(given["dbname"]))
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as server:
        server.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        yield
        server.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))


@pytest.mark.parametrize(
    "statement",
    [
        "SET TRANSACTION READ ONLY; DELETE FROM orders",
        "SET LOCAL lock_timeout = '1ms'; LOCK orders; SELECT pg_sleep(0); DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$",
        "EXECUTE not_prepared",
        "DO $$ BEGIN RAISE SQLSTATE '53300'; END $$",
        "DO $$ BEGIN RAISE SQLSTATE 'ZZ123'; END $$",
        "SELECT pg_terminate_backend(pg_backend_pid())",
    ],
)
def test_after_an_error_that_is_not_about_data_the_session_is_replaced(session: Session, statement: str) -> None:
    before = _pid(session)
    assert is_transient(_fails(session, statement))
    assert session.ready, "a session that was closed says nothing about the server"
    assert _pid(session) != before


@pytest.mark.parametrize("statement", ["SELECT 1 / 0", "INSERT INTO inventory VALUES ('A', -1, 0)", "SELECT 'x'::uuid"])
def test_an_error_about_data_keeps_the_session(session: Session, statement: str) -> None:
    before = _pid(session)
    _fails(session, statement)
    assert _pid(session) == before


def test_an_error_of_another_library_keeps_the_session(session: Session) -> None:
    before = _pid(session)
    with pytest.raises(ValueError, match="Kafka"), session.use():
        raise ValueError("Kafka is away")
    assert _pid(session) == before


def test_a_session_with_an_open_transaction_is_replaced(session: Session) -> None:
    """psycopg logs a ROLLBACK that fails, and leaves the transaction open."""
    before = _pid(session)
    session.open().execute("BEGIN")
    with pytest.raises(ValueError, match="Kafka"), session.use():
        raise ValueError("Kafka is away")
    assert _pid(session) != before


def test_a_fatal_error_is_fatal_only_on_a_new_session(session: Session) -> None:
    _pid(session)
    stale = _fails(session, "SELECT * FROM nowhere")
    assert isinstance(stale, StaleSessionError)
    assert is_transient(stale)
    assert is_fatal(_fails(session, "SELECT * FROM nowhere"))


def test_each_new_session_is_set_up(postgres_url: str) -> None:
    begun: list[int] = []
    session = Session(postgres_url, "test", lambda connection: begun.append(connection.info.backend_pid))
    first = _pid(session)
    _fails(session, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert begun == [first, _pid(session)]
    session.close()


def test_a_session_that_cannot_be_set_up_is_closed(postgres_url: str) -> None:
    def begin(connection: Connection) -> None:
        connection.execute("EXECUTE not_prepared")

    session = Session(postgres_url, "test", begin)
    with pytest.raises(psycopg.Error):
        session.open()
    assert not session.ready


def test_a_read_only_server_is_not_used(session: Session, postgres_url: str) -> None:
    with read_only(postgres_url):
        with pytest.raises(psycopg.OperationalError, match="read-only") as refused:
            session.open()
        assert is_transient(refused.value)
        assert not session.ready
    session.open()
    assert session.ready


def test_the_time_limit_of_the_client_is_longer_than_that_of_the_server() -> None:
    assert ANSWER_LIMIT_SECONDS > STATEMENT_TIMEOUT_SECONDS


@contextmanager
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait 0.5 s for each response until the block ends. A server that does not hang may take longer."""
    with monkeypatch.context() as patch:
        patch.setattr(LimitedConnection, "answer_limit_seconds", 0.5)
        yield


def test_a_session_that_hangs_is_closed_in_time(
    session: Session, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _pid(session)
    os.kill(before, signal.SIGSTOP)
    try:
        with (
            _short_limit(monkeypatch),
            pytest.raises(psycopg.OperationalError, match=r"gave no answer for 0\.5 s") as left,
            session.use() as connection,
            connection.transaction(),
        ):
            connection.execute("SELECT 1")
        assert is_transient(left.value)
        assert _pid(session) != before
    finally:
        os.kill(before, signal.SIGCONT)


def test_a_session_that_hangs_at_the_commit_is_closed_in_time(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _pid(session)

    def write(short_limit: ExitStack) -> None:
        with session.use() as connection, connection.transaction():
            connection.execute("INSERT INTO inventory VALUES ('A', 1, 0)")
            os.kill(before, signal.SIGSTOP)
            short_limit.enter_context(_short_limit(monkeypatch))

    try:
        with ExitStack() as short_limit, pytest.raises(psycopg.OperationalError):
            write(short_limit)
        assert _pid(session) != before
    finally:
        os.kill(before, signal.SIGCONT)


class _Silent:
    """A host that accepts connections and sends nothing."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.socket = socket.create_server((address, 0))
        self.port = self.socket.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[_Silent]:
    server = _Silent()
    yield server
    server.socket.close()


def _hosts(postgres_url: str, *ports: int) -> str:
    """Return the URL with more hosts before its own, one for each port."""
    own = conninfo_to_dict(postgres_url)
    return make_conninfo(
        postgres_url,
        host=",".join(["127.0.0.1"] * len(ports) + [str(own["host"])]),
        port=",".join(map(str, [*ports, own["port"]])),
    )


def test_a_worker_connects_to_the_third_host_if_the_others_are_silent_or_refuse(
    postgres_url: str, silent: _Silent
) -> None:
    with connect(_hosts(postgres_url, silent.port, free_port()) + " connect_timeout=2", "test") as connection:
        assert connection.info.port == int(str(conninfo_to_dict(postgres_url)["port"]))
