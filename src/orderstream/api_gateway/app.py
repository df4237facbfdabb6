"""The api-gateway accepts orders (P1, P10), shows their state (P8) and cancels them. This module wires it together."""

import asyncio
import socket
from contextlib import AsyncExitStack

import psycopg
import uvloop
from psycopg.rows import tuple_row

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.orders.backpressure import OutboxLimit
from orderstream.api_gateway.orders.canceller import Canceller
from orderstream.api_gateway.orders.key_owners import KeyOwners
from orderstream.api_gateway.orders.reader import Reader
from orderstream.api_gateway.orders.waiters import Waiters
from orderstream.api_gateway.orders.writer import Writer
from orderstream.api_gateway.process_pages import serve_process_pages
from orderstream.api_gateway.routes import Health, OrderHandlers, router
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache
from orderstream.http_server.server import Server, allow_connections, listen
from orderstream.http_server.server_state import Limits
from orderstream.postgres.faults import UnsuitableServerError
from orderstream.process.drain import limit_drain
from orderstream.settings import Settings
from orderstream.telemetry import logs
from orderstream.telemetry.setup import start

SERVICE = "api-gateway"
READY_BUDGET_SECONDS = 1.0


def run(settings: Settings) -> int:
    """Serve until SIGTERM, then finish the requests in progress. Return the exit code.

    If the requests take longer than the drain budget, the process exits with code 1.
    """
    logs.configure(SERVICE, settings)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        logs.get().error("cannot_listen", host=settings.host, port=settings.port, error=str(error))
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(settings, listener))
        except UnsuitableServerError as error:
            logs.get().error("stopped_by_failure", error=str(error))
            return 1
    return 0


async def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT. Raises UnsuitableServerError before it serves."""
    tracer = start(SERVICE, settings)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        stack.callback(tracer.shutdown)
        writes = await enter(Session(settings.postgres_url, f"{SERVICE}: writes"))
        reads = await enter(Session(settings.postgres_url, f"{SERVICE}: reads"))
        checks = await enter(Session(settings.postgres_url, f"{SERVICE}: readiness", READY_BUDGET_SECONDS))
        await _refuse_unsuitable(checks)
        cancels = await enter(Session(settings.postgres_url, f"{SERVICE}: cancels"))
        polls = await enter(Session(settings.postgres_url, f"{SERVICE}: waiting reads"))
        cache = await enter(AsyncCache(settings.redis_url, settings.cache_budget_seconds))
        health = Health(checks)
        limit = settings.gateway_queue_limit
        writer = await enter(Writer(writes, waiting_limit=limit, tracer=tracer))
        reader = await enter(Reader(reads, cache, waiting_limit=limit, tracer=tracer))
        canceller = await enter(Canceller(cancels, cache, waiting_limit=limit, tracer=tracer))
        waiters = await enter(Waiters(polls))
        outbox = await enter(OutboxLimit(checks, settings.outbox_limit))
        key_owners = await enter(KeyOwners(reads, waiting_limit=limit))

        def stop() -> None:
            limit_drain(settings.drain_timeout_seconds)
            waiters.drain()

        http = Server(
            router(
                OrderHandlers(writer, reader, canceller, waiters, outbox, key_owners=key_owners),
                health,
                tracer,
                with_metrics=settings.gateway_serves_metrics,
            ),
            tracer,
            Limits(
                connections=allow_connections(settings.gateway_connection_limit),
                connections_per_peer=settings.gateway_connections_per_peer,
                request_timeout_seconds=settings.gateway_request_timeout_seconds,
            ),
            on_stop=stop,
            # The writer needs the other half if Postgres hangs.
            drain_timeout_seconds=settings.drain_timeout_seconds / 2,
        )
        pages = serve_process_pages(settings, health, asyncio.get_running_loop())
        stack.callback(pages.server_close)
        stack.push_async_callback(asyncio.to_thread, pages.shutdown)
        port, pages_port = listener.getsockname()[1], pages.server_port
        logs.get().info("started", host=settings.host, port=port, pages_port=pages_port)
        await http.serve(listener)
    logs.get().info("stopped")


async def _refuse_unsuitable(session: Session) -> None:
    """Raise UnsuitableServerError if Postgres answers but cannot store orders. If Postgres is down, only log it."""
    try:
        await session.check("SELECT", {}, tuple_row)
    except UnsuitableServerError:
        raise
    except (TryAgainError, psycopg.Error) as error:
        logs.get().warning("postgres_unreachable", error=str(error.__cause__ or error))
