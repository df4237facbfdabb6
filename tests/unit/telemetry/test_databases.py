"""Descriptions of database calls: the names of OpenTelemetry, and neither passwords nor parameters."""

import pytest

from orderstream.telemetry import databases
from orderstream.telemetry.tracing import Value


def test_a_transaction_is_described_by_the_stable_names() -> None:
    operation = databases.postgres("postgresql://shop:secret@db.example:6432/orders", "UPDATE orders")
    assert (operation.name, operation.kind) == ("UPDATE orders", "CLIENT")
    assert operation.attributes == {
        "db.system.name": "postgresql",
        "db.operation.name": "TRANSACTION",
        "db.query.summary": "UPDATE orders",
        "db.namespace": "orders",
        "server.address": "db.example",
        "server.port": 6432,
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("host=/run/postgresql user=shop", {"db.namespace": "shop", "server.address": "/run/postgresql"}),
        ("postgresql://a,b/orders", {"db.namespace": "orders"}),
        ("service=orders", {}),
        ("postgresql://[::1]/x", {"db.namespace": "x", "server.address": "::1", "server.port": 5432}),
    ],
)
def test_what_the_settings_do_not_say_is_left_out(url: str, expected: dict[str, Value]) -> None:
    found = dict(databases.postgres(url, "SELECT orders", "SELECT").attributes)
    for name in ("db.system.name", "db.operation.name", "db.query.summary"):
        del found[name]
    if "server.port" not in expected:
        found.pop("server.port", None)
    assert found == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "redis://:secret@cache.example/2",
            {"db.namespace": "2", "server.address": "cache.example", "server.port": 6379},
        ),
        ("rediss://user:secret@[::1]:7000", {"db.namespace": "0", "server.address": "::1", "server.port": 7000}),
        ("unix:///run/redis%20a.sock", {"db.namespace": "0", "server.address": "/run/redis a.sock"}),
    ],
)
def test_a_script_of_the_cache_is_described(url: str, expected: dict[str, Value]) -> None:
    operation = databases.redis(url, "look_up")
    assert operation.name == "EVAL look_up"
    assert operation.attributes == {
        "db.system.name": "redis",
        "db.operation.name": "EVAL",
        "db.query.summary": "EVAL look_up",
        "db.stored_procedure.name": "look_up",
        **expected,
    }


@pytest.mark.parametrize("url", ["postgresql://shop:pass%20word@h/d?sslpassword=other", "password=hidden host=h"])
def test_no_password_is_in_a_description(url: str) -> None:
    text = str(databases.postgres(url, "SELECT orders"))
    assert not any(secret in text for secret in ("pass word", "pass%20word", "other", "hidden"))
