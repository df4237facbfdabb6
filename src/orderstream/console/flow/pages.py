"""The pages of the area: the overview, and the topics and consumer groups of Kafka."""

from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.context import Console
from orderstream.console.flow.answers import Flow, flow
from orderstream.console.flow.api import ListQuery, RecordsQuery
from orderstream.console.flow.history import grown, steps
from orderstream.console.flow.problems import LETTERS_SECONDS
from orderstream.console.flow.records import Look
from orderstream.console.flow.saga_map import UNKNOWN, saga_map
from orderstream.console.flow.snapshot import ACCEPTED, DEAD_LETTERS, LAG, OUTBOX_AGE, SETTLED, Snapshot
from orderstream.console.web import filters
from orderstream.console.web.api import decode_query
from orderstream.console.web.pages import page_routes
from orderstream.http_server.problems import Problem

SPARK_STEPS = 60
PARTITIONS_SHOWN = 100


class PageQuery(RecordsQuery, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What to read of a topic, and the first partition of its table."""

    first_partition: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0


def routes(console: Console) -> list[Route]:
    """Return the routes."""

    async def overview(request: Request) -> Response:
        now = console.flow.look()
        state = flow(now)
        return console.templates.page(
            request,
            "flow/overview.html",
            flow=state,
            map=saga_map(state),
            figures=figures(now, state),
            base_url=console.settings.base_url,
        )

    async def topics(request: Request) -> Response:
        everything = decode_query(request.url.query, ListQuery).all
        state = flow(console.flow.look())
        listed = await console.work(console.topics.list_topics, state, everything=everything)
        groups = await console.work(console.topics.list_groups, state, everything=everything)
        return console.templates.page(request, "flow/topics.html", topics=listed, groups=groups, everything=everything)

    async def topic(request: Request) -> Response:
        name = request.path_params["name"]
        query = decode_query(request.url.query, PageQuery)
        found = await console.work(console.topics.topic, name)
        look = Look(name, query.partition, query.offset, query.limit, query.key)
        read, problem = None, None
        try:
            read = await console.work(console.topics.read, look)
        except Problem as refused:
            problem = refused
        shown = found.partitions[query.first_partition : query.first_partition + PARTITIONS_SHOWN]
        return console.templates.page(
            request,
            "flow/topic.html",
            topic=found,
            look=look,
            read=read,
            problem=problem,
            shown=shown,
            first_partition=query.first_partition,
            step=PARTITIONS_SHOWN,
        )

    return page_routes([("GET", "/", overview), ("GET", "/topics", topics), ("GET", "/topics/{name}", topic)])


def figures(now: Snapshot, state: Flow) -> list[dict[str, object]]:
    """Return the figures of the overview, each with its meaning, its values over 5 minutes, and where it leads."""
    orders, outbox = state.orders, state.outbox
    lag = None if now.kafka.value is None else sum(group.lag for group in state.groups)
    letters = grown(now.history.get(DEAD_LETTERS, ()), now.now, LETTERS_SECONDS)
    age = UNKNOWN if outbox is None else filters.age(outbox.oldest_seconds) or "empty"
    new_letters = UNKNOWN if letters is None else f"{letters[0]:,.0f}"
    return [
        _figure(now, ACCEPTED, "accepted per second", _rate(orders.accepted_per_second if orders else None), "/orders"),
        _figure(now, SETTLED, "settled per second", _rate(orders.settled_per_second if orders else None), "/orders"),
        _figure(now, LAG, "records behind", UNKNOWN if lag is None else f"{lag:,}", "/topics"),
        _figure(now, OUTBOX_AGE, "age of the outbox", age, "/topics"),
        _figure(now, DEAD_LETTERS, "dead letters in 5 min", new_letters, "/dead-letters"),
    ]


def _rate(rate: float | None) -> str:
    return UNKNOWN if rate is None else filters.number(round(rate, 1))


def _figure(now: Snapshot, series: str, meaning: str, value: str, link: str) -> dict[str, object]:
    points = now.history.get(series, ())
    values = steps(points, now.now, SPARK_STEPS)
    if series == DEAD_LETTERS:
        first = next((value for value in values if value is not None), 0.0)
        values = [None if value is None else value - first for value in values]
    return {"meaning": meaning, "value": value, "link": link, "values": values, "name": series}
