"""Lays out the live map of the saga: services side by side, topics as arrows between them, stores below.

Everything comes from domain/saga.py, so that a new step appears on the map by itself. The template draws the result.
"""

from typing import Literal

from msgspec import Struct

from orderstream.console.flow.answers import Flow, ServiceAnswer, SourceAnswer, TopicFlow, Waiting
from orderstream.console.flow.problems import LAG_MIN
from orderstream.console.web import filters
from orderstream.domain.events import PAYLOADS, topic_of
from orderstream.domain.saga import CONSUMER_GROUPS, ORIGINS, REACTIONS, consumers_of

COLUMN = 232
BOX_WIDTH = 204
BOX_HEIGHT = 96
MARGIN = 8
OUTBOX_Y = 150
KAFKA_Y = 178
FIRST_TOPIC_Y = 218
ROW = 38
GAP = 22
READERS_WIDTH = 96

Kind = Literal["ok", "warn", "bad", "off"]
UNKNOWN = "\N{EN DASH}"
"""Stands for a figure that is not known."""
GATEWAY, RELAY = "api-gateway", "outbox-relay"
COLUMNS = (GATEWAY, RELAY, *CONSUMER_GROUPS)


class Box(Struct, frozen=True):
    """A service or a server: its name, its state in words and as a kind, and lines of figures."""

    name: str
    kind: Kind
    state: str
    lines: tuple[str, ...]
    x: float
    y: float
    width: float
    height: float
    link: str | None = None


class Head(Struct, frozen=True):
    """The end of an arrow at a consumer: its position, and the records that wait there."""

    service: str
    x: float
    lag: int

    @property
    def is_late(self) -> bool:
        """Whether more records wait than in a system that keeps up."""
        return self.lag >= LAG_MIN


class Arrow(Struct, frozen=True):
    """A topic: a line from those who write it to those who read it. `rate` is a text."""

    event: str
    topic: str
    rate: str
    is_flowing: bool
    y: float
    begin: float
    end: float
    sources: tuple[float, ...]
    heads: tuple[Head, ...]
    producers: str
    consumers: str

    @property
    def direction(self) -> int:
        """1 if the arrow points to the right, -1 if it points to the left."""
        return 1 if self.end >= self.begin else -1


class SagaMap(Struct, frozen=True):
    """The whole map, in the coordinates of the drawing."""

    width: float
    height: float
    services: tuple[Box, ...]
    outbox: Box
    outbox_is_late: bool
    kafka: Box
    arrows: tuple[Arrow, ...]
    stores: tuple[Box, ...]
    accepted: str
    fails_y: float
    """Where the events of an order that fails begin."""


def saga_map(flow: Flow) -> SagaMap:
    """Return the map of a flow."""
    sources = {source.name: source for source in flow.sources}
    services = {service.name: service for service in flow.services}
    kafka_answers = sources["kafka"].answers
    topics = {topic.name: topic for topic in flow.topics}
    events = sorted((event for event in PAYLOADS if topic_of(event) in topics or not topics), key=_place)
    straight = sum(_place(event)[0] == 0 for event in events)
    arrows = tuple(
        _arrow(flow, event, topics.get(topic_of(event)), _row_y(row, straight), answers=kafka_answers)
        for row, event in enumerate(events)
    )
    width = COLUMN * len(COLUMNS) + READERS_WIDTH
    bottom = _row_y(len(arrows), straight) - 4
    store_y, postgres_y = bottom + 18, bottom + 18 + 74 + 18
    kafka_lines = (
        f"{len(topics)} topics",
        f"{flow.dead_letters:,} dead letters" if flow.dead_letters is not None else "",
    )
    postgres = Box(
        "Postgres", *_server(sources["postgres"]), (_orders_line(flow),), MARGIN, postgres_y, width - 2 * MARGIN, 44
    )
    return SagaMap(
        width=width,
        height=postgres_y + 44 + MARGIN,
        services=tuple(_service(services.get(name), name, flow) for name in COLUMNS),
        outbox=_outbox(flow),
        outbox_is_late=bool(flow.outbox and (flow.outbox.oldest_seconds or 0) > 10),
        kafka=Box(
            *("Kafka", *_server(sources["kafka"]), kafka_lines),
            *(MARGIN, KAFKA_Y, width - 2 * MARGIN, bottom - KAFKA_Y),
            link="/topics",
        ),
        arrows=arrows,
        stores=(_valkey(sources["valkey"], store_y), _provider(flow, store_y), postgres),
        accepted=per_second(flow.orders.accepted_per_second if flow.orders else None),
        fails_y=_row_y(straight, straight),
    )


_LATER = {"failed": 1, "aborted": 2, "voided": 3, "released": 3}
"""By the last word of an event: its place after the events of an order that goes well."""


def _place(event: str) -> tuple[int, float]:
    """Return where an event stands on the map: first the path of an order that goes well, from left to right."""
    direct = [reaction.service for reaction in REACTIONS if event in reaction.emits] or [RELAY]
    return _LATER.get(event.rpartition(".")[2], 0), _centre(direct[0])


def _row_y(row: int, straight: int) -> float:
    """Return the height of a row. A gap separates the events of an order that fails."""
    return FIRST_TOPIC_Y + ROW * row + (GAP if row >= straight else 0)


def _centre(service: str) -> float:
    return COLUMN * COLUMNS.index(service) + COLUMN / 2


def per_second(rate: float | None) -> str:
    """Return for example `12/s`, or a dash if the rate is not known."""
    return f"{UNKNOWN}/s" if rate is None else f"{filters.number(round(rate, 1))}/s"


