"""All settings of OrderStream. Only this module reads them from the environment.

A process builds one `Settings` at its start and passes it on. `load` reports all wrong variables at once.
"""

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orderstream import console_settings, provider_settings

SERVICES = ("api-gateway", "outbox-relay", "payment-worker", "inventory-worker", "order-service")

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Replicas = Annotated[int, Field(ge=0, le=16)]

DEAD_LETTER_RETENTIONS = 4
"""A dead letter is kept this many times as long as an event, because an operator must look at it."""

_POSTGRES_URL = "postgresql://app@127.0.0.1:5432/orders"
_PORT_MAX = 65_535
_BROKER = re.compile(r"(?:[^\s,:/@\[\]]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\]):([0-9]{1,5})")
_REDIS_SUPPORTED = "db, username, password, client_name"
_REDIS_REFUSED = (
    *("decode_responses", "encoding", "encoding_errors", "protocol", "legacy_responses", "socket_read_size"),
    *("retry_on_timeout", "retry_on_error", "health_check_interval", "max_connections", "socket_keepalive"),
    *("ssl_include_verify_flags", "ssl_exclude_verify_flags"),
)
"""Options of redis-py that change the results or the response time of the cache. Error messages name only these
options, because any other name may be a part of a password.
"""
_REDIS_TLS = (
    *("ssl_keyfile", "ssl_certfile", "ssl_password", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_ciphers"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version"),
)
_REDIS_VALUES = {
    "db": re.compile("[0-9]+"),
    "client_name": re.compile("[!-~]+"),
    "ssl_cert_reqs": re.compile("none|optional|required"),
    "ssl_check_hostname": re.compile("true|false|yes|no|1|0", re.IGNORECASE),
    "ssl_min_version": re.compile("77[0-2]"),
}
"""Valid values of options. redis-py would refuse another value only at its first use, or misinterpret it."""
_MAY_HOLD_PASSWORD = re.compile(r"[@=?%\s]|:(?!//|[0-9]{1,5}(?:[/,]|$)|$)")
"""Matches a value that has more than a scheme, hosts, ports and a path."""
_QUOTED = re.compile(r'".*"', re.DOTALL)
"""The parts of a connection string that libpq repeats in its error message."""


