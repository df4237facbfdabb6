"""The operations of the area: the flow of the whole system."""

from orderstream.console.context import Console
from orderstream.console.flow.answers import Flow, flow
from orderstream.console.web.api import Call, Operation


def operations(console: Console) -> list[Operation]:
    """Return the operations."""

    async def get_flow(_call: Call) -> Flow:
        return flow(console.flow.look())

    return [
        Operation(
            "GET", "/api/flow", "The state of services, topics, groups, outbox, payments and orders", Flow, get_flow
        )
    ]
