"""The progress is shown in plain lines, or on a terminal in one moving line. A closed terminal is no error."""

import io

from orderstream.local.processes.progress import Terminal
from tests.support.waiting import wait_until


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_only_whole_lines() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.begin("kafka")
    terminal.note("kafka", "fetching")
    terminal.finish("kafka")
    terminal.say("done")
    assert stream.getvalue().splitlines() == ["  + kafka (0.0 s)", "done"]


def test_on_a_terminal_one_line_moves() -> None:
    screen = Screen()
    terminal = Terminal(screen)
    terminal.begin("kafka")
    terminal.note("kafka", "fetching 3 of 46 jars")
    wait_until(lambda: "kafka: fetching 3 of 46 jars" in screen.getvalue(), 10, "the moving line is shown")
    terminal.clear()
    assert screen.getvalue().endswith("\r\x1b[2K")


def test_a_closed_terminal_is_no_error() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    stream.close()
    terminal.say("not shown")
