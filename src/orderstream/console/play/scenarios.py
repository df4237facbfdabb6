"""Scenarios that teach: what to do, what to watch, and which promise shows."""

from msgspec import Struct

from orderstream.console.processes.act import Act


class Scenario(Struct, frozen=True):
    """One experiment. `preset` is a preset of faults, `act` and `process` a signal. Each may be empty."""

    title: str
    do: str
    watch: str
    promise: str
    preset: str = ""
    act: Act | None = None
    process: str = ""


SCENARIOS = (
    Scenario(
        "Kill payment-worker while calls are in flight",
        "Choose “Slow bank”. When calls are in flight, kill payment-worker.",
        "`up` starts it again within a second. The claims of its calls end, and it repeats each call with the same key."
        " Run the audit: no order is charged twice.",
        "P2",
        "slowBank",
        "kill",
        "payment-worker",
    ),
    Scenario(
        "The bank loses its answers",
        "Choose “Charges, then drops the connection”, wait half a minute, and choose “All well”.",
        "Open an order that took longer. Its payment has several attempts. The ledger of the bank has one charge.",
        "P2",
        "drops",
    ),
    Scenario(
        "The bank is down",
        "Choose “Bank is down”, wait a minute, and choose “All well”.",
        "New orders are accepted and stay PROCESSING. The breaker spares the bank. Afterwards all of them settle.",
        "P5",
        "bankDown",
    ),
    Scenario(
        "Kafka stands still",
        "Pause kafka. After 30 s `up` kills it and starts it again. Or resume it before.",
        "Orders are still accepted. Their events wait in the outbox, as the overview says. Then all settle.",
        "P11",
        act="pause",
        process="kafka",
    ),
    Scenario(
        "The cache is gone",
        "Kill valkey.",
        "Only the reads change: they have `X-Cache: BYPASS`. Orders go on as before.",
        "P11",
        act="kill",
        process="valkey",
    ),
    Scenario(
        "Postgres dies",
        "Kill postgres.",
        "The gateway answers 503 for some seconds. The desk counts them as not accepted. No accepted order is lost.",
        "P1",
        act="kill",
        process="postgres",
    ),
    Scenario(
        "Kill order-service",
        "Kill order-service while orders arrive.",
        "Records wait in Kafka as lag. The new process goes on at the committed offset. Duplicates change nothing.",
        "P7",
        act="kill",
        process="order-service",
    ),
    Scenario(
        "Sold out",
        "Place orders of the kind “Sold out” only.",
        "Each order fails with OUT_OF_STOCK, and its charge is voided: the net charge is 0. No unit is reserved.",
        "P3",
    ),
)
