"""The pages and operations of topics read real topics within limits, show any content safely, and join no group."""

import html
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from orderstream.console.flow import records
from orderstream.console.flow import topics as topics_module
from orderstream.console.flow.records import HEADERS_MAX, KEY_MAX_BYTES, LIMIT_MAX, VALUE_MAX_BYTES
from orderstream.domain.events import TOPICS
from orderstream.kafka.client import consumer
from orderstream.kafka.partitions import partition_of
from orderstream.settings import Settings
from tests.integration.console.flow.conftest import PREFIX
from tests.support.consoles import RunningConsole
from tests.support.topics import publish
from tests.support.waiting import wait_until

TOPIC = f"{PREFIX}order.updated.v1"
WIDE = f"{PREFIX}wide"
PARTITIONS = 120
"""More than a page shows. A thousand would stop the small broker of the tests for half a minute."""
ORDER = "01a218e4-846f-7867-89a1-25442701ebcc"
HOSTILE = '</code><script>alert("1")</script><img src=x onerror=alert(1)>{{ 7*7 }}'


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Kafka more time than operators have: a busy machine is no failure."""
    monkeypatch.setattr(records, "READ_SECONDS", 15.0)
    monkeypatch.setattr(topics_module, "ANSWER_SECONDS", 15.0)


@pytest.fixture(scope="module")
def wide(watched: Settings) -> Iterator[str]:
    """A topic with many partitions."""
    admin = AdminClient({"bootstrap.servers": watched.kafka_brokers, "log_level": 0})
    admin.create_topics([NewTopic(WIDE, PARTITIONS, 1)])[WIDE].result(60)
    yield WIDE
    admin.delete_topics([WIDE])[WIDE].result(60)


def read(console: RunningConsole, topic: str = TOPIC, **query: Any) -> Any:
    return console.get(f"/api/topics/{topic}/records", **query)


def test_the_newest_records_of_all_partitions_come_first(console: RunningConsole, watched: Settings) -> None:
    topic = f"{PREFIX}payment.voided.v1"
    assert read(console, topic) == {
        "topic": topic, "records": [], "read": 0, "stopped": None, "partitions": {"0": [0, 0], "1": [0, 0]}
    }  # fmt: skip
    keys = [str(uuid4()).encode() for _ in range(30)]
    publish(watched.kafka_brokers, [(topic, key, b'{"n":1}') for key in keys])
    found = read(console, topic, limit=10)
    assert len(found["records"]) == 10
    times = [record["at"] for record in found["records"]]
    assert times == sorted(times, reverse=True)
    assert {record["orderId"] for record in found["records"]} <= {key.decode() for key in keys}
    assert found["records"][0]["value"]["text"] == '{\n  "n": 1\n}'


def test_records_are_read_from_an_offset_on_and_by_key(console: RunningConsole, watched: Settings) -> None:
    topic = f"{PREFIX}payment.failed.v1"
    key = str(uuid4())
    number = partition_of(key.encode(), 2)
    publish(watched.kafka_brokers, [(topic, key.encode(), str(n).encode()) for n in range(30)])
    publish(watched.kafka_brokers, [(topic, str(uuid4()).encode(), b"other") for _ in range(30)])

    from_five = read(console, topic, partition=number, offset=5, limit=3)["records"]
    assert [record["offset"] for record in from_five] == [5, 6, 7]
    of_key = read(console, topic, key=key, limit=4)
    assert [record["value"]["text"] for record in of_key["records"]] == ["29", "28", "27", "26"]
    assert {record["partition"] for record in of_key["records"]} == {number}
    assert read(console, topic, key="another")["records"] == []
    assert read(console, topic, partition=number, offset=10_000)["records"] == []
    page = console.page(f"/topics/{topic}?partition={number}&offset=5&limit=3")
    assert f"partition={number}&amp;offset=2&amp;limit=3" in page
    assert f"partition={number}&amp;offset=8&amp;limit=3" in page


@pytest.mark.parametrize(
    "query", ["limit=0", f"limit={LIMIT_MAX + 1}", "partition=-1", "partition=2", "offset=-1", "offset=x", "more=1",
              "key=" + "k" * (KEY_MAX_BYTES + 1)],
)  # fmt: skip
def test_a_wrong_look_is_refused(console: RunningConsole, query: str) -> None:
    console.get(f"/api/topics/{TOPIC}/records?{query}", 400)


def test_a_topic_that_does_not_exist_is_not_found_and_not_created(console: RunningConsole) -> None:
    for path in ("/api/topics/none", "/api/topics/none/records"):
        console.get(path, 404)
    console.page("/topics/none", 404)
    assert "none" not in {topic["name"] for topic in console.get("/api/topics?all=true")["topics"]}


def test_a_look_reads_a_limited_number_of_records_and_says_so(
    console: RunningConsole, watched: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{PREFIX}inventory.failed.v1"
    key = str(uuid4())
    publish(watched.kafka_brokers, [(topic, key.encode(), b"first")])
    publish(watched.kafka_brokers, [(topic, key.encode() if n < 20 else b"%d" % n, b"x" * 1_000) for n in range(200)])
    monkeypatch.setattr(records, "SCANNED_MAX", 20)
    found = read(console, topic, key=key)
    assert found["read"] <= 20
    assert found["stopped"] == "Only 20 records of the partition were searched."
    monkeypatch.setattr(records, "READ_MAX_BYTES", 10_000)
    monkeypatch.setattr(records, "CONSUMED_AT_ONCE", 1)
    cut = read(console, topic, limit=100)
    assert "MiB of records" in cut["stopped"]
    assert cut["read"] < 100
    monkeypatch.setattr(records, "READ_SECONDS", 0.0)
    monkeypatch.setattr(records, "READ_MAX_BYTES", 1 << 20)
    console.get(f"/api/topics/{topic}/records", 503)


def test_only_two_looks_run_at_once(console: RunningConsole) -> None:
    held = [records._at_once.acquire(blocking=False) for _ in range(records.AT_ONCE_MAX)]
    try:
        assert all(held)
        assert console.get(f"/api/topics/{TOPIC}/records", 503)["detail"] == "Others read records now."
        assert "Others read records now." in console.page(f"/topics/{TOPIC}"), "the page shows the rest"
    finally:
        for _ in held:
            records._at_once.release()


def test_hostile_records_are_cut_escaped_and_shown(console: RunningConsole, watched: Settings) -> None:
    producer = Producer({"bootstrap.servers": watched.kafka_brokers})
    many: list[tuple[str, str | bytes | None]] = [(HOSTILE, HOSTILE.encode()), ("none", None)]
    many += [(f"h{n}", b"\xff\x00\x1b[31m") for n in range(HEADERS_MAX + 20)]
    producer.produce(TOPIC, HOSTILE.encode(), HOSTILE.encode(), partition=1, headers=many)
    producer.produce(TOPIC, b"\xff\xfe\x00" * VALUE_MAX_BYTES, b"\xff" * 1_000, partition=1)
    producer.produce(TOPIC, ("\u202e" + "[" * 5_000).encode(), None, partition=1)
    producer.produce(TOPIC, None, ORDER.encode(), partition=1)
    assert producer.flush(20) == 0
    newest, deep, binary, hostile = read(console, partition=1, limit=4)["records"]
    assert (newest["value"], newest["orderId"]) == (None, ORDER)
    assert (deep["key"], deep["value"]["isJson"]) == (None, False)
    assert "\u202e" not in deep["value"]["text"]
    assert binary["value"]["cutBytes"] == 2 * VALUE_MAX_BYTES
    assert binary["key"] == {"text": "\\xff" * KEY_MAX_BYTES, "bytes": 1_000, "cutBytes": 800, "isJson": False}
    assert hostile["value"]["text"] == HOSTILE
    assert hostile["headersLeftOut"] == 22
    page = console.page(f"/topics/{TOPIC}?partition=1&limit=4")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count(html.escape(HOSTILE).replace("&quot;", "&#34;")) == 4, "key, value, header and its name"
    assert f'href="/orders/{ORDER}"' in page
    assert f"{2 * VALUE_MAX_BYTES:,} more bytes" in page
    assert "22 more headers are not shown" in page


def test_a_topic_with_many_partitions_is_shown_in_pieces(console: RunningConsole, watched: Settings, wide: str) -> None:
    answer = wait_until(lambda: _leaders(console, wide), 60, "all partitions have a leader")
    publish(watched.kafka_brokers, [(wide, b"%d" % n, b"v") for n in range(50)])
    assert len(answer["partitions"]) == PARTITIONS
    found = read(console, wide)
    assert found["stopped"] == "Only the 16 fullest partitions were read."
    assert found["records"]
    page = console.page(f"/topics/{wide}?firstPartition=100")
    assert "Partitions 100 to 119 of 120." in page
    assert len(re.findall(r'data-label="Leader"', page)) == 20
    listed = console.get("/api/topics?all=true")["topics"]
    row = next(topic for topic in listed if topic["name"] == wide)
    assert (row["isOurs"], row["partitions"]) == (False, PARTITIONS)
    assert wide not in {topic["name"] for topic in console.get("/api/topics")["topics"]}


def _leaders(console: RunningConsole, topic: str) -> Any:
    answer = console.client.get(f"/api/topics/{topic}")
    return answer.json() if answer.status_code == 200 else None


def test_topics_have_their_settings_and_readers(console: RunningConsole) -> None:
    topics = {topic["name"]: topic for topic in console.get("/api/topics")["topics"]}
    assert len(topics) == len(TOPICS) + 3
    created = topics[f"{PREFIX}order.created.v1"]
    settings = {setting["name"]: setting["value"] for setting in created["settings"]}
    assert settings["retention.ms"] == str(168 * 3_600_000)
    assert settings["message.timestamp.type"] == "LogAppendTime"
    assert created["consumers"] == ["payment-worker"]
    page = console.page("/topics")
    assert f'href="/topics/{PREFIX}order.created.v1"' in page
    assert "7 d" in page


def test_groups_have_their_members_and_the_console_is_none_of_them(console: RunningConsole, watched: Settings) -> None:
    member = consumer(watched, "payment-worker")
    member.subscribe([f"{PREFIX}order.created.v1"])
    name = f"{PREFIX}payment-worker"

    def joined() -> Any:
        member.poll(0.1)
        group = next(group for group in console.get("/api/groups")["groups"] if group["name"] == name)
        return group if group["members"] and group["members"][0]["partitions"] else None

    try:
        group = wait_until(joined, 60, "the member is shown")
    finally:
        member.close()
    assert (group["isOurs"], group["state"]) == (True, "Stable")
    assert group["members"][0]["clientId"] == "payment-worker"
    assert group["members"][0]["partitions"] == {f"{PREFIX}order.created.v1": [0, 1]}
    read(console, partition=1)
    every = {group["name"] for group in console.get("/api/groups?all=true")["groups"]}
    assert not {name for name in every if name.endswith("console")}, "a look joins no group and commits nothing"
    assert 'id="payment-worker"' not in console.page("/topics"), "an id has the prefix of the deployment"
