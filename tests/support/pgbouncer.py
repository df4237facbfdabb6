"""A real PgBouncer in front of a database. If it is not installed, Debian's package is unpacked into a cache.

If neither works, the test is skipped with the reason. If ORDERSTREAM_NEEDS_PGBOUNCER is set, as in CI, the test fails.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orderstream.local.processes.state import checkout
from tests.support.waiting import wait_until

# The libraries that a Debian system may lack. The others are part of Debian or of apt.
_PACKAGES = ("pgbouncer", "libc-ares2", "libevent-2.1-7")
_ALTERNATIVES = {"libc-ares2": "libcares2", "libevent-2.1-7": "libevent-2.1-7t64"}
_DOWNLOAD_SECONDS = 120
_CONFIGURATION = """
[databases]
{name} = host={host} port={port} dbname={name} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {pool_size}
{more}
"""


def _program() -> tuple[list[str], dict[str, str]]:
    """Return the command and its environment. Raises OSError or CalledProcessError if PgBouncer is not available."""
    if found := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return [found], {}
    cache = checkout() / ".orderstream" / "pgbouncer"
    if not (cache / "usr/sbin/pgbouncer").exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=cache.parent))
        for name in _PACKAGES:
            _unpack(name, fresh)
        shutil.rmtree(cache, ignore_errors=True)
        fresh.rename(cache)
    libraries = ":".join(str(folder) for folder in (cache / "usr/lib").glob("*-linux-gnu"))
    return [str(cache / "usr/sbin/pgbouncer")], {"LD_LIBRARY_PATH": libraries}


def _unpack(name: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(["apt-get", "download", name], folder)
        except subprocess.CalledProcessError:
            _run(["apt-get", "download", _ALTERNATIVES.get(name, name)], folder)
        (package,) = Path(folder).glob("*.deb")
        _run(["dpkg-deb", "-x", str(package), str(target)], folder)


def _run(argv: list[str], folder: str) -> None:
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=_DOWNLOAD_SECONDS)


def program() -> tuple[list[str], dict[str, str]]:
    """Return the command and its environment. Without PgBouncer, skip the test, or fail it if PgBouncer is required."""
    try:
        return _program()
    except (OSError, subprocess.SubprocessError) as error:
        why = f"PgBouncer is not installed, and apt-get download failed ({error})"
        if os.environ.get("ORDERSTREAM_NEEDS_PGBOUNCER"):
            pytest.fail(why)
        pytest.skip(why)


@contextmanager
def pgbouncer(postgres_url: str, port: int, mode: str, pool_size: int = 20, more: str = "") -> Iterator[str]:
    """Run PgBouncer in front of a database, and yield the URL that goes through it."""
    argv, env = program()
    server = conninfo_to_dict(postgres_url)
    # PgBouncer refuses to run as root. It runs as `nobody`, which must be able to read its files.
    account = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pgbouncer-", dir="/var/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        binary = shutil.copy(argv[0], home / "pgbouncer")
        libraries = home / "lib"
        libraries.mkdir()
        for source in env.get("LD_LIBRARY_PATH", "").split(":"):
            for library in Path(source).glob("*.so*") if source else ():
                shutil.copy(library, libraries / library.name)
        configuration = home / "pgbouncer.ini"
        configuration.write_text(
            _CONFIGURATION.format(
                name=server["dbname"],
                host=server["host"],
                port=server["port"],
                user=server["user"],
                password=server.get("password", ""),
                listen=port,
                mode=mode,
                pool_size=pool_size,
                more=more,
            )
        )
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [binary, str(configuration)],
                env={"LD_LIBRARY_PATH": str(libraries), "PATH": "/usr/bin:/bin"},
                stdout=log,
                stderr=log,
                **account,  # type: ignore[call-overload]
            )
        url = make_conninfo(postgres_url, host="127.0.0.1", port=port)
        try:
            wait_until(lambda: _answers(url, process, home / "log"), 20, "PgBouncer answers")
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
