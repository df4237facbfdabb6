"""The map of the saga shows every service and every event, at places that follow from domain/saga.py."""

from msgspec.structs import replace

from orderstream.audit.under_way import Backlog
from orderstream.console.flow.answers import flow
from orderstream.console.flow.saga_map import COLUMNS, UNKNOWN, saga_map
from orderstream.console.flow.snapshot import end_of
from orderstream.domain.events import PAYLOADS
from orderstream.domain.saga import CONSUMER_GROUPS, consumers_of
from tests.unit.console.flow.snapshots import answered, instance, kafka, postgres, processes, series, silent, well


def test_every_event_is_an_arrow_to_all_its_consumers() -> None:
    arrows = {arrow.event: arrow for arrow in saga_map(flow(well())).arrows}
    assert set(arrows) == set(PAYLOADS)
    for event, arrow in arrows.items():
        assert tuple(head.service for head in arrow.heads) == consumers_of(event)
    assert arrows["order.created"].producers == "the outbox"
    assert arrows["payment.authorized"].producers == "payment-worker, the outbox"
    assert arrows["order.updated"].consumers == "your own readers"
    assert arrows["order.aborted"].direction == -1


def test_the_path_of_an_order_that_goes_well_comes_first_from_left_to_right() -> None:
    drawn = saga_map(flow(well()))
    straight = [arrow for arrow in drawn.arrows if arrow.y < drawn.fails_y]
    assert [arrow.event for arrow in straight] == [
        "order.created", "payment.authorized", "inventory.reserved", "order.updated"
    ]  # fmt: skip
    assert [arrow.begin for arrow in straight] == sorted(arrow.begin for arrow in straight)


def test_nothing_of_the_map_overlaps_or_leaves_the_drawing() -> None:
    drawn = saga_map(flow(well()))
    assert [box.name for box in drawn.services] == list(COLUMNS)
    for left, right in zip(drawn.services, drawn.services[1:], strict=False):
        assert left.x + left.width < right.x
    rows = [arrow.y for arrow in drawn.arrows]
    assert rows == sorted(set(rows))
    for box in (*drawn.services, *drawn.stores, drawn.kafka):
        assert box.x >= 0
        assert box.x + box.width <= drawn.width
        assert box.y + box.height <= drawn.height
    assert drawn.kafka.y + drawn.kafka.height < min(store.y for store in drawn.stores)


def test_the_boxes_say_state_rates_and_lag() -> None:
    now = well(
        kafka=answered(kafka(1_250)),
        processes=answered(processes(instance("payment-worker"), instance("payment-worker-2", "no answer"))),
        history={end_of("order.created.v1"): series(0, 24, 48)},
    )
    drawn = saga_map(flow(now))
    worker = next(box for box in drawn.services if box.name == "payment-worker")
    assert (worker.kind, worker.state, worker.lines[1]) == ("warn", "1 of 2 ready", "lag 1,250")
    created = next(arrow for arrow in drawn.arrows if arrow.event == "order.created")
    assert (created.rate, created.is_flowing) == ("12/s", True)
    assert (created.heads[0].lag, created.heads[0].is_late) == (1_250, True)


def test_a_silent_kafka_has_no_rates_and_says_since_when() -> None:
    drawn = saga_map(flow(well(kafka=silent(kafka()), postgres=answered(postgres(outbox=Backlog(12, 29.0))))))
    assert (drawn.kafka.kind, drawn.kafka.state) == ("bad", "silent since 10:32:07")
    assert {arrow.rate for arrow in drawn.arrows} == {f"{UNKNOWN}/s"}
    assert drawn.outbox_is_late
    assert drawn.outbox.lines == ("12 events, oldest 29 s",)


def test_the_map_stands_when_nothing_is_known() -> None:
    now = replace(well(), kafka=type(well().kafka)(), postgres=type(well().kafka)(), processes=type(well().kafka)())
    drawn = saga_map(flow(replace(now, services=())))
    assert {box.state for box in drawn.services} == {"not watched"}
    assert len(drawn.arrows) == len(PAYLOADS)
    assert {service for arrow in drawn.arrows for service in arrow.consumers.split(", ")} >= set(CONSUMER_GROUPS)
