"""POST /orders answers any JSON and any bytes with 201 or 400, and with no other status."""

import asyncio
import json
from decimal import Decimal
from typing import Any, cast

import jsonschema
import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from orderstream.api_gateway.openapi import document
from orderstream.api_gateway.orders.backpressure import OutboxLimit
from orderstream.api_gateway.orders.parsing import InvalidOrderError, read_order
from orderstream.api_gateway.orders.violations import violations
from orderstream.api_gateway.orders.writer import NewOrder, Stored, Writer
from orderstream.api_gateway.routes import Health, OrderHandlers, router
from orderstream.domain.money import MINOR_DIGITS
from orderstream.telemetry.tracing import Tracer
from tests.support.asgi import call
from tests.support.bodies import order
from tests.support.samples import ORDER_ID


class Taker:
    """A writer that accepts every order at once."""

    def __len__(self) -> int:
        return 0

    async def store(self, order: NewOrder) -> Stored:
        assert order.created.amount > 0
        assert 1 <= len(order.created.items) <= 1000
        return Stored(order.created.order_id)


class Roomy:
    """An outbox that is never full."""

    def is_exceeded(self) -> bool:
        return False


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["USD", "JPY", "1.00", "0", 1e400, 10**400, "\x00", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
MONEY = st.decimals(min_value=0, max_value=10**13, places=2).map(str) | st.integers(-5, 10**14) | JSON
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "sku": st.text(max_size=70) | JSON,
        "qty": st.integers(-1, 2_000_000) | JSON,
        "price": MONEY,
        "colour": JSON,
    },
)
NEARLY_AN_ORDER = st.fixed_dictionaries(
    {},
    optional={
        "userId": st.text(max_size=130) | JSON,
        "items": st.lists(ITEM, max_size=4) | JSON,
        "amount": MONEY,
        "currency": st.sampled_from(sorted(MINOR_DIGITS)) | JSON,
        "note": JSON,
    },
)
ORDER = st.fixed_dictionaries(
    {
        "userId": st.text(st.characters(exclude_characters="\x00", codec="utf-8"), min_size=1, max_size=128),
        "items": st.lists(
            st.fixed_dictionaries(
                {
                    "sku": st.text(st.characters(exclude_characters="\x00", codec="utf-8"), min_size=1, max_size=64),
                    "qty": st.integers(1, 1_000_000),
                    "price": st.decimals(min_value="0.01", max_value="999999999999.99", places=2).map(str),
                }
            ),
            min_size=1,
            max_size=5,
            unique_by=lambda item: str(item["sku"]),
        ),
        "amount": st.integers(1, 999_999_999_999),
        "currency": st.sampled_from(["USD", "EUR", "KWD"]),
    },
    optional={"note": st.text(st.characters(codec="utf-8"))},
)


_DOCUMENT = document()
ORDER_SCHEMA = jsonschema.Draft202012Validator(
    {"$ref": "#/components/schemas/OrderRequest", "components": _DOCUMENT["components"]}
)


def post(body: bytes) -> tuple[int, Any]:
    """Send a body to the whole application. Return the status and the JSON of the response."""
    nothing: Any = None
    orders = OrderHandlers(
        cast("Writer", Taker()), nothing, nothing, nothing, cast("OutboxLimit", Roomy()), key_owners=nothing
    )
    application = router(orders, Health(nothing), Tracer(None, 0))
    answer = asyncio.run(call(application, "POST", "/orders", [body], {"content-type": "application/json"}))
    return answer.status, msgspec.json.decode(answer.body)


@given(JSON | NEARLY_AN_ORDER, st.booleans())
@example({"userId": "u", "items": [{"sku": "S", "qty": 1, "price": "1.00"}], "amount": 1, "currency": "JPY"}, True)
def test_any_json_is_accepted_or_refused(value: Any, ascii_only: bool) -> None:
    status, answer = post(json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace"))
    assert status in (201, 400)
    if status == 400:
        assert answer["type"] == "urn:orderstream:problem:invalid-order"
        assert answer["errors"]


@given(ORDER)
def test_an_order_is_accepted(value: dict[str, Any]) -> None:
    assert post(json.dumps(value).encode())[0] == 201


@given(st.binary() | st.binary().map(lambda junk: b'{"userId":"u"' + junk))
def test_any_bytes_are_accepted_or_refused(body: bytes) -> None:
    assert post(body)[0] in (201, 400)


NUMBERS = st.integers(-2, 1_000_002).map(str) | st.from_regex(
    r"\A-?(0|[1-9][0-9]{0,12})(\.[0-9]{1,6})?([eE][+-]?[0-9]{1,2})?\Z"
)


@given(NUMBERS, st.one_of(NUMBERS, NUMBERS.map(json.dumps), st.text(max_size=5).map(json.dumps)))
@example("1.0", "1e0")
@example("10e-1", "999999999999.99")
@example("1.5", "1000000000000")
def test_a_body_is_accepted_if_and_only_if_the_published_schema_accepts_it(qty: str, price: str) -> None:
    """The digits after the point are an exception: in the schema, their number does not depend on the currency."""
    body = order(qty=qty, price=price)
    valid = ORDER_SCHEMA.is_valid(json.loads(body, parse_float=_exact))
    status, answer = post(body)
    if status == 400 and valid:
        assert all("digits after the point" in error["detail"] for error in answer["errors"])
    else:
        assert (status == 201) == valid


def _exact(text: str) -> int | Decimal:
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() else number


@given(NEARLY_AN_ORDER)
def test_an_accepted_body_is_valid_by_the_published_schema(value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    if post(body)[0] == 201:
        ORDER_SCHEMA.validate(json.loads(body))


@given(NEARLY_AN_ORDER)
def test_the_decoder_and_the_violations_agree(value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    try:
        read_order(body, ORDER_ID)
    except InvalidOrderError:
        assert violations(body)
    else:
        assert not violations(body)
