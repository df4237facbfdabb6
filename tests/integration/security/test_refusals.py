"""Who is refused says why and ends with 1, whatever it runs: no retry can help, and silence would look like health."""

import json
import os
import subprocess
import sys

import pytest

from orderstream.postgres.connect import connect
from orderstream.settings import Settings
from tests.integration.security.conftest import PASSWORD, Certificates, kafka_options, postgres_url

_PARTS = ("kafka", "postgres")
_WRONG_PASSWORD, _UNTRUSTED = "wrong password", "untrusted certificate"
_SAYS = {
    ("kafka", _WRONG_PASSWORD): "SASL authentication error",
    ("kafka", _UNTRUSTED): "certificate verify failed",
    ("postgres", _WRONG_PASSWORD): "password authentication failed",
    ("postgres", _UNTRUSTED): "certificate verify failed",
}
_ROW = """
INSERT INTO outbox (topic, order_id, event_id, value)
VALUES ('order-service.dlq.v1', 'one', '0190163d-8694-739b-aea5-966c26f8ad91', 'one')
"""
_LIMIT_SECONDS = 60.0


@pytest.fixture
def given(
    secured_brokers: str, secured_database: str, certificates: Certificates, how: tuple[str, str]
) -> dict[str, str]:
    """Settings that are right but for one, and a row for the relay to publish."""
    certificate = {one: certificates.untrusted if how == (one, _UNTRUSTED) else certificates.trusted for one in _PARTS}
    password = {one: "wrong" if how == (one, _WRONG_PASSWORD) else PASSWORD for one in _PARTS}
    with connect(postgres_url(secured_database, certificates.trusted), "test") as connection:
        connection.execute(_ROW.encode())
    # How long a producer keeps at it before it hands control back; its default of 30 s only makes the test longer.
    options = {"delivery.timeout.ms": "2000", **kafka_options(certificate["kafka"], password=password["kafka"])}
    return {
        "KAFKA_BROKERS": secured_brokers,
        "KAFKA_OPTIONS": json.dumps(options),
        "POSTGRES_URL": postgres_url(secured_database, certificate["postgres"], password["postgres"]),
    }


def _ends(command: str, given: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    rest = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    argv = [sys.executable, "-m", "orderstream.cli", command]
    return subprocess.run(argv, env=rest | given, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)


@pytest.mark.parametrize("command", ["order-service", "outbox-relay"])
@pytest.mark.parametrize("how", _SAYS, ids=": ".join)
def test_a_service_stops(command: str, how: tuple[str, str], given: dict[str, str]) -> None:
    ended = _ends(command, given)
    assert ended.returncode == 1
    failure = json.loads(ended.stderr.splitlines()[-1])
    assert failure["event"] == "stopped_by_failure"
    assert _SAYS[how] in failure["exception"].splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "how"), [("topics", ("kafka", _WRONG_PASSWORD)), ("migrate", ("postgres", _UNTRUSTED))]
)
def test_a_command_says_why(command: str, how: tuple[str, str], given: dict[str, str]) -> None:
    ended = _ends(command, given)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: ")
    assert _SAYS[how] in ended.stderr
