"""Every setting of OrderStream, read from the environment once; no other module reads it.

A process builds one `Settings` at its start and passes it down. `load` reports every wrong variable at once.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SERVICES = ("api-gateway", "outbox-relay", "payment-worker", "inventory-worker", "order-service")

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Replicas = Annotated[int, Field(ge=0, le=16)]


def _options(value: Any) -> Any:
    """Turn `a=1,b=2`, or a JSON object, into a dictionary; anything else is left for the validator to refuse."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError("expected name=value pairs separated by commas")
    return {name.strip(): setting.strip() for name, _, setting in pairs}


class Settings(BaseSettings):
    """One field per environment variable, whose name is the field's in capitals. Durations are in seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    port: Port = Field(3000, description="Port of the HTTP API.")
    host: str = Field("127.0.0.1", description="Address that the HTTP API and the health pages listen on.")
    metrics_port: int = Field(
        0, ge=0, le=65_535, description="Port of /livez, /readyz and /metrics of a worker; 0 takes a free one."
    )
    postgres_url: str = Field(
        "postgresql://app@127.0.0.1:5432/orders", description="PostgreSQL; any libpq connection string."
    )
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis or Valkey.")
    kafka_brokers: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, separated by commas.")
    kafka_options: Annotated[dict[str, str], NoDecode, BeforeValidator(_options)] = Field(
        default_factory=dict,
        description="Further librdkafka options: name=value pairs separated by commas, or a JSON object of strings.",
    )
    kafka_partitions: int = Field(4, ge=1, le=1_000, description="Partitions of each topic when it is created.")
    kafka_replication_factor: int = Field(1, ge=1, le=10, description="Replicas of each topic when it is created.")
    kafka_retention_hours: int = Field(168, ge=1, le=87_600, description="How long a topic keeps its events.")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, pattern="^https?://", description="Base URL of an OTLP/HTTP collector; without it no span is made."
    )
    otel_service_name: str | None = Field(None, description="Service name on spans; the service's own by default.")
    trace_samples_per_second: float = Field(
        100,
        ge=0,
        le=100_000,
        allow_inf_nan=False,
        description="Traces recorded per second by one gateway, for each route.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="One JSON object a line, or text; auto is text on a terminal."
    )

    payment_success_rate: Rate = Field(1.0, description="Share of orders that the simulated provider authorizes.")
    payment_throw_rate: Rate = Field(
        0.0, description="Share of attempts to which the simulated provider gives no answer."
    )
    payment_max_attempts: int = Field(8, ge=1, le=100, description="Attempts before an unanswered payment is given up.")
    payment_retry_base_seconds: Seconds = Field(0.2, description="Wait before the second attempt; it doubles.")
    payment_retry_max_seconds: Seconds = Field(30, description="Longest wait between two attempts.")
    payment_batch_budget_seconds: float = Field(
        2, gt=0, le=20, allow_inf_nan=False, description="Time the provider has to answer a whole batch, in seconds."
    )
    payment_key_lifetime_hours: int = Field(
        24, ge=1, le=87_600, description="How long the provider remembers a key; beyond half of it no order is charged."
    )
    payment_concurrency: int = Field(16, ge=1, le=256, description="Calls to the provider under way at once.")

    drain_timeout_seconds: Seconds = Field(10, description="Time a service has to finish its work on SIGTERM.")
    gateway_queue_limit: int = Field(2_000, ge=1, le=1_000_000, description="Orders waiting for a commit; beyond: 503.")
    gateway_connection_limit: int = Field(
        10_000, ge=1, le=1_000_000, description="Connections to one gateway at once; beyond: 503."
    )
    outbox_limit: int = Field(
        100_000, ge=1, le=1_000_000, description="Events waiting to be published; beyond: no new orders, 503."
    )
    gateway_request_timeout_seconds: Seconds = Field(
        10, description="Time a client has to send a whole request, and to take an answer."
    )
    cache_budget_seconds: Seconds = Field(0.05, description="Time that Redis has to answer before Postgres is asked.")
    relay_poll_seconds: Seconds = Field(0.5, description="How often the outbox is read when no notice arrives.")

    orderstream_state: str | None = Field(
        None, description="State directory of `orderstream up`; .orderstream by default."
    )
    restarts_per_minute: int = Field(5, ge=0, le=1_000, description="Restarts of one child before `up` gives up.")
    replicas_api_gateway: Replicas = Field(1, description="Processes of api-gateway that `up` starts, on one port.")
    replicas_outbox_relay: Replicas = Field(1, description="Processes of outbox-relay that `up` starts.")
    replicas_payment_worker: Replicas = Field(1, description="Processes of payment-worker that `up` starts.")
    replicas_inventory_worker: Replicas = Field(1, description="Processes of inventory-worker that `up` starts.")
    replicas_order_service: Replicas = Field(1, description="Processes of order-service that `up` starts.")

    def replicas(self, service: str) -> int:
        """Return how many processes of `service` (one of SERVICES) `up` starts."""
        return int(getattr(self, "replicas_" + service.replace("-", "_")))


class SettingsError(Exception):
    """One or more variables are wrong; `problems` has one line for each, in the form `NAME: what is wrong`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load() -> Settings:
    """Read the environment. Raises SettingsError naming every wrong variable."""
    try:
        return Settings.model_validate({})
    except ValidationError as error:
        problems = [_problem(str(one["loc"][0]), one["msg"], one["input"]) for one in error.errors()]
        raise SettingsError(problems) from None


def _problem(field: str, message: str, value: object) -> str:
    """One line; what may hold a password is not repeated."""
    shown = "" if field == "kafka_options" else f" (is {value!r})"
    return f"{field.upper()}: {message}{shown}"
