"""The routes of the HTTP API: what each takes, and what it answers (P1, P8, P10, P11)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import msgspec
import psycopg
from starlette.routing import Route, Router
from starlette.types import Receive

from orderstream.api_gateway import docs
from orderstream.api_gateway.batcher import FullError, TryAgainError
from orderstream.api_gateway.http import problems
from orderstream.api_gateway.http.conditions import entity_tag, read_condition
from orderstream.api_gateway.http.endpoint import DisconnectedError, Endpoint, Handler, Reply, Request
from orderstream.api_gateway.http.problems import RETRY_AFTER_SECONDS, Problem, Violation
from orderstream.api_gateway.http.request_body import Bodies
from orderstream.api_gateway.orders.backpressure import OutboxBound
from orderstream.api_gateway.orders.canceller import Cancellation, Canceller, FailedError, PreconditionFailedError
from orderstream.api_gateway.orders.idempotency import IdempotencyKey, read_key, request_hash
from orderstream.api_gateway.orders.key_owners import KeyOwners
from orderstream.api_gateway.orders.order_id import canonical, new_order_id
from orderstream.api_gateway.orders.parsing import InvalidOrderError, read_order
from orderstream.api_gateway.orders.reader import Outcome, Reader, Reading
from orderstream.api_gateway.orders.waiters import Waiters, preferred_wait
from orderstream.api_gateway.orders.writer import SQL, KeyReusedError, NewOrder, RefusedError, Stored, Writer
from orderstream.api_gateway.schemas import OrderAccepted
from orderstream.api_gateway.session import BUDGET_SECONDS, Session
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import Tracer

_JSON = (b"content-type", b"application/json")
_RETRY_AFTER = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
_NO_CACHE = (b"cache-control", b"no-cache")
_NO_STORE = (b"cache-control", b"no-store")
_REPLAYED = (b"idempotent-replayed", b"true")

Answer = TypeVar("Answer")
Given = TypeVarTuple("Given")

_encode = msgspec.json.Encoder().encode


class Orders:
    """What can be asked of orders."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        canceller: Canceller,
        waiters: Waiters,
        outbox: OutboxBound,
        *,
        owners: KeyOwners,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._canceller = canceller
        self._waiters = waiters
        self._outbox = outbox
        self._owners = owners
        self._clock = clock
        self._bodies = Bodies()
        self._reads = {outcome: metrics.CACHE_READS.labels(outcome.lower()) for outcome in ("HIT", "MISS", "BYPASS")}
        metrics.QUEUED_ORDERS.set_function(lambda: len(writer))

    async def create(self, request: Request) -> Reply:
        """POST /orders: 201 once the order is durable, and never otherwise."""
        if b"if-match" in request.headers:
            # It asks for a version of what the path names, and /orders has none (RFC 9110, 13.1.1).
            raise problems.precondition_failed()
        key = read_key(request.headers.get(b"idempotency-key"))
        if key is None and self._outbox.is_exceeded():
            raise problems.outbox_full()
        new = await self._new_order(request, key)
        try:
            stored = await self._store(new)
        except RefusedError as error:
            raise problems.invalid_order([Violation("", "cannot be stored")]) from error
        except KeyReusedError as error:
            raise problems.idempotency_key_reused() from error
        headers = [_JSON, (b"location", f"/orders/{stored.order_id}".encode())]
        if stored.replayed:
            request.span.set({"order.id": stored.order_id})
            headers.append(_REPLAYED)
        return Reply(201, headers, _encode(OrderAccepted(stored.order_id)))

    async def _store(self, new: NewOrder) -> Stored:
        """Store an order, or find the one that its key has. Raises RefusedError, KeyReusedError or Problem 503."""
        if self._outbox.is_exceeded():
            return await self._stored_before(new, problems.outbox_full())
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                return await self._writer.ask(new.created.order_id, new)
        except FullError:
            return await self._stored_before(new, problems.queue_full())
        except (TimeoutError, TryAgainError) as error:
            raise problems.unknown_whether_stored() from error

    async def _stored_before(self, new: NewOrder, refusal: Problem) -> Stored:
        """Answer with the order that the key has. Raises `refusal` if there is none, or KeyReusedError."""
        if new.key is None:
            raise refusal
        owner = await _in_time("looked up by its key", self._owners.ask, new.key.key, new.key.key)
        if owner is None:
            raise refusal
        if owner.request_hash != new.key.request_hash:
            raise KeyReusedError(owner.order_id)
        return Stored(owner.order_id, replayed=True)

    async def _new_order(self, request: Request, key: str | None) -> NewOrder:
        """Read an order out of a request. Its body is not kept: large ones would add up while they wait."""
        body = await self._bodies.read(request)
        order_id = new_order_id(self._clock())
        try:
            created = read_order(body, order_id)
        except InvalidOrderError as error:
            raise problems.invalid_order(error.errors) from error
        request.span.set({"order.id": order_id})
        identified = None if key is None else IdempotencyKey(key, request_hash(created))
        return NewOrder(created, request.span.carrier, identified)

    async def read(self, request: Request) -> Reply:
        """GET /orders/{id}: 202 while it is open, 200 once it is settled; the body is always the order."""
        order_id = _order_id(request)
        reading, outcome = await self._read(order_id)
        applied: list[tuple[bytes, bytes]] = []
        if seconds := preferred_wait(request.headers.get(b"prefer")):
            waited = reading.settled or await self._wait(request, order_id, seconds)
            if not reading.settled:
                reading, outcome = await self._read(order_id)
            if waited:
                applied.append((b"preference-applied", b"wait=%d" % seconds))
        self._reads[outcome].inc()
        etag = entity_tag(reading.version)
        condition = read_condition(request.headers)
        if not condition.matches(etag):
            raise problems.precondition_failed()
        headers = [(b"etag", etag), (b"x-cache", outcome.encode()), _NO_CACHE, *applied]
        if not reading.settled:
            headers.append(_RETRY_AFTER)
        if not condition.none_matches(etag):
            return Reply(304, headers)
        return Reply(200 if reading.settled else 202, [_JSON, *headers], reading.body)

    async def _read(self, order_id: str) -> tuple[Reading, Outcome]:
        reading, outcome = await _in_time("read", self._reader.read, order_id)
        if reading is None:
            self._reads[outcome].inc()
            raise problems.not_found("order")
        return reading, outcome

    async def _wait(self, request: Request, order_id: str, seconds: int) -> bool:
        """Wait until an order has settled, or for so long. False if it may not wait. Raises DisconnectedError."""
        gone = asyncio.ensure_future(_disconnected(request.receive))
        try:
            waited = await self._waiters.wait(order_id, seconds, gone)
            if gone.done():
                raise DisconnectedError
        finally:
            gone.cancel()
        return waited == "over"

    async def cancel(self, request: Request) -> Reply:
        """POST /orders/{id}/cancel: 202 once the order is cancelled, however often; it is undone from then on."""
        order_id = _order_id(request)
        try:
            condition = read_condition(request.headers)
            cancellation = Cancellation(order_id, request.span.carrier, condition)
            reading = await _in_time("cancelled", self._canceller.ask, cancellation.key, cancellation)
        except FailedError as error:
            raise problems.order_failed() from error
        except PreconditionFailedError as error:
            raise problems.precondition_failed() from error
        if reading is None:
            raise problems.not_found("order")
        return Reply(202, [_JSON, (b"etag", entity_tag(reading.version)), _NO_CACHE], reading.body)


