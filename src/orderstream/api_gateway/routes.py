"""The routes of the HTTP API, and the handlers that turn requests into replies (P1, P8, P10, P11)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import msgspec
import psycopg
from psycopg.rows import tuple_row
from starlette.types import Receive

from orderstream.api_gateway.batcher import QueueFullError, TryAgainError
from orderstream.api_gateway.docs_pages import docs_asset, docs_page, openapi_json
from orderstream.api_gateway.orders.backpressure import OutboxLimit
from orderstream.api_gateway.orders.canceller import Cancellation, Canceller, FailedError, PreconditionFailedError
from orderstream.api_gateway.orders.idempotency import IdempotencyKey, read_key, request_hash
from orderstream.api_gateway.orders.key_owners import KeyOwners
from orderstream.api_gateway.orders.order_id import canonical, new_order_id
from orderstream.api_gateway.orders.parsing import InvalidOrderError, read_order
from orderstream.api_gateway.orders.reader import OrderDocument, Outcome, Reader
from orderstream.api_gateway.orders.waiters import Waiters, preferred_wait
from orderstream.api_gateway.orders.writer import SQL, KeyReusedError, NewOrder, RefusedError, Stored, Writer
from orderstream.api_gateway.schemas import OrderAccepted
from orderstream.api_gateway.session import BUDGET_SECONDS, Session
from orderstream.api_gateway.time_limit import TimeLimit
from orderstream.http_server import problems
from orderstream.http_server.conditions import entity_tag, read_condition
from orderstream.http_server.endpoint import DisconnectedError, Endpoint, Handler, Request, Response
from orderstream.http_server.problems import RETRY_AFTER_SECONDS, Problem, Violation
from orderstream.http_server.request_body import BodyReader
from orderstream.http_server.routes_by_path import RoutesByPath
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import RecordedSpan, TraceContext, Tracer

_JSON = (b"content-type", b"application/json")
_RETRY_AFTER = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
_NO_CACHE = (b"cache-control", b"no-cache")
_NO_STORE = (b"cache-control", b"no-store")
_REPLAYED = (b"idempotent-replayed", b"true")

Answer = TypeVar("Answer")
Given = TypeVarTuple("Given")

_encode = msgspec.json.Encoder().encode


class OrderHandlers:
    """The handlers of the three order routes."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        canceller: Canceller,
        waiters: Waiters,
        outbox: OutboxLimit,
        *,
        key_owners: KeyOwners,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._canceller = canceller
        self._waiters = waiters
        self._outbox = outbox
        self._key_owners = key_owners
        self._clock = clock
        self._bodies = BodyReader()
        self._limit = TimeLimit(BUDGET_SECONDS)
        self._reads = {outcome: metrics.CACHE_READS.labels(outcome.lower()) for outcome in ("HIT", "MISS", "BYPASS")}
        metrics.QUEUED_ORDERS.set_function(lambda: len(writer))

    async def create(self, request: Request) -> Response:
        """POST /orders: return 201 when the order is durable, and only then."""
        if b"if-match" in request.headers:
            # If-Match asks for a version of the resource, and /orders has no version (RFC 9110, 13.1.1).
            raise problems.precondition_failed()
        key = read_key(request.headers.get(b"idempotency-key"))
        if key is None and self._outbox.is_exceeded():
            raise problems.outbox_full()
        order = await self._new_order(request, key)
        try:
            stored = await self._store(order)
        except RefusedError as error:
            raise problems.invalid_order([Violation("", "cannot be stored")]) from error
        except KeyReusedError as error:
            raise problems.idempotency_key_reused() from error
        headers = [_JSON, (b"location", f"/orders/{stored.order_id}".encode())]
        if stored.replayed:
            request.span.set({"order.id": stored.order_id})
            headers.append(_REPLAYED)
        return Response(201, headers, _encode(OrderAccepted(stored.order_id)))

    async def _store(self, order: NewOrder) -> Stored:
        """Store an order, or find the order that owns its key. Raises RefusedError, KeyReusedError or Problem 503."""
        if self._outbox.is_exceeded():
            return await self._stored_before(order, problems.outbox_full())
        try:
            with self._limit.call():
                return await self._writer.store(order)
        except QueueFullError:
            return await self._stored_before(order, problems.queue_full())
        except (TimeoutError, TryAgainError) as error:
            raise problems.unknown_whether_stored() from error

    async def _stored_before(self, order: NewOrder, refusal: Problem) -> Stored:
        """Return the order that owns the key. Raises `refusal` if there is no such order, or KeyReusedError."""
        if order.key is None:
            raise refusal
        owner = await self._in_time("looked up by its key", self._key_owners.find, order.key.key)
        if owner is None:
            raise refusal
        if owner.request_hash != order.key.request_hash:
            raise KeyReusedError(owner.order_id)
        return Stored(owner.order_id, replayed=True)

    async def _new_order(self, request: Request, key: str | None) -> NewOrder:
        """Parse the order of a request. The body is not kept, because waiting orders would hold too much memory."""
        body = await self._bodies.read(request)
        order_id = new_order_id(self._clock())
        try:
            created = read_order(body, order_id)
        except InvalidOrderError as error:
            raise problems.invalid_order(error.errors) from error
        request.span.set({"order.id": order_id})
        idempotency_key = None if key is None else IdempotencyKey(key, request_hash(created))
        return NewOrder(created, request.span.context, idempotency_key)

    async def read(self, request: Request) -> Response:
        """GET /orders/{id}: return 202 while the order is open, and 200 when it is settled. The body is the order."""
        order_id = _order_id(request)
        trace = request.span.context if isinstance(request.span, RecordedSpan) else None
        document, outcome = await self._read(order_id, trace)
        applied: list[tuple[bytes, bytes]] = []
        if seconds := preferred_wait(request.headers.get(b"prefer")):
            waited = document.settled or await self._wait(request, order_id, seconds)
            if not document.settled:
                document, outcome = await self._read(order_id, trace)
            if waited:
                applied.append((b"preference-applied", b"wait=%d" % seconds))
        self._reads[outcome].inc()
        etag = entity_tag(document.version)
        condition = read_condition(request.headers)
        if not condition.matches(etag):
            raise problems.precondition_failed()
        headers = [(b"etag", etag), (b"x-cache", outcome.encode()), _NO_CACHE, *applied]
        if not document.settled:
            headers.append(_RETRY_AFTER)
        if not condition.none_matches(etag):
            return Response(304, headers)
        return Response(200 if document.settled else 202, [_JSON, *headers], document.body)

    async def _read(self, order_id: str, trace: TraceContext | None) -> tuple[OrderDocument, Outcome]:
        document, outcome = await self._in_time("read", self._reader.read, order_id, trace)
        if document is None:
            self._reads[outcome].inc()
            raise problems.not_found("order")
        return document, outcome

    async def _wait(self, request: Request, order_id: str, seconds: int) -> bool:
        """Wait up to `seconds` until the order has settled. Return False if the wait is refused.

        Raises DisconnectedError.
        """
        disconnected = asyncio.ensure_future(_wait_for_disconnect(request.receive))
        try:
            waited = await self._waiters.wait(order_id, seconds, disconnected)
            if disconnected.done():
                raise DisconnectedError
        finally:
            disconnected.cancel()
        return waited == "over"

    async def cancel(self, request: Request) -> Response:
        """POST /orders/{id}/cancel: return 202 when the order is cancelled, also if it was cancelled before.

        The compensation follows in the background.
        """
        order_id = _order_id(request)
        try:
            condition = read_condition(request.headers)
            cancellation = Cancellation(order_id, request.span.context, condition)
            cancelled = await self._in_time("cancelled", self._canceller.cancel, cancellation)
        except FailedError as error:
            raise problems.order_failed() from error
        except PreconditionFailedError as error:
            raise problems.precondition_failed() from error
        document = cancelled.document
        if document is None:
            raise problems.not_found("order")
        request.span.link(cancelled.placed_by)
        return Response(202, [_JSON, (b"etag", entity_tag(document.version)), _NO_CACHE], document.body)

    async def _in_time(self, done: str, action: Callable[[*Given], Awaitable[Answer]], *given: *Given) -> Answer:
        """Await `action(*given)` within the time budget.

        Raises Problem 503, which says that the order was not `done`.
        """
        try:
            with self._limit.call():
                return await action(*given)
        except QueueFullError as error:
            raise problems.unavailable(f"Too many orders are waiting to be {done}.") from error
        except (TimeoutError, TryAgainError) as error:
            raise problems.unavailable(f"The order could not be {done} in time.") from error


