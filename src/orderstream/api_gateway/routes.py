"""The routes of the HTTP API: what each takes, and what it answers (P1, P8, P11)."""

import asyncio
from datetime import UTC, datetime

import msgspec
import psycopg
from starlette.routing import Route, Router

from orderstream.api_gateway import docs, problems
from orderstream.api_gateway.endpoint import DisconnectedError, Endpoint, Handler, Reply, Request
from orderstream.api_gateway.gathering import FullError, TryAgainError
from orderstream.api_gateway.identity import canonical, new_order_id
from orderstream.api_gateway.intake import BODY_MAX_BYTES, InvalidOrderError, read_order
from orderstream.api_gateway.problems import RETRY_AFTER_SECONDS, Violation
from orderstream.api_gateway.reader import Reader
from orderstream.api_gateway.schemas import OrderAccepted
from orderstream.api_gateway.session import BUDGET_SECONDS, Session
from orderstream.api_gateway.writer import SQL, NewOrder, RefusedError, Writer
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import Tracer

_JSON = (b"content-type", b"application/json")
_RETRY_AFTER = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
_NO_CACHE = (b"cache-control", b"no-cache")

_encode = msgspec.json.Encoder().encode


class Orders:
    """What can be asked of orders."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader
        self._reads = {outcome: metrics.CACHE_READS.labels(outcome.lower()) for outcome in ("HIT", "MISS", "BYPASS")}
        metrics.QUEUED_ORDERS.set_function(lambda: len(writer))

    async def create(self, request: Request) -> Reply:
        """POST /orders: 201 once the order is durable, and never otherwise."""
        body = await _json_body(request)
        now = datetime.now(UTC)
        order_id = new_order_id(now)
        try:
            created = read_order(body, order_id)
        except InvalidOrderError as error:
            raise problems.invalid_order(error.errors) from error
        request.span.set({"order.id": order_id})
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                await self._writer.ask(order_id, NewOrder(created, now, request.span.carrier))
        except RefusedError as error:
            raise problems.invalid_order([Violation("", "cannot be stored")]) from error
        except FullError as error:
            raise problems.unavailable("Too many orders are waiting to be stored.") from error
        except (TimeoutError, TryAgainError) as error:
            raise problems.unavailable("The order could not be stored in time.") from error
        return Reply(201, [_JSON, (b"location", f"/orders/{order_id}".encode())], _encode(OrderAccepted(order_id)))

    async def read(self, request: Request) -> Reply:
        """GET /orders/{id}: 202 while it is open, 200 once it is settled; the body is always the order."""
        order_id = canonical(request.path_params["order_id"])
        if order_id is None:
            raise problems.not_found("order")
        request.span.set({"order.id": order_id})
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                reading, outcome = await self._reader.read(order_id)
        except FullError as error:
            raise problems.unavailable("Too many reads are waiting.") from error
        except (TimeoutError, TryAgainError) as error:
            raise problems.unavailable("The order could not be read in time.") from error
        self._reads[outcome].inc()
        if reading is None:
            raise problems.not_found("order")
        etag = f'"{reading.version}"'.encode()
        headers = [(b"etag", etag), (b"x-cache", outcome.encode()), _NO_CACHE]
        if not reading.settled:
            headers.append(_RETRY_AFTER)
        if _matches(request.headers.get(b"if-none-match"), etag):
            return Reply(304, headers)
        return Reply(200 if reading.settled else 202, [_JSON, *headers], reading.body)


async def _json_body(request: Request) -> bytes:
    """Read the body of a request that declares plain JSON. Raises Problem 413 or 415."""
    headers = request.headers
    if not _is_json(headers.get(b"content-type", b"")) or headers.get(b"content-encoding", b"identity") != b"identity":
        raise problems.unsupported_media_type()
    if int(headers.get(b"content-length", b"0")) > BODY_MAX_BYTES:
        raise problems.body_too_large(BODY_MAX_BYTES)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        parts.append(message["body"])
        size += len(message["body"])
        if size > BODY_MAX_BYTES:
            raise problems.body_too_large(BODY_MAX_BYTES)
        more = message["more_body"]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_json(content_type: bytes) -> bool:
    if content_type == b"application/json":
        return True
    media_type, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    return media_type == b"application/json" and all(
        parameter in (b"", b"charset=utf-8", b'charset="utf-8"') for parameter in parameters
    )


def _matches(if_none_match: bytes | None, etag: bytes) -> bool:
    """Compare weakly, as If-None-Match asks for (RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    candidates = [one.strip().removeprefix(b"W/") for one in if_none_match.split(b",")]
    return etag in candidates or candidates == [b"*"]


class Health:
    """Whether this process lives, whether it can work, and its figures."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def live(self, _request: Request) -> Reply:
        """GET /livez: the event loop turns."""
        return Reply(200, [_JSON], b'{"status":"ok"}')

    async def ready(self, _request: Request) -> Reply:
        """GET /readyz: Postgres answers and is migrated; Kafka and Redis are not needed (P11)."""
        try:
            await self._session.execute(SQL["check_ready"], {})
        except (TryAgainError, psycopg.Error) as error:
            raise problems.unavailable("Postgres does not answer, or is not migrated.") from error
        return Reply(200, [_JSON], b'{"status":"ok"}')

    async def figures(self, _request: Request) -> Reply:
        """GET /metrics: the Prometheus text format."""
        return Reply(200, [(b"content-type", metrics.CONTENT_TYPE.encode())], metrics.exposition())


def router(orders: Orders, health: Health, tracer: Tracer) -> Router:
    """Return the whole API as one ASGI application."""
    table: list[tuple[str, dict[str, Handler]]] = [
        ("/orders", {"POST": orders.create}),
        ("/orders/{order_id}", {"GET": orders.read}),
        ("/livez", {"GET": health.live}),
        ("/readyz", {"GET": health.ready}),
        ("/metrics", {"GET": health.figures}),
        ("/openapi.json", {"GET": docs.openapi}),
        ("/docs", {"GET": docs.page}),
        ("/docs/{asset}", {"GET": docs.asset}),
    ]
    return Router(
        [Route(path, Endpoint(path, tracer, methods)) for path, methods in table],
        redirect_slashes=False,
        default=Endpoint("unknown", tracer, {}),
    )
