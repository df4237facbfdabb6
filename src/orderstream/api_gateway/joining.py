"""Sends what is written within one turn of the event loop in one piece: an answer's head and its body.

uvicorn writes the two apart, and a write to a socket costs more than the whole of the JSON in it.
"""

import asyncio
from typing import Any


class JoiningTransport:
    """Takes the place of a transport; all but writing and ending it is the transport's own affair."""

    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` together with what else is written before the loop comes round."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """Send what was written, and close."""
        self._send()
        self._transport.close()

    def is_closing(self) -> bool:
        """Say whether the transport is closing or closed."""
        return self._transport.is_closing()

    def _send(self) -> None:
        if self._parts and not self._transport.is_closing():
            self._transport.write(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))
        self._parts.clear()
