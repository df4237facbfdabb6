"""The CPU time for which one request can block the event loop: every parser, at the limit of its input.

The tests compare costs with each other, so the speed of the machine makes no difference. The yardstick is a plain order
with a thousand lines, which takes about 3 ms.
"""

import time
from collections.abc import Callable

import pytest

from orderstream.api_gateway.orders.parsing import InvalidOrderError, read_order
from orderstream.api_gateway.orders.waiters import preferred_wait
from orderstream.http_server import problems
from orderstream.http_server.conditions import read_condition
from orderstream.http_server.request_body import BODY_MAX_BYTES, _is_encoded, _is_json
from orderstream.telemetry.tracing import TraceContext, parse
from tests.support.bodies import many, order
from tests.support.samples import ORDER_ID

RUNS = 5
ROUNDS_MAX = 10
"""Comparisons of two costs. Another process can slow down one of them, so the lowest ratio counts."""
YARDSTICKS_MAX = 32
"""100 ms on a machine that needs 3 ms for the yardstick. The worst body takes 10 yardsticks on a quiet machine, and 20
on a busy one, because its many small objects need more of the shared memory cache than the yardstick does."""
GROWTH_MAX = 3.5
"""Twice the input takes twice the time if the cost is linear, and four times if it is quadratic."""
FIELD_BYTES = 64 * 1024
SPACE = BODY_MAX_BYTES - 400


def cost(action: Callable[[], object]) -> float:
    """Return the lowest CPU time of several runs, in seconds."""
    times = []
    for _ in range(RUNS):
        started = time.thread_time()
        action()
        times.append(time.thread_time() - started)
    return min(times)


def is_within(limit: float, action: Callable[[], object], reference: Callable[[], object]) -> bool:
    """Say whether `action` costs at most `limit` times as much as `reference`, and 1 ms that no machine measures well.

    Both are measured in turn, and again for ROUNDS_MAX rounds at most, because the load of the machine changes.
    """
    return any(cost(action) <= limit * cost(reference) + 0.001 for _ in range(ROUNDS_MAX))


def answer(body: bytes) -> int:
    """Parse a body, and encode the 400 if it is not an order. Return the size of the 400."""
    try:
        read_order(body, ORDER_ID)
    except InvalidOrderError as error:
        return len(problems.invalid_order(error.errors).body("0" * 32))
    return 0


def filled(unit: Callable[[int], str], share: float = 1.0) -> str:
    """Return as many units, joined by commas, as fit into this share of a body."""
    count = int(SPACE * share) // (len(unit(99_999)) + 1)
    return ",".join(map(unit, range(count)))


BODIES: dict[str, Callable[[float], bytes]] = {
    "unknown members": lambda share: order(more="," + filled(lambda n: f'"k{n}":1', share)),
    "members of one name": lambda share: order(more="," + filled(lambda _: '"a":1', share)),
    "pairs of one name": lambda share: order(more="," + filled(lambda n: f'"{n // 2}":1', share)),
    "zeros": lambda share: order(more=f',"x":[{filled(lambda _: "0", share)}]'),
    "numbers": lambda share: order(more=f',"x":[{filled(lambda _: "-1.5e300", share)}]'),
    "number bombs": lambda share: order(more=f',"x":[{filled(lambda _: "1e400000", share)}]'),
    "strings": lambda share: order(more=f',"x":[{filled(lambda _: chr(34) * 2, share)}]'),
    "lone surrogates": lambda share: order(more=f',"x":[{filled(lambda _: LONE, share)}]'),
    "empty objects": lambda share: order(more=f',"x":[{filled(lambda _: "{}", share)}]'),
    "objects that repeat a name": lambda share: order(more=f',"x":[{filled(lambda _: A_TWICE, share)}]'),
    "NaN": lambda share: order(more=f',"x":[{filled(lambda _: "NaN", share)}]'),
    "empty items": lambda share: order(items=f"[{filled(lambda _: '{}', share)}]"),
    "items with many members": lambda share: order(items=f"[{filled(wide_item, share)}]"),
    "nested lists": lambda share: order(more=',"x":' + "[" * int(SPACE * share / 2) + "]" * int(SPACE * share / 2)),
    "a long string": lambda share: order(user='"' + "a" * int(SPACE * share) + '"'),
    "a long string of commas": lambda share: order(more=',"x":"' + "," * int(SPACE * share) + '"'),
    "escapes": lambda share: order(more=',"x":"' + "\\n" * int(SPACE * share / 2) + '"'),
    "escaped quotes and commas": lambda share: order(more=',"x":"' + '\\",' * int(SPACE * share / 3) + '"'),
    "escaped characters": lambda share: order(user='"' + "\\u00fc" * int(SPACE * share / 6) + '"'),
    "a long quantity": lambda share: order(qty="9" * int(SPACE * share)),
    "a long fraction": lambda share: order(qty="1." + "0" * int(SPACE * share)),
    "a long price": lambda share: order(price="9" * int(SPACE * share)),
    "a long price in a string": lambda share: order(price='"' + "9" * int(SPACE * share) + '"'),
    "a long currency": lambda share: order(currency='"' + "A" * int(SPACE * share) + '"'),
    "white space": lambda share: b" " * int(SPACE * share) + order(),
    "an unended string": lambda share: order()[:-1] + b',"' + b"a" * int(SPACE * share),
    "no JSON": lambda share: b"{" * int(SPACE * share),
}
A_TWICE = '{"a":1,"a":2}'
LONG_NAME = "\\u0001" * 500
LONE = '"\\ud800"'


