"""Picks free ports, which the local stack keeps for later runs, and names the process that holds a taken port."""

import errno
import itertools
import os
import socket
from collections.abc import Iterable, Mapping

from orderstream.local.processes.masking import masked

LOOPBACK = "127.0.0.1"
# Systems take the ports of outgoing connections from a higher range. So a kept port is rarely taken at the next start.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 1_000
# The walk of each process begins anywhere and goes on where it stopped. So stacks that start at the same time, and find
# the same ports free, rarely choose the same one.
_walk = itertools.count(int.from_bytes(os.urandom(4)))


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen on this port now. Raises OSError if it could not for another reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def pick(names: Iterable[str], kept: Mapping[str, int], avoid: Iterable[int] = ()) -> dict[str, int]:
    """Return a port for each name: the kept port if it is free, otherwise a free one that no other name has."""
    chosen: dict[str, int] = {}
    used = {*kept.values(), *avoid}
    for name in names:
        port = kept.get(name)
        if port is None or port in avoid or not is_free(LOOPBACK, port):
            port = _another(used)
            used.add(port)
        chosen[name] = port
    return chosen


def _another(used: set[int]) -> int:
    for step in itertools.islice(_walk, _TRIES):
        port = _FIRST + step % (_LAST - _FIRST)
        if port not in used and is_free(LOOPBACK, port):
            return port
    raise OSError(errno.EADDRINUSE, f"no free port found between {_FIRST} and {_LAST}")


def holder(port: int) -> str:
    """Return a text that names the process that listens on `port`, as far as this user may see it."""
    import psutil  # noqa: PLC0415 - slow to load, and rarely needed

    try:
        connections = [found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    except psutil.Error:
        connections = []
    for pid in (found.pid for found in connections if found.laddr and found.laddr.port == port and found.pid):
        try:
            command = " ".join(psutil.Process(pid).cmdline()) or psutil.Process(pid).name()
            return f"pid {pid} ({masked(command)})"
        except psutil.Error:
            return f"pid {pid}"
    return "a process that only its owner or root can name"
