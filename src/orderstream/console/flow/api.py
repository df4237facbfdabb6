"""The operations of the area: the flow of the whole system, topics, their records, and consumer groups."""

from typing import Annotated

from msgspec import Meta, Struct

from orderstream.console.context import Console
from orderstream.console.flow.answers import Flow, flow
from orderstream.console.flow.records import KEY_MAX_BYTES, LIMIT_MAX, Look, RecordsAnswer
from orderstream.console.flow.topic_view import GroupsAnswer, TopicsAnswer
from orderstream.console.flow.topics import TopicAnswer
from orderstream.console.web.api import Call, Operation

Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ListQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`all` also lists topics and groups that are not ours."""

    all: bool = False


class RecordsQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Without an offset, the newest records. With a key, only records with this key."""

    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    offset: Offset | None = None
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = 20
    key: Annotated[str, Meta(max_length=KEY_MAX_BYTES)] | None = None


def operations(console: Console) -> list[Operation]:
    """Return the operations."""
    view = console.topics

    async def get_flow(_call: Call) -> Flow:
        return flow(console.flow.look())

    async def topics(call: Call) -> TopicsAnswer:
        return await console.work(view.list_topics, flow(console.flow.look()), everything=call.query.all)

    async def topic(call: Call) -> TopicAnswer:
        return await console.work(view.topic, call.path["name"])

    async def records(call: Call) -> RecordsAnswer:
        query = call.query
        look = Look(call.path["name"], query.partition, query.offset, query.limit, query.key)
        return await console.work(view.read, look)

    async def groups(call: Call) -> GroupsAnswer:
        return await console.work(view.list_groups, flow(console.flow.look()), everything=call.query.all)

    return [
        Operation("GET", "/api/flow", "Show the state of services, topics, groups, outbox and orders", Flow, get_flow),
        Operation("GET", "/api/topics", "List the topics", TopicsAnswer, topics, query=ListQuery),
        Operation("GET", "/api/topics/{name}", "Show a topic with its partitions", TopicAnswer, topic),
        Operation(
            "GET", "/api/topics/{name}/records", "Read a few records", RecordsAnswer, records, query=RecordsQuery
        ),
        Operation(
            "GET", "/api/groups", "List the consumer groups with lag and members", GroupsAnswer, groups, query=ListQuery
        ),
    ]
