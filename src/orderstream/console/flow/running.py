"""Runs the monitor while the console runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orderstream.console.context import Console


@asynccontextmanager
async def running(console: Console) -> AsyncIterator[None]:
    """Sample until the block ends."""
    console.flow.start()
    try:
        yield
    finally:
        await asyncio.to_thread(console.flow.stop)
        await asyncio.to_thread(console.topics.close)
