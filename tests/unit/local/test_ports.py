"""Ports are kept while they are free and replaced when they are taken. The holder of a taken port is named."""

import os
import socket
from collections.abc import Iterator

import pytest

from orderstream.local.processes import ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


def test_a_port_with_a_listener_is_not_free(taken: int) -> None:
    assert not ports.is_free(ports.LOOPBACK, taken)


def test_a_port_shared_by_so_reuseport_is_not_free_either() -> None:
    with socket.create_server((ports.LOOPBACK, 0), reuse_port=True) as server:
        assert not ports.is_free(ports.LOOPBACK, server.getsockname()[1])


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        ports.is_free("192.0.2.1", 3000)


def test_every_name_gets_its_own_port() -> None:
    chosen = ports.pick(["a", "b", "c", "d"], {})
    assert len(set(chosen.values())) == 4


def test_two_choices_that_no_server_uses_yet_have_no_port_in_common() -> None:
    names = [str(number) for number in range(500)]
    assert not set(ports.pick(names, {}).values()) & set(ports.pick(names, {}).values())


def test_a_free_port_is_kept() -> None:
    first = ports.pick(["a", "b"], {})
    assert ports.pick(["a", "b"], first) == first


def test_a_taken_port_is_replaced_and_the_others_kept(taken: int) -> None:
    first = ports.pick(["a", "b"], {})
    again = ports.pick(["a", "b"], {**first, "b": taken})
    assert again["a"] == first["a"]
    assert again["b"] not in {taken, first["a"]}


def test_the_port_of_the_api_is_not_picked() -> None:
    first = ports.pick(["a"], {})
    assert ports.pick(["a"], first, avoid=first.values()) != first


def test_the_holder_is_named_by_pid_and_command(taken: int) -> None:
    assert ports.holder(taken).startswith(f"pid {os.getpid()} (")
