"""The overview says in words what is wrong, what it means for orders, and what to do."""

from typing import Any

import pytest
from msgspec.structs import replace

from orderstream.audit.under_way import Backlog
from orderstream.console.flow.answers import flow
from orderstream.console.flow.problem import Problem, Severity
from orderstream.console.flow.problems import all_is_well, problems
from orderstream.console.flow.processes_reader import ProcessesSample
from orderstream.console.flow.snapshot import Snapshot, lag_of, letters_of
from orderstream.console.flow.source import Reading
from orderstream.console.flow.valkey_reader import ValkeySample
from orderstream.settings import SERVICES
from tests.unit.console.flow.snapshots import (
    NOW,
    answered,
    instance,
    kafka,
    postgres,
    processes,
    series,
    silent,
    well,
    without,
)

BREAKER = {"orderstream_provider_breaker_open": [("", 1.0)], "orderstream_provider_down_seconds": [("", 425.0)]}
PAUSED = {
    "orderstream_paused_partitions": [('topic="order.created.v1"', 3.0)],
    "orderstream_provider_calls_in_flight": [('lane="new"', 600.0)],
}
GROWING = series(*range(0, 6_000, 400))
SHRINKING = series(*range(6_000, 0, -400))

# What is wrong, the severity, and the texts: what, the effect, what to do (the beginning of each).
CASES: dict[str, tuple[Snapshot, Severity, str, str, str]] = {
    "Kafka is silent": (
        well(kafka=silent(kafka()), postgres=answered(postgres(outbox=Backlog(1_204, 29.0)))),
        "error",
        "Kafka has not answered since 10:32:07.",
        "Orders are accepted and wait in the outbox: 1,000 or more events, the oldest for 29 s. No order settles",
        "Start Kafka again, or find out why it does not answer. Nothing is lost",
    ),
    "Kafka is silent in the local stack": (
        well(kafka=silent(kafka()), local=True),
        "error",
        "Kafka has not answered since 10:32:07.",
        "Orders are accepted and wait in the outbox. No order settles meanwhile.",
        "The local stack restarts Kafka by itself. Nothing is lost",
    ),
    "Kafka is silent and the outbox is full": (
        well(kafka=silent(kafka()), postgres=answered(postgres(outbox=Backlog(1_000, 29.0))), outbox_limit=1_000),
        "error",
        "Kafka has not answered since 10:32:07.",
        "New orders are refused with 503, because 1,000 events wait in the outbox.",
        "Start Kafka again",
    ),
    "Kafka hangs": (
        well(kafka=answered(kafka(), answered_at=NOW - 4, asked_at=NOW - 2)),
        "error",
        "Kafka has not answered since 10:32:33.",
        "Orders are accepted",
        "Start Kafka again",
    ),
    "Kafka never answered": (
        well(kafka=Reading(silent_since=NOW - 600, error="refused")),
        "error",
        "Kafka has not answered since the console started at 10:22:37.",
        "Orders are accepted",
        "Start Kafka again",
    ),
    "a partition has no leader": (
        well(kafka=answered(replace(kafka(), measured_at=NOW - 40, problem="Broker: Not leader for partition"))),
        "warning",
        "Kafka answers, but not for all partitions since 10:31:57 (Broker: Not leader for partition).",
        "Orders in those partitions wait.",
        "If a broker is down, start it again.",
    ),
    "topics are missing": (
        well(kafka=answered(without(kafka(), "order.aborted.v1"))),
        "error",
        "1 of 12 topics do not exist in Kafka, the first is order.aborted.v1.",
        "Orders are accepted. Their events wait until the topics exist.",
        "Create the topics with this command: orderstream topics",
    ),
    "Kafka is back": (
        well(kafka=answered(kafka(), recovered_at=NOW - 20, silence_seconds=63.0)),
        "notice",
        "Kafka has answered again since 10:32:17. It was silent for 63 s.",
        "The orders that waited settle now.",
        "You do not need to do anything.",
    ),
    "Postgres is silent": (
        well(postgres=silent(postgres(outbox=Backlog(500, 60.0)))),
        "error",
        "Postgres has not answered since 10:32:07.",
        "New orders are refused with 503, and no order settles. Accepted orders are safe.",
        "Start Postgres again",
    ),
    "Valkey is silent": (
        well(valkey=silent(ValkeySample(0.001))),
        "warning",
        "Valkey has not answered since 10:32:07.",
        "Orders are not affected.",
        "Start Valkey again",
    ),
    "a service is down": (
        well(
            processes=answered(processes(instance("payment-worker", "no answer"))),
            kafka=answered(kafka(lag=250)),
        ),
        "error",
        "payment-worker does not answer.",
        "Orders are accepted and wait for their payment. 250 records wait for it in Kafka.",
        "Start payment-worker again. Nothing is lost.",
    ),
    "the relay is down": (
        well(
            processes=answered(processes(instance("outbox-relay", "ended"))),
            postgres=answered(postgres(outbox=Backlog(12, 70.0))),
        ),
        "error",
        "outbox-relay does not answer.",
        "Orders are accepted and wait in the outbox: 12 events, the oldest for 70 s.",
        "Start outbox-relay again.",
    ),
    "a service has no process": (
        well(processes=answered(ProcessesSample(tuple(instance(name) for name in SERVICES[1:]))), local=True),
        "error",
        "api-gateway does not answer.",
        "No order is accepted or read.",
        "The local stack restarts api-gateway by itself.",
    ),
    "one of two processes is down": (
        well(processes=answered(processes(instance("order-service"), instance("order-service-2", "no answer")))),
        "warning",
        "1 of 2 processes of order-service do not answer: order-service-2.",
        "The other processes take over its work.",
        "Start order-service again.",
    ),
    "a process is not ready": (
        well(processes=answered(processes(instance("outbox-relay", "not ready", "has published nothing for 35 s: x")))),
        "warning",
        "outbox-relay is not ready: has published nothing for 35 s: x.",
        "Its orders wait.",
        "If this lasts, read the log of outbox-relay.",
    ),
    "a process starts": (
        well(processes=answered(processes(instance("outbox-relay", "not ready", "starting")))),
        "notice",
        "outbox-relay is starting.",
        "",
        "",
    ),
    "a service restarts again and again": (
        well(processes=answered(processes(instance("order-service", restarts=3)))),
        "warning",
        "order-service has restarted 3 times in the last 5 minutes.",
        "No order is lost",
        "Read the log of order-service",
    ),
    "a service has restarted": (
        well(processes=answered(processes(instance("order-service", restarts=1)))),
        "notice",
        "order-service has restarted at 10:31:37.",
        "No order is lost",
        "You do not need to do anything.",
    ),
    "the relay is behind": (
        well(postgres=answered(postgres(outbox=Backlog(310, 42.0)))),
        "warning",
        "outbox-relay is behind: 310 events wait to be published, the oldest for 42 s.",
        "New orders are accepted and settle later.",
        "If the number grows, start another outbox-relay",
    ),
    "a group is too slow": (
        well(kafka=answered(kafka(5_600)), history={lag_of("payment-worker"): GROWING}),
        "warning",
        "payment-worker is too slow: 5,600 records wait for it, and 200 more every second.",
        "Orders take longer",
        "Start more processes of payment-worker (REPLICAS_PAYMENT_WORKER)",
    ),
    "a group catches up": (
        well(kafka=answered(kafka(400, "order-service")), history={lag_of("order-service"): SHRINKING}),
        "notice",
        "order-service is catching up: 400 records wait for it, and it needs about 2 s.",
        "Orders take longer until then.",
        "You do not need to do anything.",
    ),
    "the provider is down": (
        well(
            processes=answered(processes(instance("payment-worker", page=BREAKER))),
            kafka=answered(kafka(5_600)),
            history={lag_of("payment-worker"): GROWING},
        ),
        "error",
        "The payment provider has been down since 10:25:32 (breaker open).",
        "Orders are accepted and wait for their payment.",
        "Ask the provider.",
    ),
    "partitions are paused": (
        well(processes=answered(processes(instance("payment-worker", page=PAUSED)))),
        "warning",
        "payment-worker has no room for more calls: 3 partitions are paused.",
        "Orders wait in Kafka until the provider answers (600 calls in flight).",
        "If the provider is only slow",
    ),
    "an order is stuck": (
        well(postgres=answered(postgres(open=Backlog(3, 190.0)))),
        "warning",
        "An order has been open for 3 min. Most orders settle within a second.",
        "order-service repeats the first event",
        "Look at the order",
    ),
    "orders are not compensated": (
        well(postgres=answered(postgres(uncompensated=Backlog(7, 7_300.0)))),
        "warning",
        "7 aborted orders are not compensated, the oldest for 2 h.",
        "Their payment is not voided",
        "Look at the orders",
    ),
    "Kafka has refused records": (
        well(postgres=answered(postgres(refused=Backlog(2, 10.0)))),
        "warning",
        "Kafka has refused 2 records.",
        "Their orders may not settle",
        "Fix the topic's setting",
    ),
    "there are new dead letters": (
        well(history={letters_of("inventory-worker"): series(4, 4, 5, 7)}),
        "warning",
        "inventory-worker could not process 3 records in the last 5 minutes.",
        "The records are dead letters now.",
        "Read the reason",
    ),
    "the figures of the services are old": (
        well(processes=answered(processes(), answered_at=NOW - 45, silent_since=NOW - 45, error="no such host")),
        "warning",
        "The console has no new figures of the services for 45 s (no such host).",
        "Orders are not affected.",
        "Read the log of the console.",
    ),
    "there are too many processes": (
        well(processes=answered(replace(processes(), left_out=4))),
        "notice",
        "The console asks only some of the processes. 4 more are not shown.",
        "Orders are not affected.",
        "Name fewer processes",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_problem_is_said_in_words_and_alone(case: str) -> None:
    snapshot, severity, text, effect, advice = CASES[case]
    (found,) = problems(snapshot)
    assert found.severity == severity
    assert found.text.startswith(text)
    assert found.effect.startswith(effect)
    assert found.advice.startswith(advice)
    assert all(
        found_text.endswith((".", "redrive", "topics")) for found_text in (found.text, found.effect, found.advice)
    )


NO_PROBLEM: dict[str, dict[str, Any]] = {
    "a call has just begun": {"kafka": answered(kafka(), asked_at=NOW - 0.5)},
    "a first call has failed a moment ago": {"postgres": Reading(silent_since=NOW - 1)},
    "Kafka has been back for long": {"kafka": answered(kafka(), recovered_at=NOW - 70, silence_seconds=63.0)},
    "Kafka was silent for a moment": {"kafka": answered(kafka(), recovered_at=NOW - 5, silence_seconds=1.7)},
    "a small lag grows": {"kafka": answered(kafka(40)), "history": {lag_of("payment-worker"): series(0, 20, 40)}},
    "a lag stays": {"kafka": answered(kafka(400)), "history": {lag_of("payment-worker"): series(*[400] * 9)}},
    "dead letters are old": {"history": {letters_of("order-service"): series(7, 7, 7)}},
    "an order is young": {"postgres": answered(postgres(open=Backlog(300, 3.0), outbox=Backlog(4, 0.2)))},
}


@pytest.mark.parametrize("case", NO_PROBLEM)
def test_what_passes_by_itself_is_no_problem(case: str) -> None:
    assert problems(well(**NO_PROBLEM[case])) == []


def test_a_consequence_is_not_reported_beside_its_cause() -> None:
    waiting = [instance(name, "not ready", "has polled nothing for 40 s") for name in SERVICES[1:]]
    found = problems(well(kafka=silent(kafka(900)), processes=answered(processes(*waiting))))
    assert [problem.subject for problem in found] == ["kafka"]


def test_the_worst_problem_comes_first() -> None:
    found = problems(
        well(
            kafka=silent(kafka()),
            valkey=silent(ValkeySample(0.1), 60),
            postgres=answered(postgres(open=Backlog(3, 190.0)), recovered_at=NOW - 5, silence_seconds=20.0),
        )
    )
    assert [(problem.severity, problem.subject) for problem in found] == [
        ("error", "kafka"),
        ("warning", "orders"),
        ("warning", "valkey"),
        ("notice", "postgres"),
    ]


def test_with_nothing_wrong_one_calm_sentence_has_the_figures() -> None:
    now = well()
    assert problems(now) == []
    expected = "All is well: 12 orders accepted and 12 settled per second, and nothing waits."
    assert all_is_well(now) == flow(now).summary == expected
    busy = well(kafka=answered(kafka(3)), postgres=answered(postgres(outbox=Backlog(2, 0.1))))
    assert all_is_well(busy).endswith("3 records and 2 events are on their way.")


def test_the_summary_names_the_worst_problem() -> None:
    found = flow(well(kafka=silent(kafka()), valkey=silent(ValkeySample(0.1))))
    assert found.summary == "2 problems. Kafka has not answered since 10:32:07."


def test_before_the_first_answers_nothing_is_claimed() -> None:
    empty = Snapshot(now=NOW, at=well().at, started_at=NOW - 1)
    assert problems(empty) == []
    assert all_is_well(empty) == "The first figures are on their way."
    assert flow(empty).orders is None


def test_a_problem_has_the_members_of_the_api() -> None:
    assert set(Problem.__struct_encode_fields__) >= {"since", "severity", "text", "subject", "link"}
