"""`make profile`: draws a flame graph of a running service of the stack of this checkout, by py-spy.

py-spy reads the memory of the process 100 times per second, and pauses it while it reads. The picture shows in which
functions the process spends its time. Load the system meanwhile, for example by `make k6`.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from orderstream.local.processes.state import ChildRecord, StateDir, default_state_dir

SECONDS_DEFAULT = 20
SECONDS_MAX = 600
_END_SECONDS = 30
"""py-spy needs this long at most to begin and to write its picture."""
_SERVERS = ("postgres", "kafka", "valkey")
_REFUSED = ("permission denied", "operation not permitted")

NO_STACK = "No stack of this checkout runs. Start one first: make up"
NOT_PERMITTED = (
    "The kernel does not permit py-spy to read another process. Run `make profile` as root, or permit it:\n"
    "  on this machine, until the next start: sudo sysctl kernel.yama.ptrace_scope=0\n"
    "  in a container: start it with --cap-add SYS_PTRACE"
)


class ProfileError(Exception):
    """There is no flame graph. The message says what to do."""


def draw(state: StateDir, service: str, seconds: int) -> Path:
    """Watch a service for `seconds`, and return the path of its flame graph, an SVG file. Raises ProfileError."""
    child = _child(state, service)
    file = state.root / "profile" / f"{child.name}.svg"
    file.parent.mkdir(exist_ok=True)
    spy = Path(sys.executable).with_name("py-spy")
    command = [
        str(spy),
        "record",
        "--pid",
        str(child.pid),
        "--duration",
        str(seconds),
        "--threads",
        "--output",
        str(file),
    ]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _END_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ProfileError(f"py-spy did not end within {seconds + _END_SECONDS} s") from None
    if ended.returncode:
        reason = ended.stderr.strip()
        raise ProfileError(NOT_PERMITTED if any(text in reason.lower() for text in _REFUSED) else reason)
    return file


def _child(state: StateDir, service: str) -> ChildRecord:
    """Return the process of a service: the one of this name, or its first replica. Raises ProfileError."""
    run = state.running()
    if run is None:
        raise ProfileError(NO_STACK)
    children = {child.name: child for child in run.children if not child.name.startswith(_SERVERS)}
    replica = re.compile(re.escape(service) + r"(-[0-9]+)?")
    found = next((name for name in sorted(children) if replica.fullmatch(name)), None)
    if found is None:
        raise ProfileError(f"No service {service!r} runs. These run: {', '.join(sorted(children)) or 'none'}")
    return children[found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the flame graph of the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make profile")
    parser.add_argument("service")
    parser.add_argument("--seconds", type=int, default=SECONDS_DEFAULT, choices=range(1, SECONDS_MAX + 1), metavar="N")
    given = parser.parse_args(arguments)
    try:
        print(draw(default_state_dir(os.environ.get("ORDERSTREAM_STATE")), given.service, given.seconds))
    except ProfileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