def _order_id(request: Request) -> str:
    """Return the order id in the path. Raises Problem 404 if the text is not a UUID."""
    order_id = canonical(request.path_params["order_id"])
    if order_id is None:
        raise problems.not_found("order")
    request.span.set({"order.id": order_id})
    return order_id


async def _wait_for_disconnect(receive: Receive) -> bool:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return True


class Health:
    """The handlers for liveness, readiness and metrics."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def live(self, _request: Request) -> Response:
        """GET /livez: return 200 while the event loop runs."""
        return Response(200, [_JSON, _NO_STORE], b'{"status":"ok"}')

    async def ready(self, _request: Request) -> Response:
        """GET /readyz: return 200 if Postgres answers and is migrated. Kafka and Redis are not needed (P11)."""
        if problem := await self.problem():
            raise problems.unavailable(problem)
        return Response(200, [_JSON, _NO_STORE], b'{"status":"ok"}')

    async def problem(self) -> str | None:
        """Return why this process is not ready, or None if it is ready."""
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                await self._session.check(SQL["check_ready"], {}, tuple_row)
        except (TimeoutError, TryAgainError, psycopg.Error):
            return "Postgres does not answer, or is not migrated."
        return None

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics: return the metrics in the Prometheus text format."""
        return Response(200, [(b"content-type", metrics.CONTENT_TYPE.encode()), _NO_STORE], metrics.exposition())


def _conditional(handler: Handler) -> Handler:
    """Apply If-Match and If-None-Match to a page without an entity tag. Only `*` matches it (RFC 9110, 13.1)."""

    async def handle(request: Request) -> Response:
        response = await handler(request)
        condition = read_condition(request.headers)
        if not condition.matches(b""):
            raise problems.precondition_failed()
        if not condition.none_matches(b""):
            return Response(304, [header for header in response.headers if header[0] != b"content-type"])
        return response

    return handle


def router(orders: OrderHandlers, health: Health, tracer: Tracer, *, with_metrics: bool = True) -> RoutesByPath:
    """Return the whole API as one ASGI application. `with_metrics` is whether it serves /metrics too."""
    table: dict[str, dict[str, Handler]] = {
        "/orders": {"POST": orders.create},
        "/orders/{order_id}": {"GET": orders.read},
        "/orders/{order_id}/cancel": {"POST": orders.cancel},
        "/livez": {"GET": _conditional(health.live)},
        "/readyz": {"GET": _conditional(health.ready)},
        **({"/metrics": {"GET": _conditional(health.metrics)}} if with_metrics else {}),
        "/openapi.json": {"GET": _conditional(openapi_json)},
        "/docs": {"GET": _conditional(docs_page)},
        "/docs/{asset}": {"GET": _conditional(docs_asset)},
    }
    return RoutesByPath(
        {path: Endpoint(path, tracer, methods) for path, methods in table.items()},
        default=Endpoint("unknown", tracer, {}),
    )