def wide_item(number: int) -> str:
    """Return the JSON of an item with a dozen ignored members."""
    more = ",".join(f'"m{member}":{member}' for member in range(12))
    return f'{{"sku":"S{number % 1_000}","qty":1,"price":1,{more}}}'


@pytest.fixture
def yardstick() -> Callable[[], object]:
    """The action that parses an order with a thousand lines."""
    largest = order(items=many(1_000))
    return lambda: read_order(largest, ORDER_ID)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_no_body_blocks_the_event_loop(yardstick: Callable[[], object], body: Callable[[float], bytes]) -> None:
    largest = body(1)
    assert len(largest) <= BODY_MAX_BYTES
    assert is_within(YARDSTICKS_MAX, lambda: answer(largest), yardstick)


MOST_MARKS: dict[str, str] = {
    "unknown members": ",".join(f'"k{number}":1' for number in range(19_900)),
    "pairs of one name": ",".join(f'"{number // 2}":1' for number in range(19_900)),
    "objects that repeat a name": f'"x":[{",".join([A_TWICE] * 6_600)}]',
    "empty objects": f'"x":[{",".join(["{}"] * 9_900)}]',
    "nested lists": f'"x":[{",".join(["[" * 400 + "]" * 400] * 49)}]',
    "lone surrogates below a long name": '"'
    + "\\u0001" * 500
    + '":{'
    + ",".join(f'"{n}":"\\ud800"' for n in range(19_000))
    + "}",
    "lone surrogates in names": ",".join(f'"{"u" * 20}{number}\\ud800":1' for number in range(15_000)),
    "NaN": f'"x":[{",".join(["NaN"] * 19_900)}]',
    "commas in escapes": '"x":"' + '\\",' * 300_000 + '"',
}


@pytest.mark.parametrize("members", MOST_MARKS.values(), ids=MOST_MARKS)
def test_no_body_that_is_parsed_blocks_the_event_loop(yardstick: Callable[[], object], members: str) -> None:
    body = order(more="," + members)
    assert len(body) <= BODY_MAX_BYTES
    sizes: list[int] = []
    assert is_within(YARDSTICKS_MAX, lambda: sizes.append(answer(body)), yardstick)
    assert max(sizes) <= 2 * BODY_MAX_BYTES


LINEAR = [
    "a long string",
    "escapes",
    "escaped characters",
    "a long quantity",
    "a long fraction",
    "white space",
    "no JSON",
]


@pytest.mark.parametrize("name", LINEAR)
def test_the_cost_of_a_body_is_linear_in_its_size(name: str) -> None:
    half, whole = BODIES[name](0.5), BODIES[name](1)
    assert is_within(GROWTH_MAX, lambda: answer(whole), lambda: answer(half))


FIELDS: dict[str, Callable[[bytes], object]] = {
    "content-type": lambda field: _is_json(b"application/json" + field),
    "content-encoding": _is_encoded,
    "prefer": preferred_wait,
    "if-match": lambda field: read_condition({b"if-match": field}),
    "if-none-match": lambda field: read_condition({b"if-none-match": field}),
    "traceparent": lambda field: parse(TraceContext(field.decode("latin-1"), None)),
    "tracestate": lambda field: parse(TraceContext(f"00-{'1' * 32}-{'2' * 16}-01", field.decode("latin-1"))),
}
UNITS = [
    *(b",", b";", b'"', b"a", b" ", b"=", b"\\", b";a", b",a", b"-00", b"a=b,"),
    *(b';a="', b',a="', b'"a",', b'W/"', b'"\\', b'a="b",'),
]


@pytest.mark.parametrize("unit", UNITS, ids=repr)
@pytest.mark.parametrize("read", FIELDS.values(), ids=FIELDS)
def test_the_cost_of_a_field_is_linear_in_its_length(read: Callable[[bytes], object], unit: bytes) -> None:
    half, whole = (unit * (size // len(unit)) for size in (FIELD_BYTES // 2, FIELD_BYTES))
    assert is_within(GROWTH_MAX, lambda: read(whole), lambda: read(half))


@pytest.mark.parametrize("unit", UNITS, ids=repr)
@pytest.mark.parametrize("read", FIELDS.values(), ids=FIELDS)
def test_no_field_blocks_the_event_loop(
    yardstick: Callable[[], object], read: Callable[[bytes], object], unit: bytes
) -> None:
    field = unit * (FIELD_BYTES // len(unit))
    assert is_within(YARDSTICKS_MAX, lambda: read(field), yardstick)
