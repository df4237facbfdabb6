"""If a server refuses the connection, a process exits with code 1 and says why, because a retry cannot help."""

import json
import os
import subprocess
import sys

import pytest

from orderstream.postgres.connect import connect
from orderstream.settings import Settings
from tests.integration.security.conftest import PASSWORD, Certificates, kafka_options, postgres_url

_SERVERS = ("kafka", "postgres")
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
    """Settings with one error, and a row for the relay to publish."""
    certificate = {
        server: certificates.untrusted if how == (server, _UNTRUSTED) else certificates.trusted for server in _SERVERS
    }
    password = {server: "wrong" if how == (server, _WRONG_PASSWORD) else PASSWORD for server in _SERVERS}
    with connect(postgres_url(secured_database, certificates.trusted), "test") as connection:
        connection.execute(_ROW.encode())
    # The time until a producer gives up. Its default of 30 s would only make the test longer.
    options = {"delivery.timeout.ms": "6000", **kafka_options(certificate["kafka"], password=password["kafka"])}
    return {
        "KAFKA_BROKERS": secured_brokers,
        "KAFKA_OPTIONS": json.dumps(options),
        "POSTGRES_URL": postgres_url(secured_database, certificate["postgres"], password["postgres"]),
    }


def _run(command: str, given: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    rest = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    argv = [sys.executable, "-m", "orderstream.cli", command]
    return subprocess.run(argv, env=rest | given, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)


@pytest.mark.parametrize("command", ["order-service", "outbox-relay"])
@pytest.mark.parametrize("how", _SAYS, ids=": ".join)
def test_a_service_that_a_server_refuses_stops_and_logs_why(
    command: str, how: tuple[str, str], given: dict[str, str]
) -> None:
    ended = _run(command, given)
    assert ended.returncode == 1
    failure = json.loads(ended.stderr.splitlines()[-1])
    assert failure["event"] == "stopped_by_failure"
    assert _SAYS[how] in failure["exception"].splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "how"), [("topics", ("kafka", _WRONG_PASSWORD)), ("migrate", ("postgres", _UNTRUSTED))]
)
def test_a_command_that_a_server_refuses_exits_with_1_and_prints_why(
    command: str, how: tuple[str, str], given: dict[str, str]
) -> None:
    ended = _run(command, given)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: ")
    assert _SAYS[how] in ended.stderr
