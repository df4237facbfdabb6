"""All settings of OrderStream. Only this module reads them from the environment.

A process builds one `Settings` at its start and passes it on. `load` reports all wrong variables at once.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orderstream import console_settings, provider_settings, server_settings

SERVICES = ("api-gateway", "outbox-relay", "payment-worker", "inventory-worker", "order-service")

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Replicas = Annotated[int, Field(ge=0, le=16)]

DEAD_LETTER_RETENTIONS = 4
"""A dead letter is kept this many times as long as an event, because an operator must look at it."""

_MAY_HOLD_PASSWORD = re.compile(r"[@=?%\s]|:(?!//|[0-9]{1,5}(?:[/,]|$)|$)")
"""Matches a value that has more than a scheme, hosts, ports and a path."""
_SECRET = ("kafka_options", "payment_api_key", "console_token", "console_read_token")
KafkaOptions = Annotated[dict[str, str], AfterValidator(server_settings.kafka_options)]


class Settings(BaseSettings):
    """One field for each environment variable. The variable has the field's name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    port: Port = Field(3000, description="Port of the HTTP API.")
    host: str = Field("127.0.0.1", description="Address that the HTTP API, the health pages and the webhook listen on.")
    metrics_port: int = Field(
        0, ge=0, le=65_535, description="Port of /livez, /readyz and /metrics of one process. 0 takes a free port."
    )
    gateway_metrics: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether the port of the API serves /metrics too. auto: only if `METRICS_PORT` is 0."
    )
    postgres_url: Annotated[str, AfterValidator(server_settings.postgres)] = Field(
        server_settings.POSTGRES_URL, repr=False, description="PostgreSQL: any libpq connection string."
    )
    redis_url: Annotated[str, AfterValidator(server_settings.redis)] = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey: a URL that begins with redis://, rediss:// or unix://.",
    )
    kafka_brokers: Annotated[str, AfterValidator(server_settings.brokers)] = Field(
        "127.0.0.1:9092", description="Kafka bootstrap servers: host:port pairs separated by commas."
    )
    kafka_options: Annotated[KafkaOptions, NoDecode, BeforeValidator(server_settings.parse_options)] = Field(
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
        description="Base URL of an OTLP/HTTP collector. Without it, `up` sends spans to the console, and other"
        " services make none.",
    )
    otel_service_name: str | None = Field(
        None, description="Service name on spans. The default is the name of the service."
    )
    trace_samples_per_second: float = Field(
        100,
        ge=0,
        le=100_000,
        allow_inf_nan=False,
        description="Traces that one gateway records per second, for each route. `up` sets 10 for the console.",
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

    console_host: str = Field("127.0.0.1", description="Address that the console listens on.")
    console_port: Port = Field(
        3100, description="Port of the console. If it is not set and 3100 is taken, `up` picks another port."
    )
    console_hostnames: Annotated[tuple[str, ...], NoDecode, BeforeValidator(console_settings.hostnames)] = Field(
        (),
        description="Further host names under which browsers reach the console, separated by commas, without ports.",
    )
    console_token: Annotated[str, AfterValidator(console_settings.token)] | None = Field(
        None,
        repr=False,
        description="The operator's token of the console. The default is in `operator-token` of the state directory.",
    )
    console_token_file: Annotated[str, AfterValidator(console_settings.token_file)] | None = Field(
        None, description="File with the operator's token in one line, in place of `CONSOLE_TOKEN`."
    )
    console_read_token: Annotated[str, AfterValidator(console_settings.token)] | None = Field(
        None, repr=False, description="Token with which the console can be read, and with which nothing can be changed."
    )
    console_postgres_url: Annotated[str, AfterValidator(server_settings.postgres)] | None = Field(
        None,
        repr=False,
        description="PostgreSQL for the console, as a role with fewer rights. The default is `POSTGRES_URL`.",
    )
    console_instances: Annotated[str, AfterValidator(console_settings.instances)] = Field(
        "", description="Processes that the console watches: `name=http://host:port` pairs separated by commas."
    )
    trace_ui_url: Annotated[str, AfterValidator(console_settings.web_url)] | None = Field(
        None, description="Address of a trace in the program that shows your traces, with `{traceId}`."
    )
    play_rate: float = Field(
        0,
        ge=0,
        le=50,
        allow_inf_nan=False,
        description="Orders per second that the play desk of a local stack places from its start. `make demo` sets 3.",
    )
    base_url: str = Field(
        "",
        validate_default=True,
        description="Address at which the console reaches the HTTP API. The default is http://127.0.0.1:`PORT`.",
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
    replicas_console: int = Field(1, ge=0, le=1, description="Processes of the console that `up` starts: 0 or 1.")

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

    @field_validator("console_token_file")
    @classmethod
    def _one_console_token(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("console_token") is not None:
            raise ValueError("must not be set together with CONSOLE_TOKEN")
        return path

    @field_validator("console_read_token")
    @classmethod
    def _differs_from_the_operators(cls, token: str | None, info: ValidationInfo) -> str | None:
        given, path = info.data.get("console_token"), info.data.get("console_token_file")
        if token is not None and token in (given, path and console_settings.read_token(Path(path))):
            raise ValueError("must differ from the operator's token")
        return token

    @field_validator("base_url")
    @classmethod
    def _on_this_machine(cls, url: str, info: ValidationInfo) -> str:
        return console_settings.web_url(url) if url else f"http://127.0.0.1:{info.data.get('port', 3000)}"

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

    @property
    def gateway_serves_metrics(self) -> bool:
        """Whether the port of the HTTP API serves /metrics, beside the pages of each process."""
        return self.gateway_metrics == "on" or (self.gateway_metrics == "auto" and not self.metrics_port)

    def read_payment_api_key(self) -> str | None:
        """Return the API key of the payment provider, from the setting or its file."""
        if self.payment_api_key_file is not None:
            return provider_settings.read_api_key(self.payment_api_key_file)
        return self.payment_api_key

    def read_console_token(self) -> str | None:
        """Return the operator's token, from the setting or its file. None: it is in the state directory."""
        if self.console_token_file is not None:
            return console_settings.read_token(Path(self.console_token_file))
        return self.console_token

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
    hidden = field in _SECRET or _MAY_HOLD_PASSWORD.search(str(value))
    shown = "not shown, as it may contain a password" if hidden else f"is {value!r}"
    if value is None:
        shown = "is not set"
    return f"{field.upper()}: {message.removeprefix('Value error, ')} ({shown})"
