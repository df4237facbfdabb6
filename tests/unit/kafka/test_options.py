"""An option in KAFKA_OPTIONS that librdkafka refuses is reported as a wrong setting, by every kind of client."""

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaException

from orderstream.kafka import client
from orderstream.kafka.client import admin, check_options, consumer
from orderstream.kafka.publisher import Publisher
from orderstream.settings import Settings, SettingsError

CLIENTS: list[Callable[[Settings], object]] = [
    lambda settings: admin(settings, "test"),
    lambda settings: consumer(settings, "test"),
    lambda settings: Publisher(settings, "test"),
    check_options,
]


def given(**options: str) -> Settings:
    """Return settings with these options. Their names have an underscore for each dot."""
    return Settings.model_validate(
        {"kafka_options": {name.replace("_", "."): value for name, value in options.items()}}
    )


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (given(sasl_pasword="hidden"), 'No such configuration property: "sasl.pasword"'),
        (given(sasl_password="some", hidden="x"), "No such configuration property: …"),
        (given(security_protocol="hidden"), 'Invalid value … for configuration property "security.protocol"'),
        (given(socket_timeout_ms="soon"), 'Invalid value for configuration property "socket.timeout.ms"'),
        (given(security_protocol="SSL", ssl_ca_location="/nowhere"), "ssl.ca.location failed"),
        (Settings.model_validate({"kafka_options": {"error_cb": "print"}}), "expected error_cb"),
    ],
    ids=["unknown", "rest of a password", "value", "number", "file", "callback"],
)
def test_a_refused_option_is_a_wrong_setting(make: Callable[[Settings], object], settings: Settings, says: str) -> None:
    with pytest.raises(SettingsError, match=f"^KAFKA_OPTIONS: .*{says}") as caught:
        make(settings)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_that_only_a_producer_refuses_is_found_too() -> None:
    with pytest.raises(SettingsError, match=r"max\.in\.flight"):
        check_options(given(max_in_flight_requests_per_connection="10"))


def test_valid_options_pass() -> None:
    check_options(given())
    check_options(given(socket_timeout_ms="1000"))


def test_an_error_that_is_not_about_options_is_raised_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_common", lambda *_: {"no.such.option": "x"})
    with pytest.raises(KafkaException):
        admin(given(), "test")
