"""A process whose loop is stuck exits, in every kind of call, and shows the stacks of its threads."""

import subprocess
import sys

import pytest

LOOPS = {
    "a call that never returns": "import threading; threading.Event().wait()",
    "a call that holds Python's lock": "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')",
}
SCRIPT = """
import time
from orderstream.process import liveness
liveness.BACKSTOP_SECONDS = 2
began = time.monotonic()
liveness.exit_when_stuck(lambda: began, {limit})
{loop}
"""
EVENT_LOOP = """
import asyncio, time
from orderstream.api_gateway import process_pages
from orderstream.settings import Settings

process_pages.BEAT_LIMIT_SECONDS = 2
process_pages.BEAT_SECONDS = 0.05

async def serve():
    process_pages.serve_process_pages(Settings.model_validate({"metrics_port": 0}), None, asyncio.get_running_loop())
    await asyncio.sleep(4)
    print("it turned", flush=True)
    time.sleep(600)

asyncio.run(serve())
"""


def run(script: str) -> "subprocess.CompletedProcess[str]":
    """Run the script until it exits by itself."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())
def test_a_stuck_loop_ends_the_process_and_shows_its_stack(loop: str) -> None:
    done = run(SCRIPT.format(loop=loop, limit=0.3))
    assert done.returncode == 1
    assert 'File "<string>", line 7 in <module>' in done.stderr


def test_a_loop_that_makes_progress_is_not_ended() -> None:
    """The limits are long enough for a busy machine, on which a thread may get no CPU for a second."""
    script = SCRIPT.replace("lambda: began", "time.monotonic").format(loop="time.sleep(6); print('went on')", limit=2)
    assert run(script).stdout == "went on\n"


def test_a_stuck_event_loop_ends_the_gateway_and_a_running_one_does_not() -> None:
    done = run(EVENT_LOOP)
    assert done.returncode == 1
    assert done.stdout.startswith("it turned\n")
    assert "in serve" in done.stderr
