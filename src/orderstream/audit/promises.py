"""The eleven promises in words. docs/promises.md and the page /promises of the console take the sentences from here."""

from msgspec import Struct

from orderstream.audit.check import SQL


class Promise(Struct, frozen=True):
    """One promise: its number, its sentence, and the checks of the audit that find a breach of it."""

    name: str
    sentence: str
    checks: tuple[str, ...] = ()


PROMISES = (
    Promise(
        "P1",
        "Every 201 is durable: the order and its first event are committed in one transaction before the "
        "gateway answers.",
        ("p1_durable",),
    ),
    Promise(
        "P2",
        "A customer is charged at most once for each order, and exactly the accepted amount. FAILED and "
        "CANCELLED orders end with a net charge of 0.",
        ("p2_charged_once", "p2_provider_ledger"),
    ),
    Promise(
        "P3",
        "Stock is conserved. For each SKU, the stocked units are available + reserved, and neither is "
        "negative. The reserved units are the lines of the orders that hold stock. An order gets all its "
        "lines or none.",
        ("p3_stock_conserved", "p3_all_lines_or_none"),
    ),
    Promise(
        "P4",
        "An order is CONFIRMED only if its payment is authorized and its stock is reserved (a CHECK "
        "constraint). An open order with both becomes CONFIRMED.",
        ("p4_confirmed",),
    ),
    Promise(
        "P5",
        "Every accepted order settles as CONFIRMED, FAILED or CANCELLED. If it is not CONFIRMED, it is "
        "compensated. This holds if any process dies, and even if every Kafka topic is lost.",
        ("p5_settles", "outbox_drained"),
    ),
    Promise(
        "P6",
        "A settled status never changes, with one exception: an accepted cancel changes CONFIRMED to CANCELLED.",
        ("p6_settled_stays",),
    ),
    Promise(
        "P7",
        "Duplicated and reordered events never change the final state of an order, also across topics. Only "
        "one race can end in two ways: a cancel or the deadline against completion. The lock of the order's "
        "row decides this race once.",
        ("p7_facts_agree",),
    ),
    Promise(
        "P8",
        "While the cache is reachable, a read never shows an older state than an earlier read, and never an "
        "older state than a published `order.updated`.",
    ),
    Promise(
        "P9",
        "A record that cannot be processed never blocks a partition and is never dropped silently. It is in "
        "the dead-letter topic with its reason.",
    ),
    Promise(
        "P10",
        "The same Idempotency-Key gives the same order and the same response.",
        ("p10_one_order_a_key",),
    ),
    Promise(
        "P11",
        "Redis is only a cache: without Redis everything still works. Without Kafka, POST still answers 201.",
    ),
)
"""Every promise. P8, P9 and P11 are not about rows in PostgreSQL and have no check: see docs/promises.md."""

UNCHECKED_HOW = {
    "P8": "Compare the ETag of a cached read with the version of the row.",
    "P9": "Look at the dead letters. Their effect on orders shows in p5_settles and p7_facts_agree.",
    "P11": "Stop Kafka or Redis and place an order. POST still answers 201.",
}
"""What an operator can do about a promise that no check covers."""


def sql_of(check: str) -> str | None:
    """Return the statement of a check, or None for the check that reads the ledger of the provider."""
    return SQL.get(check)
