"""The command line: every command has help, and wrong settings are named before anything happens."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import structlog
from click.testing import CliRunner
from confluent_kafka import KafkaError, KafkaException

from orderstream.audit.check import Progress
from orderstream.cli import main, stores
from orderstream.dead_letters import reader as dead_letter_reader
from orderstream.domain.limits import UNITS_MAX
from orderstream.settings import SERVICES


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(path: tuple[str, ...], flag: str) -> None:
    result = CliRunner().invoke(main, [*path, flag])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_every_service_is_a_command() -> None:
    assert set(SERVICES) <= set(main.commands)


@pytest.mark.parametrize("command", ["up", "down", "status", "env", "payment-worker", "migrate", "topics"])
def test_bad_configuration_names_every_wrong_variable_and_exits_2(command: str) -> None:
    result = CliRunner().invoke(main, [command], env={"PORT": "0", "PAYMENT_SUCCESS_RATE": "2", "REDIS_URL": "cache"})
    assert result.exit_code == 2
    assert "REDIS_URL: " in result.stderr
    assert "PORT: " in result.stderr
    assert "PAYMENT_SUCCESS_RATE: " in result.stderr


@pytest.mark.parametrize("words", ["up", "up -d", "topics", "dlq list", "outbox-relay", "payment-worker"])
def test_options_that_librdkafka_refuses_are_bad_configuration(words: str) -> None:
    environment = os.environ | {"KAFKA_OPTIONS": "sasl.pasword=x"}
    argv = [sys.executable, "-m", "orderstream.cli", *words.split()]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Wrong settings (environment variables):\n  KAFKA_OPTIONS: ")
    assert len(done.stderr.splitlines()) == 2


def test_a_command_that_fails_prints_one_line_although_its_clients_log_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        structlog.get_logger().warning("kafka_unreachable")
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    monkeypatch.setattr(dead_letter_reader, "newest", fail)
    result = CliRunner().invoke(main, ["dlq", "list"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["set", "", "4"],
        ["add", "S" * 65, "1"],
        ["set", "\udcff", "1"],
        ["set", "SKU-1", str(UNITS_MAX + 1)],
        ["add", "SKU-1", str(UNITS_MAX + 1)],
        ["add", "SKU-1", str(-UNITS_MAX - 1)],
        ["set", "SKU-1", "--", "-1"],
        ["set", "SKU-1", "9" * 5_000],
        ["set", "SKU-1", "1e3"],
    ],
)
def test_a_sku_or_a_number_that_no_order_can_have_is_refused(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["stock", *words])
    assert result.exit_code == 2
    assert "Invalid value" in result.stderr


def test_an_audit_without_a_database_exits_with_2() -> None:
    result = CliRunner().invoke(main, ["audit"], env={"POSTGRES_URL": "postgresql://app@127.0.0.1:1/orders"})
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize("command", ["env", "status"])
def test_without_a_running_stack_a_command_says_so(command: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = CliRunner().invoke(main, [command], env={"ORDERSTREAM_STATE": str(tmp_path_factory.mktemp("state"))})
    assert result.exit_code == 1
    assert "nothing is running" in result.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_of_an_audit_is_one_line_on_a_terminal_and_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, file = _Terminal(), io.StringIO()
    for stream in (terminal, file):
        monkeypatch.setattr(sys, "stderr", stream)
        with stores._progress_line() as report:
            report(Progress(3, 11, "p5_settles", 4, 12))
    erase = "\r\x1b[2K"
    assert terminal.getvalue() == f"{erase}3 of 11 checks, p5_settles: 4 of 12 pieces{erase}"
    assert not file.getvalue()