def _arrow(flow: Flow, event: str, topic: TopicFlow | None, y: float, *, answers: bool) -> Arrow:
    direct = [reaction.service for reaction in REACTIONS if event in reaction.emits]
    producers = list(dict.fromkeys(direct)) or [RELAY]
    consumers = list(consumers_of(event))
    begin = _centre(producers[0])
    ends = [_centre(consumer) for consumer in consumers]
    end = max(ends, key=lambda x: abs(x - begin), default=begin + COLUMN / 2 + READERS_WIDTH - MARGIN)
    lags = {group.name: group.lag_by_topic.get(topic_of(event), 0) for group in flow.groups}
    rate = topic.per_second if topic is not None and answers else None
    by_outbox = any(event in origin.emits for origin in ORIGINS)
    return Arrow(
        event=event,
        topic=topic_of(event),
        rate=per_second(rate),
        is_flowing=bool(rate and rate >= 0.05),
        y=y,
        begin=begin,
        end=end,
        sources=tuple(map(_centre, producers)),
        heads=tuple(Head(consumer, _centre(consumer), lags.get(consumer, 0)) for consumer in consumers),
        producers=", ".join([*direct[:1], *(["the outbox"] if by_outbox else [])]) if direct else "the outbox",
        consumers=", ".join(consumers) or "your own readers",
    )


_KINDS: dict[str, Kind] = {
    "ready": "ok", "partly ready": "warn", "not ready": "warn", "down": "bad", "not watched": "off"
}  # fmt: skip


def _service(service: ServiceAnswer | None, name: str, flow: Flow) -> Box:
    x, link = _centre(name) - BOX_WIDTH / 2, f"/topics#{name}" if name in CONSUMER_GROUPS else None
    if service is None or service.state == "not watched":
        lines = ("", f"lag {service.lag:,}" if service and service.lag is not None else "")
        return Box(name, "off", "not watched", lines, x, MARGIN, BOX_WIDTH, BOX_HEIGHT, link)
    number = len(service.instances)
    state = "down" if service.state == "down" else f"{service.ready} of {number} ready"
    lines = (_pace(service, flow), f"lag {service.lag:,}" if service.lag is not None else _second_line(service))
    return Box(name, _KINDS[service.state], state, lines, x, MARGIN, BOX_WIDTH, BOX_HEIGHT, link)


def _pace(service: ServiceAnswer, flow: Flow) -> str:
    rates = service.rates
    if service.name == GATEWAY:
        return f"{filters.number(round(rates.requests_per_second or 0, 1))} requests/s"
    if service.name == RELAY or rates.records_per_second is None:
        return f"{filters.number(round(rates.events_per_second or 0, 1))} events/s"
    pace = f"{filters.number(round(rates.records_per_second, 1))} records/s"
    if flow.provider is not None and flow.provider.calls_in_flight and service.name == "payment-worker":
        return f"{pace}, {flow.provider.calls_in_flight:,} calls"
    return pace if rates.batch_seconds is None else f"{pace}, batch {filters.age(rates.batch_seconds)}"


def _second_line(service: ServiceAnswer) -> str:
    rates = service.rates
    if rates.post_p99_seconds is not None:
        return f"POST p99 {filters.age(rates.post_p99_seconds)}"
    return ""


def _server(source: SourceAnswer) -> tuple[Kind, str]:
    if source.answers:
        return "ok", "answers"
    if source.silent_since is None:
        return "off", "is asked"
    return "bad", f"silent since {source.silent_since:%H:%M:%S}"


def waiting(rows: Waiting | None, what: str) -> str:
    """Return for example `12 events, oldest 3 s`."""
    if rows is None:
        return f"{UNKNOWN} {what}"
    number = f"{rows.number:,}{'+' if rows.is_limit else ''} {what}"
    return number if rows.oldest_seconds is None else f"{number}, oldest {filters.age(rows.oldest_seconds)}"


def _outbox(flow: Flow) -> Box:
    late = bool(flow.outbox and (flow.outbox.oldest_seconds or 0) > 10)
    begin, end = _centre(GATEWAY), _centre(RELAY)
    lines = (waiting(flow.outbox, "events"),)
    return Box("outbox", "warn" if late else "ok", "in Postgres", lines, begin, OUTBOX_Y, end - begin, 0)


def _orders_line(flow: Flow) -> str:
    if flow.orders is None or flow.payments is None:
        return ""
    parts = [f"{waiting(flow.orders.open, 'open orders')}", f"{waiting(flow.orders.uncompensated, 'uncompensated')}"]
    payments = flow.payments
    parts.append(f"payments: {payments.without_answer:,} without an answer, {payments.pending:,} pending,")
    return " · ".join(parts) + f" {payments.voiding:,} to void"


def _valkey(source: SourceAnswer, y: float) -> Box:
    kind, state = _server(source)
    kind = "warn" if kind == "bad" else kind
    return Box("Valkey", kind, state, ("cache of reads",), _centre(GATEWAY) - BOX_WIDTH / 2, y, BOX_WIDTH, 74)


def _provider(flow: Flow, y: float) -> Box:
    x = _centre(CONSUMER_GROUPS[0]) - BOX_WIDTH / 2
    if flow.provider is None:
        return Box("payment provider", "off", "not watched", ("",), x, y, BOX_WIDTH, 74)
    provider = flow.provider
    if provider.breaker != "closed":
        lines = (f"for {filters.age(provider.down_seconds)}, breaker {provider.breaker}",)
        return Box("payment provider", "bad", "down", lines, x, y, BOX_WIDTH, 74)
    lines = (f"{provider.calls_in_flight:,} calls in flight",)
    return Box("payment provider", "ok", "answers", lines, x, y, BOX_WIDTH, 74)
