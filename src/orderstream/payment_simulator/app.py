"""The payment-simulator: a payment provider to test against, with a durable ledger. This module wires it together."""

import asyncio
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web import BaseRequest, RequestHandler, Server

from orderstream.payment_simulator.faults import Faults, initial_faults
from orderstream.payment_simulator.ledger import Ledger
from orderstream.payment_simulator.server import BODY_MAX_BYTES, PaymentServer
from orderstream.payment_simulator.store import LedgerError, Store
from orderstream.payment_simulator.webhooks import Webhooks
from orderstream.process.drain import limit_drain
from orderstream.provider_settings import read_api_key
from orderstream.settings import Settings
from orderstream.telemetry import logs
from orderstream.telemetry.setup import start

SERVICE = "payment-simulator"
HOST = "127.0.0.1"
"""It listens on loopback only, because the requests that change its faults need no password."""
CONNECTIONS_MAX = 10_000
_OTHER_FILES = 100
"""Files that are not connections of clients: the ledger, the log, webhooks."""
KEEP_ALIVE_SECONDS = 75.0
STOP_SECONDS = 1.0
"""Time that calls in progress have to end after SIGTERM. Then the simulator closes their connections."""
EXIT_FAILED = 1

log = logs.get()


def run(settings: Settings, ledger: Path) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    It is 1 if the ledger or the port cannot be used. Raises SettingsError for wrong faults.
    """
    logs.configure(SERVICE, settings)
    faults = initial_faults(settings)
    _allow_files()
    try:
        store = Store(ledger, time.time)
        listener = socket.create_server((HOST, settings.simulator_port), backlog=CONNECTIONS_MAX)
    except LedgerError as error:
        log.error("ledger_unusable", error=str(error))
        return EXIT_FAILED
    except OSError as error:
        log.error("cannot_listen", host=HOST, port=settings.simulator_port, error=str(error))
        return EXIT_FAILED
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, store, faults, listener))
    return 0


def _allow_files() -> None:
    """Let this process open a file for each connection, as far as the system permits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _api_key(settings: Settings) -> str | None:
    """Return the API key that clients must send. None: they need none."""
    if settings.payment_api_key_file is not None:
        return read_api_key(settings.payment_api_key_file)
    return settings.payment_api_key


async def _serve(settings: Settings, store: Store, faults: Faults, listener: socket.socket) -> None:
    """Serve on a listening socket until a signal."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tracer = start(SERVICE, settings)
    async with AsyncExitStack() as stack:
        stack.callback(tracer.shutdown)
        ledger = await stack.enter_async_context(Ledger(store))
        payments = PaymentServer(ledger, faults, tracer, _api_key(settings), random.Random())  # noqa: S311 - faults
        await stack.enter_async_context(Webhooks(ledger, lambda: payments.draw.faults.webhook_url))
        http = http_server(payments)
        server = await loop.create_server(limited(http), sock=listener)
        log.info("started", host=HOST, port=listener.getsockname()[1], faults=settings.simulator_faults)
        await stopped.wait()
        limit_drain(settings.drain_timeout_seconds)
        server.close()
        http.pre_shutdown()
        await http.shutdown(STOP_SECONDS)
    log.info("stopped")


def http_server(payments: PaymentServer) -> Server:
    """Return a server that has the limits of this module."""
    return Server(
        payments.handle,
        request_factory=_request,
        access_log=None,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        auto_decompress=False,
    )


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> BaseRequest:
    """Return a request whose body is limited."""
    loop = asyncio.get_running_loop()
    return BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_MAX_BYTES)


def limited(http: Server) -> Callable[[], asyncio.Protocol]:
    """Return a protocol factory that refuses connections beyond CONNECTIONS_MAX."""
    return lambda: http() if len(http.connections) < CONNECTIONS_MAX else _Refusal()


class _Refusal(asyncio.Protocol):
    """Closes its connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()
