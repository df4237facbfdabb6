"""Every page of the console, with the address at which the stack of the tests has something to show."""

from collections.abc import Callable

from orderstream.console.stock.sku_keys import sku_key
from tests.support.console_stack import ConsoleStack
from tests.support.waiting import wait_until

Address = Callable[[ConsoleStack], str]


def _fixed(path: str) -> Address:
    return lambda _stack: path


def _letter(stack: ConsoleStack) -> str:
    letter = stack.letters()[-1]
    return f"/dead-letters/{letter['service']}/{letter['partition']}/{letter['offset']}"


def _sku(_stack: ConsoleStack) -> str:
    return f"/stock/{sku_key('SKU-1')}"


def _trace(stack: ConsoleStack) -> str:
    # The console keeps traces in memory. A test before this one may have restarted it.
    query = f"/traces?orderId={stack.place()}"
    traces = wait_until(lambda: stack.api(query)["traces"], 60, "the console has the trace of an order")
    return f"/traces/{traces[0]['traceId']}"


PAGES: dict[str, tuple[str, Address]] = {
    "the overview": ("/", _fixed("/")),
    "the orders": ("/orders", _fixed("/orders")),
    "no orders": ("/orders", _fixed("/orders?userId=has-no-order")),
    "a confirmed order": ("/orders/{order_id}", lambda stack: f"/orders/{stack.orders['CONFIRMED']}"),
    "a stuck order": ("/orders/{order_id}", lambda stack: f"/orders/{stack.orders['PROCESSING']}"),
    "an order with everything that was found": (
        "/orders/{order_id}",
        lambda stack: f"/orders/{stack.orders['CONFIRMED']}?all=true",
    ),
    "the dead letters": ("/dead-letters", _fixed("/dead-letters")),
    "the open dead letters": ("/dead-letters", _fixed("/dead-letters?state=open")),
    "a dead letter": ("/dead-letters/{service}/{partition}/{offset}", _letter),
    "the jobs of dead letters": ("/dead-letters/jobs", _fixed("/dead-letters/jobs")),
    "a job of dead letters": ("/dead-letters/jobs/{id}", _fixed("/dead-letters/jobs/1")),
    "the topics": ("/topics", _fixed("/topics")),
    "a topic": ("/topics/{name}", _fixed("/topics/order.created.v1")),
    "the stock": ("/stock", _fixed("/stock")),
    "a SKU": ("/stock/{key}", _sku),
    "the promises": ("/promises", _fixed("/promises")),
    "the actions": ("/actions", _fixed("/actions")),
    "an action": ("/actions/{id}", _fixed("/actions/1")),
    "the processes": ("/processes", _fixed("/processes")),
    "a log": ("/processes/{name}", _fixed("/processes/payment-worker")),
    "the play desk": ("/play", _fixed("/play")),
    "a trace": ("/traces/{trace_id}", _trace),
    "the search": ("/search", _fixed("/search?q=finds-nothing")),
    "the login": ("/enter", _fixed("/enter")),
}
"""The pages by name: the path of the route, and an address."""

PARTS = {
    "/orders/{order_id}/story": "the page of an order loads it",
    "/orders/{order_id}/events": "the page of an order loads it",
}
"""Routes that answer with a part of a page."""
