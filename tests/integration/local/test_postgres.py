"""The local PostgreSQL: every account needs a password, and the services are no superuser.

This also holds for data of an earlier version, which let every local user in.
"""

import psycopg
import pytest

from orderstream.local.processes import ports
from orderstream.local.processes.child import Child, Command
from orderstream.local.processes.pids import wait_until
from orderstream.local.servers.passwords import read, read_or_make
from orderstream.local.servers.postgres import Postgres
from orderstream.postgres.migrate import migrate
from tests.integration.local.conftest import LocalServers

ORDER = """INSERT INTO orders (id, user_id, amount_minor, currency) VALUES (gen_random_uuid(), 'u-1', 1, 'USD')"""


def port() -> int:
    """Return a free port."""
    return ports.pick(["postgres"], {})["postgres"]


def server(local_servers: LocalServers) -> Postgres:
    """Return a PostgreSQL on a free port."""
    return Postgres(port(), local_servers.home, local_servers.passwords)


def refused(url: str) -> str:
    """Return why a connection to `url` is refused."""
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect(url, connect_timeout=5).close()
    return str(raised.value)


def test_every_account_needs_a_password_and_the_services_are_no_superuser(local_servers: LocalServers) -> None:
    postgres = server(local_servers)
    local_servers.start(postgres)
    migrate(postgres.url)
    with psycopg.connect(postgres.url) as connection:
        role = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
            " WHERE rolname = current_user"
        ).fetchone()
        assert role == (False,) * 5
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("COPY (SELECT 1) TO PROGRAM 'true'")
    address = postgres.url.rpartition("@")[2].removesuffix("/orders")
    for user in ("app", "postgres", "nobody"):
        for database in ("orders", "postgres", "template1"):
            assert "no password supplied" in refused(f"postgresql://{user}@{address}/{database}")
            assert "password authentication failed" in refused(f"postgresql://{user}:guess@{address}/{database}")
    assert local_servers.passwords.postgres_superuser not in postgres.url
    secrets = (local_servers.passwords.postgres, local_servers.passwords.postgres_superuser)
    assert not [log for log in local_servers.state.logs.iterdir() if any(word in log.read_text() for word in secrets)]


def earlier_server(local_servers: LocalServers, at: int) -> Command:
    """Create data as an earlier version did, with the superuser `app` and without passwords. Return its command."""
    postgres = Postgres(at, local_servers.home, local_servers.passwords)
    if local_servers.home.programs is not None:
        postgres.install(local_servers.context)
        for folder in (local_servers.home.postgres_data, local_servers.home.folder("postgres-settings")):
            folder.rename(folder.with_name("unused-" + folder.name))
    binaries = postgres._binaries()
    data = local_servers.home.make_own(local_servers.home.postgres_data)
    argv = [str(binaries / "initdb"), "-D", str(data), "-U", "app", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
    command = postgres.command()
    local_servers.context.run("initdb-earlier", Command(argv, command.env, command.cwd, command.run_as), 60)
    arguments = ["-D", str(data), "-p", str(at), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    return Command([str(binaries / "postgres"), *arguments], command.env, command.cwd, command.run_as)


def test_data_of_an_earlier_version_is_kept_and_gets_passwords(local_servers: LocalServers) -> None:
    at = port()
    earlier = earlier_server(local_servers, at)
    open_url = f"postgresql://app@127.0.0.1:{at}"
    child = _run_earlier(local_servers, earlier, open_url)
    with psycopg.connect(f"{open_url}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE orders")
    migrate(f"{open_url}/orders")
    with psycopg.connect(f"{open_url}/orders") as connection:
        connection.execute("INSERT INTO inventory (sku, available) VALUES ('KEPT', 7)")
    child.stop()

    postgres = Postgres(at, local_servers.home, local_servers.passwords)
    local_servers.start(postgres)
    assert "no password supplied" in refused(f"{open_url}/orders")
    assert migrate(postgres.url) == []
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("SELECT available FROM inventory WHERE sku = 'KEPT'").fetchone() == (7,)
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'").fetchone() == (False,)
        owners = connection.execute(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchall()
        assert owners == [("app",)]
        # A later migration does the same.
        connection.execute("ALTER TABLE inventory ADD COLUMN later INT")
    superusers = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin"
    with psycopg.connect(postgres.superuser_url) as connection:
        assert connection.execute(superusers).fetchall() == [("postgres",)]


def _run_earlier(local_servers: LocalServers, command: Command, url: str) -> Child:

    def answers() -> bool:
        try:
            psycopg.connect(f"{url}/postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    child = Child("earlier", local_servers.state.log("earlier"), local_servers.registry)
    child.start(command)
    assert wait_until(answers, 60), child.last_lines()
    return child


def test_lost_passwords_are_replaced_and_the_data_is_kept(local_servers: LocalServers) -> None:
    first = server(local_servers)
    child = local_servers.start(first)
    migrate(first.url)
    child.stop()
    (local_servers.state.root / "secrets.json").unlink()
    assert read(local_servers.state) is None
    local_servers.passwords = read_or_make(local_servers.state)
    second = server(local_servers)
    local_servers.start(second)
    assert migrate(second.url) == []


def test_statements_about_the_whole_server_need_no_superuser(local_servers: LocalServers) -> None:
    """An ordinary account may run the statements that concern the whole server."""
    postgres = server(local_servers)
    local_servers.start(postgres)
    migrate(postgres.url)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("LISTEN outbox")
        connection.execute("ALTER DATABASE orders SET default_transaction_read_only = off")
        assert connection.execute("SELECT count(*) FROM pg_stat_activity").fetchone()
