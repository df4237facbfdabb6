"""Shows the progress of a start and a stop: a line for each finished step, and on a terminal a moving line below."""

import contextlib
import shutil
import sys
import threading
import time
from typing import TextIO

_FRAME_SECONDS = 0.1
# Without a terminal, a step prints what it is doing at most this often.
_NOTE_SECONDS = 2.0
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES = "|/-\\"


class Terminal:
    """Prints to a stream. Safe to use from several threads. A stream that was closed is not an error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        unicode = (getattr(self._stream, "encoding", None) or "").lower().startswith("utf")
        self._tick = "✓" if unicode else "+"
        self._frames = _FRAMES if unicode else _PLAIN_FRAMES
        self._lock = threading.Lock()
        self._begun: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._said: dict[str, float] = {}
        self._painter: threading.Thread | None = None

    def begin(self, name: str) -> None:
        """Show that a step begins."""
        with self._lock:
            self._begun[name] = self._said[name] = time.monotonic()
            if self._live and self._painter is None:
                self._painter = threading.Thread(target=self._paint, name="terminal", daemon=True)
                self._painter.start()

    def note(self, name: str, text: str) -> None:
        """Show what a step is doing."""
        with self._lock:
            self._notes[name] = text
            now = time.monotonic()
            if not self._live and now - self._said.get(name, 0.0) >= _NOTE_SECONDS:
                self._said[name] = now
                self._write(f"  {name}: {text}\n")

    def finish(self, name: str) -> None:
        """Show that a step is done, and how long it took."""
        with self._lock:
            began = self._begun.pop(name, time.monotonic())
            self._notes.pop(name, None)
            self._line(f"  {self._tick} {name} ({time.monotonic() - began:.1f} s)")

    def say(self, text: str) -> None:
        """Print whole lines."""
        with self._lock:
            self._line(text)

    def clear(self) -> None:
        """Remove the moving line: no step is running any more."""
        with self._lock:
            self._begun.clear()
            self._notes.clear()
            self._line(None)

    def _line(self, text: str | None) -> None:
        erase = "\r\x1b[2K" if self._live else ""
        self._write(erase + ("" if text is None else text + "\n"))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()

    def _paint(self) -> None:
        frame = 0
        while True:
            time.sleep(_FRAME_SECONDS)
            frame += 1
            with self._lock:
                if not self._begun:
                    self._painter = None
                    return
                self._write("\r\x1b[2K" + self._moving(frame))

    def _moving(self, frame: int) -> str:
        now = time.monotonic()
        running = []
        for name, began in self._begun.items():
            note = self._notes.get(name)
            running.append(f"{name}{': ' + note if note else ''} {now - began:.0f} s")
        text = f"  {self._frames[frame % len(self._frames)]} {', '.join(running)}"
        return text[: shutil.get_terminal_size().columns - 1]
