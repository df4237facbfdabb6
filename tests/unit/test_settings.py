"""The settings are read once from the environment, in one place, and all errors are reported together."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.connection import URL_QUERY_ARGUMENT_PARSERS

from orderstream import settings
from orderstream.settings import SERVICES, Settings, SettingsError, load

SOURCES = Path(settings.__file__).parent


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


def test_an_empty_environment_gives_the_defaults() -> None:
    given = load()
    assert given.port == 3000
    assert given.host == "127.0.0.1"
    assert given.payment_success_rate == 1.0
    assert given.payment_throw_rate == 0.0
    assert given.otel_exporter_otlp_endpoint is None
    assert given.kafka_options == {}
    assert given.kafka_partitions == 4
    assert [given.replicas(service) for service in SERVICES] == [1] * 5


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("PORT", "3001", "port", 3001),
        ("POSTGRES_URL", "postgresql://u@h/d", "postgres_url", "postgresql://u@h/d"),
        ("REDIS_URL", "redis://h:1/2", "redis_url", "redis://h:1/2"),
        ("KAFKA_BROKERS", "a:1, [::1]:2", "kafka_brokers", "a:1,[::1]:2"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://jaeger:4318", "otel_exporter_otlp_endpoint", "http://jaeger:4318"),
        ("OTEL_SERVICE_NAME", "shop", "otel_service_name", "shop"),
        ("PAYMENT_SUCCESS_RATE", "0.7", "payment_success_rate", 0.7),
        ("PAYMENT_THROW_RATE", "1", "payment_throw_rate", 1.0),
        ("KAFKA_TOPIC_PREFIX", "eu.shop_1-", "kafka_topic_prefix", "eu.shop_1-"),
        ("LOG_FORMAT", "console", "log_format", "console"),
        ("ORDERSTREAM_STATE", "/srv/state", "orderstream_state", "/srv/state"),
        ("REPLICAS_PAYMENT_WORKER", "2", "replicas_payment_worker", 2),
        ("PORT", "", "port", 3000),
    ],
)
def test_a_variable_is_named_as_its_field_in_capitals(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(load(), field) == expected


def test_every_service_has_a_setting_for_its_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, service in enumerate(SERVICES):
        monkeypatch.setenv("REPLICAS_" + service.upper().replace("-", "_"), str(number))
    given = load()
    assert [given.replicas(service) for service in SERVICES] == [0, 1, 2, 3, 4]


def test_kafka_options_can_be_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_OPTIONS", "security.protocol=SASL_SSL, sasl.password=a=b,")
    assert load().kafka_options == {"security.protocol": "SASL_SSL", "sasl.password": "a=b"}


def test_kafka_options_can_be_json_so_that_a_value_can_contain_a_comma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_OPTIONS", ' {"sasl.password": "a,b=c", "ssl.cipher.suites": "A,B"}')
    assert load().kafka_options == {"sasl.password": "a,b=c", "ssl.cipher.suites": "A,B"}


@pytest.mark.parametrize(
    "given",
    [
        "acks=1",
        "acks=1,enable.idempotence=false",
        '{"enable.auto.commit": "true"}',
        "auto.offset.reset=latest",
        "isolation.level=read_committed",
        "transactional.id=a",
        "group.id=a",
        "group.instance.id=a",
    ],
)
def test_a_kafka_option_that_a_promise_depends_on_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("KAFKA_OPTIONS", given)
    with pytest.raises(SettingsError, match=r"^KAFKA_OPTIONS: \S+.* cannot be set"):
        load()


@pytest.mark.parametrize("value", ["sasl.password", '{"sasl.password": "hidden"', '{"sasl.password": ["hidden"]}'])
def test_wrong_kafka_options_are_reported_without_their_password(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KAFKA_OPTIONS", value)
    with pytest.raises(SettingsError, match=r"^KAFKA_OPTIONS: ") as caught:
        load()
    assert "hidden" not in str(caught.value)


def test_all_wrong_variables_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "PORT": "70000",
        "PAYMENT_SUCCESS_RATE": "1.1",
        "PAYMENT_THROW_RATE": "nan",
        "DRAIN_TIMEOUT_SECONDS": "0",
        "KAFKA_PARTITIONS": "many",
        "KAFKA_OPTIONS": "debug",
        "KAFKA_TOPIC_PREFIX": "my/shop",
        "LOG_LEVEL": "loud",
        "REPLICAS_ORDER_SERVICE": "-1",
        "TRACE_SAMPLES_PER_SECOND": "inf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "jaeger:4318",
        "POSTGRES_URL": "db.example:5432/orders",
        "REDIS_URL": "http://cache.example:6379/0",
        "KAFKA_BROKERS": "kafka.example",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    problems = {problem.partition(":")[0]: problem for problem in caught.value.problems}
    assert problems.keys() == wrong.keys()
    assert all(repr(value) in problems[name] for name, value in wrong.items() if name != "KAFKA_OPTIONS")
    assert str(caught.value).splitlines() == caught.value.problems


WRONG_ADDRESSES = {
    "POSTGRES_URL": [
        "postgresql+psycopg://app:hidden@db/orders",
        "postgresql://app:hid%den@db/orders",
        "postgresql://app:hidden@[::1/orders",
        "postgresql://app:hidden@db:postgres/orders",
        "postgresql://app:hidden@db:65536/orders",
        "postgresql://app:hidden x@db/orders",
        "postgresql://db/orders?pasword=hidden",
        "postgresql://db/orders?hidden",
        "postgresql://app:hidden",
        "host=db pasword=hidden",
        "host=db password='hidden",
        "host=db password hidden",
        "http://db",
    ],
    "REDIS_URL": [
        "127.0.0.1:6379",
        "http://:hidden@cache:6379/0",
        "redis:/:hidden@cache",
        "redis://:hidden@cache:redis/0",
        "redis://:hidden@cache:65536/0",
        "redis://:hid/den@cache:6379/0",
        "redis://:1/hidden@cache:6379/0",
        "redis://:hidden@[::1/0",
        "redis://:hidden",
        "redis://:hidden@cache/orders",
        "redis://:hidden@cache?db=first",
        "rediss://cache?password=hidden&socket_timeout=1",
        "redis://cache?hidden=1",
        "redis://:hidden@a:1,b:2/0",
        "redis://:hidden@a,b:6379/0",
        "redis+cluster://:hidden@cache:6379",
        "redis+sentinel://:hidden@cache:26379/main",
        "unix://:hidden@",
    ],
    "KAFKA_BROKERS": [
        "kafka",
        "kafka:",
        "kafka:0",
        "kafka:65536",
        "kafka:http",
        "a:1;b:2",
        "a:1,,b:2",
        "::1:9092",
        "[::1]",
        "[kafka]:9092",
        "app:hidden@kafka:9092",
    ],
    "OTEL_EXPORTER_OTLP_ENDPOINT": ["ftp://app:hidden@jaeger:4318"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_ADDRESSES.items() for value in values]
)
def test_a_wrong_address_is_reported_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name}: ") as caught:
        load()
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert "hid" not in str(caught.value)


ADDRESSES = {
    "POSTGRES_URL": [
        "postgres://db",
        "postgresql://app:a%2Cb%40@[::1]:5432/orders?sslmode=verify-full&sslrootcert=/etc/ssl/db.pem",
        "postgresql://a:5432,b:5433/orders?target_session_attrs=read-write",
        "postgresql:///orders?host=/run/postgresql",
        "host=db port=5432 dbname=orders user=app password='a b'",
        "service=orders",
    ],
    "REDIS_URL": [
        "redis://",
        "redis://cache",
        "redis://app:a%2Cb%40@[::1]:6379/1",
        "rediss://:a@cache:6380/0?ssl_ca_certs=/etc/ssl/cache.pem&ssl_check_hostname=False&ssl_cert_reqs=none&db=2",
        "redis://cache?client_name=orders&username=app&password=a%2Cb",
        "unix:///run/valkey.sock?db=1",
        "unix://app:a@/run/valkey.sock",
    ],
    "KAFKA_BROKERS": ["kafka:9092", "kafka-1.example:9092,kafka_2:9093", "[2001:db8::1]:9092,[fe80::1%eth0]:1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ADDRESSES.items() for value in values])
def test_every_form_of_address_is_accepted(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(load(), name.lower()) == value


def test_redis_py_can_read_every_accepted_option() -> None:
    for value in ADDRESSES["REDIS_URL"]:
        redis.Redis.from_url(value).close()


REDIS_REFUSED = {
    "timeout=1": "timeout is not supported; CACHE_BUDGET_SECONDS",
    "socket_timeout=0.5": "socket_timeout is not supported; CACHE_BUDGET_SECONDS",
    "socket_connect_timeout=5": "socket_connect_timeout is not supported; CACHE_BUDGET_SECONDS",
    "decode_responses=True": "decode_responses is not supported; supported are db, username, password, client_name",
    "encoding=latin-1": "encoding is not supported",
    "protocol=3": "protocol is not supported",
    "retry_on_timeout=True": "retry_on_timeout is not supported",
    "health_check_interval=1": "health_check_interval is not supported",
    "max_connections=1": "max_connections is not supported",
    "unknown=1": "an option in it is not supported",
    "ssl_cert_reqs=none": "ssl_cert_reqs needs rediss://",
    "db=-1": "db has an invalid value",
    "client_name=two%20words": "client_name has an invalid value",
}


@pytest.mark.parametrize("option", REDIS_REFUSED)
def test_an_option_that_changes_the_answers_of_the_cache_is_refused(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://cache?{option}")
    with pytest.raises(SettingsError, match=f"^REDIS_URL: {REDIS_REFUSED[option]}"):
        load()


@pytest.mark.parametrize(
    "option", ["ssl_cert_reqs=maybe", "ssl_check_hostname=2", "ssl_min_version=1", "ssl_validate_ocsp=1"]
)
def test_a_wrong_tls_option_is_refused(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv("REDIS_URL", f"rediss://cache?{option}")
    with pytest.raises(SettingsError, match=r"^REDIS_URL: "):
        load()


@pytest.mark.parametrize("option", URL_QUERY_ARGUMENT_PARSERS)
def test_every_other_option_of_redis_py_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """A new version of redis-py may have new options. Check each of them before it is accepted."""
    monkeypatch.setenv("REDIS_URL", f"rediss://cache?{option}=x")
    with pytest.raises(SettingsError, match=f"^REDIS_URL: {option} "):
        load()


def test_without_an_address_of_postgresql_the_driver_is_not_loaded() -> None:
    script = "import sys; from orderstream.settings import load; load(); sys.exit('psycopg' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env={}, timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("days", "hours"), [("0", "168"), ("36", "168"), ("36500", "168"), ("0", "87600"), ("1", "4"), ("2", "5")]
)
def test_order_retention_may_be_0_or_longer_than_the_retention_of_dead_letters(
    monkeypatch: pytest.MonkeyPatch, days: str, hours: str
) -> None:
    monkeypatch.setenv("KAFKA_RETENTION_HOURS", hours)
    monkeypatch.setenv("ORDER_RETENTION_DAYS", days)
    assert load().order_retention_days == int(days)


@pytest.mark.parametrize(
    ("days", "hours", "least"), [("1", "168", 36), ("28", "168", 36), ("35", "168", 36), ("1", "5", 2)]
)
def test_a_shorter_retention_of_orders_is_refused(
    monkeypatch: pytest.MonkeyPatch, days: str, hours: str, least: int
) -> None:
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("KAFKA_RETENTION_HOURS", hours)
    monkeypatch.setenv("ORDER_RETENTION_DAYS", days)
    with pytest.raises(SettingsError) as caught:
        load()
    port, retention = caught.value.problems
    assert port.startswith("PORT: ")
    assert retention.startswith(f"ORDER_RETENTION_DAYS: must be 0, or at least {least}: ")


def test_a_wrong_retention_of_topics_is_reported_only_for_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_RETENTION_HOURS", "0")
    monkeypatch.setenv("ORDER_RETENTION_DAYS", "1")
    with pytest.raises(SettingsError, match=r"\AKAFKA_RETENTION_HOURS: .*\Z"):
        load()


def test_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert not field.is_required(), name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def _reads_environment(source: Path) -> bool:
    attributes = {
        node.attr
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    return not attributes.isdisjoint({"getenv", "getenvb"})


def test_no_other_module_reads_a_setting_from_the_environment() -> None:
    assert [str(path) for path in SOURCES.rglob("*.py") if _reads_environment(path)] == []


def test_a_traceback_shows_no_password() -> None:
    settings = Settings.model_validate(
        {
            "postgres_url": "postgresql://app:s3cret@db/orders",
            "redis_url": "redis://:s3cret@cache:6379/0",
            "kafka_options": {"sasl.password": "s3cret"},
        }
    )
    assert "s3cret" not in f"{settings!r} {settings}"