_KAFKA_OURS = (
    *("acks", "request.required.acks", "enable.idempotence", "transactional.id"),
    *("enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "isolation.level", "enable.partition.eof"),
    *("group.id", "group.instance.id", "allow.auto.create.topics"),
)
"""Options of librdkafka that could lose or skip records. They are refused."""


def _options(value: Any) -> Any:
    """Convert `a=1,b=2` or a JSON object to a dictionary. The validator refuses other values."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError("expected name=value pairs separated by commas")
    return {name.strip(): setting.strip() for name, _, setting in pairs}


def _kafka_options(options: dict[str, str]) -> dict[str, str]:
    """Return the options. Raises ValueError if one of them must have OrderStream's own value."""
    if given := [name for name in _KAFKA_OURS if name in options]:
        raise ValueError(f"{', '.join(given)} cannot be set: OrderStream needs its own value so that no order is lost")
    return options


def _postgres(value: str) -> str:
    """Check a connection string with libpq. The default is not checked, so that not every process loads psycopg."""
    if value == _POSTGRES_URL:
        return value
    from psycopg import ProgrammingError  # noqa: PLC0415 - see above
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        given = str(conninfo_to_dict(value).get("port", ""))
    except ProgrammingError as error:
        why = _QUOTED.sub("…", str(error)).strip()
        raise ValueError(f"expected postgresql://user@host:port/name, or name=value pairs; libpq says: {why}") from None
    if not all(_is_port(port.strip()) for port in given.split(",") if port):
        raise ValueError(f"its port is not a number from 1 to {_PORT_MAX}")
    return value


def _redis(value: str) -> str:
    """Refuse a URL that redis-py would refuse, or that the cache does not support.

    redis-py itself is not used, because only two of the services need its memory.
    """
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(
            "it must begin with redis://, rediss:// or unix://, and name one server, not a cluster or sentinel"
        )
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        raise ValueError(
            "its host and port cannot be read; name one server, and write special characters of a password as %XX"
        ) from None
    if url.scheme == "unix":
        if not url.path:
            raise ValueError("it must name the path of a socket")
    elif not re.fullmatch(r"/?[0-9]*/?", url.path):
        raise ValueError("its path must be the number of a database")
    elif "," in (url.hostname or ""):
        raise ValueError("it must name one server; Redis Cluster, Sentinel and several hosts are not supported")
    for name, (first, *_) in parse_qs(url.query).items():
        _redis_option(name, first, tls=url.scheme == "rediss")
    return value


def _redis_option(name: str, value: str, *, tls: bool) -> None:
    """Refuse an option in the query that could change the results or the response time of the cache."""
    if name in ("timeout", "socket_timeout", "socket_connect_timeout"):
        raise ValueError(f"{name} is not supported; CACHE_BUDGET_SECONDS is the limit for every response of Redis")
    if name not in (*_REDIS_SUPPORTED.split(", "), *_REDIS_TLS):
        named = name if name in _REDIS_REFUSED else "an option in it"
        raise ValueError(
            f"{named} is not supported; supported are {_REDIS_SUPPORTED} and, with rediss://, the usual ssl_ options"
        )
    if name in _REDIS_TLS and not tls:
        raise ValueError(f"{name} needs rediss://")
    if (allowed := _REDIS_VALUES.get(name)) is not None and not allowed.fullmatch(value):
        raise ValueError(f"{name} has an invalid value")


def _brokers(value: str) -> str:
    brokers = [broker.strip() for broker in value.split(",")]
    matches = [_BROKER.fullmatch(broker) for broker in brokers]
    if not all(match and _is_port(match[1]) for match in matches):
        raise ValueError("expected host:port pairs separated by commas, an IPv6 address in brackets")
    return ",".join(brokers)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 1 <= int(text) <= _PORT_MAX


def _names(value: Any) -> Any:
    """Convert `a,b` to a tuple of names."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


KafkaOptions = Annotated[dict[str, str], AfterValidator(_kafka_options)]


class Settings(BaseSettings):
    """One field for each environment variable. The variable has the field's name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    port: Port = Field(3000, description="Port of the HTTP API.")
    host: str = Field("127.0.0.1", description="Address that the HTTP API, the health pages and the webhook listen on.")
    metrics_port: int = Field(
        0, ge=0, le=65_535, description="Port of /livez, /readyz and /metrics of one process. 0 takes a free port."
    )
    postgres_url: Annotated[str, AfterValidator(_postgres)] = Field(
        _POSTGRES_URL, repr=False, description="PostgreSQL: any libpq connection string."
    )
    redis_url: Annotated[str, AfterValidator(_redis)] = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey: a URL that begins with redis://, rediss:// or unix://.",
    )
    kafka_brokers: Annotated[str, AfterValidator(_brokers)] = Field(
        "127.0.0.1:9092", description="Kafka bootstrap servers: host:port pairs separated by commas."
    )
    kafka_options: Annotated[KafkaOptions, NoDecode, BeforeValidator(_options)] = Field(
        default_factory=dict,
        repr=False,
        description="Further librdkafka options: name=value pairs separated by commas, or a JSON object of strings.",
    )
    kafka_topic_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        max_length=100,
        description="Prefix of all topics and consumer groups, so that deployments can share brokers.",
    )
    kafka_partitions: int = Field(4, ge=1, le=1_000, description="Partitions of each topic when it is created.")
    kafka_replication_factor: int = Field(1, ge=1, le=10, description="Replicas of each topic when it is created.")
    kafka_retention_hours: int = Field(168, ge=1, le=87_600, description="How long a topic keeps its events.")
    otel_exporter_otlp_endpoint: str | None = Field(
        None,
        repr=False,
        pattern="^https?://",
        description="Base URL of an OTLP/HTTP collector. Without it no spans are made.",
    )
    otel_service_name: str | None = Field(
        None, description="Service name on spans. The default is the name of the service."
    )
    trace_samples_per_second: float = Field(
        100,
        ge=0,
        le=100_000,
        allow_inf_nan=False,
        description="Traces that one gateway records per second, for each route.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="One JSON object a line, or text. auto is text on a terminal."
    )

    payment_success_rate: Rate = Field(1.0, description="Share of orders that the simulated provider authorizes.")
    payment_throw_rate: Rate = Field(
        0.0, description="Share of attempts to which the simulated provider gives no answer."
    )
    payment_max_attempts: int = Field(
        8, ge=1, le=100, description="Attempts before a payment without an answer is voided."
    )
    payment_retry_base_seconds: Seconds = Field(
        0.2, description="Wait before the second attempt. It doubles with each attempt."
    )
    payment_retry_max_seconds: Seconds = Field(30, description="Longest wait between two attempts.")
    payment_latency_ms: float = Field(
        0,
        ge=0,
        le=600_000,
        allow_inf_nan=False,
        description="Milliseconds that each call of the simulated provider takes.",
    )
    payment_timeout_seconds: float = Field(
        10, gt=0, le=60, allow_inf_nan=False, description="Time that the provider has to answer one call."
    )
    payment_inline_budget_seconds: float = Field(
        0.005,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Time that a batch waits for its calls. Slower calls go on after it.",
    )
    payment_pending_limit_minutes: float = Field(
        30,
        gt=0,
        le=43_200,
        allow_inf_nan=False,
        description="How long a payment may wait for the customer or the bank before it is voided.",
    )
    payment_webhook_port: Port | None = Field(
        None,
        description="Port of the webhook for decisions about pending payments. Without it there is no webhook.",
    )
    payment_key_lifetime_hours: int = Field(
        24,
        validate_default=True,
        ge=1,
        le=87_600,
        description="How long the provider remembers a key. An order older than half of it is not charged.",
    )
    payment_concurrency: int = Field(
        1_000, ge=1, le=10_000, description="Calls of one payment-worker at the same time. New orders use at most 60 %."
    )
    payment_provider: Annotated[str, AfterValidator(provider_settings.provider)] = Field(
        "simulated",
        description="`simulated` (in the process), `http`, `simulator`, or your adapter as `package.module:function`.",
    )
    payment_provider_url: Annotated[str, AfterValidator(provider_settings.url)] | None = Field(
        None, repr=False, validate_default=True, description="Base URL of the provider. `http` needs it."
    )
    payment_pool_size: int = Field(
        0, ge=0, le=10_000, description="Connections to the provider. 0: as many as `PAYMENT_CONCURRENCY`."
    )
    payment_api_key: Annotated[str, AfterValidator(provider_settings.api_key)] | None = Field(
        None, repr=False, description="API key, sent to the provider as a bearer token."
    )
    payment_api_key_file: Annotated[str, AfterValidator(provider_settings.api_key_file)] | None = Field(
        None, description="File with the API key in one line, in place of `PAYMENT_API_KEY`."
    )
    payment_tls_ca_file: Annotated[str, AfterValidator(provider_settings.ca_file)] | None = Field(
        None,
        description="Certificates of the trusted CAs, as PEM. The default is those of the system.",
    )
    payment_tls_cert_file: Annotated[str, AfterValidator(provider_settings.readable_file)] | None = Field(
        None, description="Certificate that this client shows to the provider, with its chain."
    )
    payment_tls_key_file: Annotated[str, AfterValidator(provider_settings.readable_file)] | None = Field(
        None, validate_default=True, description="Private key of `PAYMENT_TLS_CERT_FILE`, without a passphrase."
    )

    simulator_port: Port = Field(3200, description="Port of `orderstream payment-simulator`, on loopback.")
    simulator_ledger: str | None = Field(
        None, description="File of the ledger of the payment simulator. The default is in the state directory."
    )
    simulator_faults: str = Field(
        "{}", description="Faults of the payment simulator: a JSON object (docs/payment-simulator.md)."
    )

    drain_timeout_seconds: Seconds = Field(10, description="Time that a service has to finish its work after SIGTERM.")
    gateway_queue_limit: int = Field(
        2_000, ge=1, le=1_000_000, description="Orders that wait for a commit. Further orders: 503."
    )
    gateway_connection_limit: int = Field(
        10_000, ge=1, le=1_000_000, description="Connections to one gateway. Further connections: 503."
    )
    gateway_connections_per_peer: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Connections of one client address to one gateway. Further connections: 503.",
    )
    outbox_limit: int = Field(
        100_000, ge=1, le=1_000_000, description="Events that wait to be published. Further orders: 503."
    )
    gateway_request_timeout_seconds: Seconds = Field(
        10, description="Time that a client has to send a request, and to read a response."
    )
    cache_budget_seconds: Seconds = Field(
        0.05, description="Time that Redis has to answer. After that PostgreSQL is read."
    )
    relay_poll_seconds: Seconds = Field(0.5, description="How often the relay reads the outbox without a notification.")
    order_retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days for which a settled and compensated order is kept after its last change. 0: no limit.",
    )

    console_host: str = Field("127.0.0.1", description="Address that the console listens on.")
    console_port: Port = Field(3100, description="Port of the console.")
    console_hostnames: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="Further host names of the console, separated by commas."
    )
    console_token: str | None = Field(None, repr=False, description="The operator's token.")
    console_read_token: str | None = Field(None, repr=False, description="A token that may only read.")
    console_postgres_url: str | None = Field(
        None, repr=False, description="PostgreSQL for the console, with a role that may do less."
    )
    console_instances: Annotated[str, AfterValidator(console_settings.instances)] = Field(
        "", description="Processes that the console watches: `name=http://host:port` pairs separated by commas."
    )
    base_url: str = Field("http://127.0.0.1:3000", description="Where the console reaches the HTTP API.")
    trace_ui_url: str | None = Field(None, description="Address of a trace in another program, with `{traceId}`.")

    orderstream_state: str | None = Field(
        None, description="State directory of `orderstream up`. The default is .orderstream."
    )
    restarts_per_minute: int = Field(
        5, ge=0, le=1_000, description="Restarts of one child within a minute before `up` gives up."
    )
    replicas_api_gateway: Replicas = Field(1, description="Processes of api-gateway that `up` starts, on one port.")
    replicas_outbox_relay: Replicas = Field(1, description="Processes of outbox-relay that `up` starts.")
    replicas_payment_worker: Replicas = Field(1, description="Processes of payment-worker that `up` starts.")
    replicas_inventory_worker: Replicas = Field(1, description="Processes of inventory-worker that `up` starts.")
    replicas_order_service: Replicas = Field(1, description="Processes of order-service that `up` starts.")

    @field_validator("order_retention_days")
    @classmethod
    def _outlives_its_events(cls, days: int, info: ValidationInfo) -> int:
        """Check that orders are kept longer than their events and dead letters, which can be redriven."""
        hours = info.data.get("kafka_retention_hours")
        if days and hours is not None and days * 24 <= (1 + DEAD_LETTER_RETENTIONS) * hours:
            least = (1 + DEAD_LETTER_RETENTIONS) * hours // 24 + 1
            raise ValueError(
                f"must be 0, or at least {least}: longer than an event and then its dead letter are kept,"
                f" {1 + DEAD_LETTER_RETENTIONS} times KAFKA_RETENTION_HOURS ({hours})"
            )
        return days

    @field_validator("payment_key_lifetime_hours")
    @classmethod
    def _outlasts_a_pending_payment(cls, hours: int, info: ValidationInfo) -> int:
        """Check that a payment may be pending for its whole time. No older order is authorized (decision 0021)."""
        minutes = info.data.get("payment_pending_limit_minutes")
        if minutes is not None and minutes > hours * 60 / 2:
            raise ValueError(f"half of it must not be less than PAYMENT_PENDING_LIMIT_MINUTES ({minutes:g})")
        return hours

    @field_validator("payment_provider_url")
    @classmethod
    def _needed_by_http(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None and info.data.get("payment_provider") == "http":
            raise ValueError("must be set, because PAYMENT_PROVIDER is http")
        return url

    @field_validator("payment_api_key_file")
    @classmethod
    def _one_api_key(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("payment_api_key") is not None:
            raise ValueError("must not be set together with PAYMENT_API_KEY")
        return path

    @field_validator("payment_tls_ca_file", "payment_tls_cert_file")
    @classmethod
    def _needs_https(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and (info.data.get("payment_provider_url") or "").startswith("http:"):
            raise ValueError("needs a PAYMENT_PROVIDER_URL that begins with https://")
        return path

    @field_validator("payment_tls_key_file")
    @classmethod
    def _belongs_to_its_certificate(cls, key: str | None, info: ValidationInfo) -> str | None:
        if "payment_tls_cert_file" in info.data:
            provider_settings.check_pair(info.data["payment_tls_cert_file"], key)
        return key

    @property
    def dead_letter_retention_hours(self) -> int:
        """Hours for which a dead-letter topic keeps its records."""
        return DEAD_LETTER_RETENTIONS * self.kafka_retention_hours

    def read_payment_api_key(self) -> str | None:
        """Return the API key of the payment provider, from the setting or its file."""
        if self.payment_api_key_file is not None:
            return provider_settings.read_api_key(self.payment_api_key_file)
        return self.payment_api_key

    def replicas(self, service: str) -> int:
        """Return the number of processes of `service` (one of SERVICES) that `up` starts."""
        return int(getattr(self, "replicas_" + service.replace("-", "_")))


class SettingsError(Exception):
    """One or more variables are wrong. `problems` has one line for each, in the form `NAME: problem`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load() -> Settings:
    """Read the environment. Raises SettingsError with the names of all wrong variables."""
    try:
        return Settings.model_validate({})
    except ValidationError as error:
        problems = [_problem(str(wrong["loc"][0]), wrong["msg"], wrong["input"]) for wrong in error.errors()]
        raise SettingsError(problems) from None


def _problem(field: str, message: str, value: object) -> str:
    """Return one line. A value that may contain a password is not repeated."""
    hidden = field in ("kafka_options", "payment_api_key") or _MAY_HOLD_PASSWORD.search(str(value))
    shown = "not shown, as it may contain a password" if hidden else f"is {value!r}"
    if value is None:
        shown = "is not set"
    return f"{field.upper()}: {message.removeprefix('Value error, ')} ({shown})"