def _order_id(request: Request) -> str:
    """Return the id of the order that a path names. Raises Problem 404 if it can be no order's."""
    order_id = canonical(request.path_params["order_id"])
    if order_id is None:
        raise problems.not_found("order")
    request.span.set({"order.id": order_id})
    return order_id


async def _in_time(done: str, ask: Callable[[*Given], Awaitable[Answer]], *given: *Given) -> Answer:
    """Ask, and turn whatever keeps an order from being `done` in time into Problem 503."""
    try:
        async with asyncio.timeout(BUDGET_SECONDS):
            return await ask(*given)
    except FullError as error:
        raise problems.unavailable(f"Too many orders are waiting to be {done}.") from error
    except (TimeoutError, TryAgainError) as error:
        raise problems.unavailable(f"The order could not be {done} in time.") from error


async def _disconnected(receive: Receive) -> bool:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return True


class Health:
    """Whether this process lives, whether it can work, and its figures."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def live(self, _request: Request) -> Reply:
        """GET /livez: the event loop turns."""
        return Reply(200, [_JSON, _NO_STORE], b'{"status":"ok"}')

    async def ready(self, _request: Request) -> Reply:
        """GET /readyz: Postgres answers and is migrated; Kafka and Redis are not needed (P11)."""
        if problem := await self.problem():
            raise problems.unavailable(problem)
        return Reply(200, [_JSON, _NO_STORE], b'{"status":"ok"}')

    async def problem(self) -> str | None:
        """Say what keeps this process from working, or return None."""
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                await self._session.check(SQL["check_ready"], {})
        except (TimeoutError, TryAgainError, psycopg.Error):
            return "Postgres does not answer, or is not migrated."
        return None

    async def figures(self, _request: Request) -> Reply:
        """GET /metrics: the Prometheus text format."""
        return Reply(200, [(b"content-type", metrics.CONTENT_TYPE.encode()), _NO_STORE], metrics.exposition())


def _page(handler: Handler) -> Handler:
    """Apply the conditions of a request to a page that has no entity tag: only `*` matches it (RFC 9110, 13.1)."""

    async def conditional(request: Request) -> Reply:
        reply = await handler(request)
        condition = read_condition(request.headers)
        if not condition.matches(b""):
            raise problems.precondition_failed()
        if not condition.none_matches(b""):
            return Reply(304, [header for header in reply.headers if header[0] != b"content-type"])
        return reply

    return conditional


def router(orders: Orders, health: Health, tracer: Tracer) -> Router:
    """Return the whole API as one ASGI application."""
    table: list[tuple[str, dict[str, Handler]]] = [
        ("/orders", {"POST": orders.create}),
        ("/orders/{order_id}", {"GET": orders.read}),
        ("/orders/{order_id}/cancel", {"POST": orders.cancel}),
        ("/livez", {"GET": _page(health.live)}),
        ("/readyz", {"GET": _page(health.ready)}),
        ("/metrics", {"GET": _page(health.figures)}),
        ("/openapi.json", {"GET": _page(docs.openapi)}),
        ("/docs", {"GET": _page(docs.page)}),
        ("/docs/{asset}", {"GET": _page(docs.asset)}),
    ]
    return Router(
        [Route(path, Endpoint(path, tracer, methods)) for path, methods in table],
        redirect_slashes=False,
        default=Endpoint("unknown", tracer, {}),
    )
