"""The operator's token: made once, kept, and refused if another account may know it."""

import io
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orderstream.cli import main
from orderstream.console import app
from orderstream.local import control, operator_token
from orderstream.local.banner import banner
from orderstream.local.operator_token import FILE, OperatorTokenError, read_or_make
from orderstream.local.processes import ports
from orderstream.local.processes.masking import masked
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.state import StateDir
from orderstream.local.up import up
from orderstream.settings import Settings
from tests.unit.local.test_banner import URLS
from tests.unit.local.test_supervisor import StopByTest

CONSOLE = {**URLS, "CONSOLE_URL": "http://127.0.0.1:3100"}


def given(**values: Any) -> Settings:
    """Return the settings of an environment that has only these variables."""
    return Settings(**values)


def token_file(state: StateDir) -> Path:
    """Return the file that holds the token."""
    return state.root / FILE


def test_the_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "new")
    first = read_or_make(state)
    assert stat.S_IMODE(token_file(state).stat().st_mode) == 0o600
    assert (len(first), first.isalnum()) == (48, True)
    assert read_or_make(state) == first
    assert token_file(state).read_text() == f"{first}\n"


def test_processes_that_start_together_agree_on_the_token(state: StateDir) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: read_or_make(state), range(8)))
    assert len(made) == 1
    assert [path.name for path in state.root.iterdir() if FILE in path.name] == [FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_token_that_others_can_read_is_refused(state: StateDir, mode: int) -> None:
    token = read_or_make(state)
    token_file(state).chmod(mode)
    with state.lock(), pytest.raises(OperatorTokenError, match="can be read by other users") as caught:
        read_or_make(state)
    assert str(token_file(state)) in str(caught.value)
    assert token not in str(caught.value)


def test_a_token_of_another_user_is_refused(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    read_or_make(state)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(OperatorTokenError, match="belongs to another user"):
        operator_token._read(token_file(state))


def test_a_link_a_folder_and_a_file_without_a_token_are_refused(state: StateDir, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("some-other-file-of-this-user\n")
    token_file(state).symlink_to(other)
    with pytest.raises(OperatorTokenError, match="cannot be read"):
        read_or_make(state)
    token_file(state).unlink()
    token_file(state).mkdir()
    with pytest.raises(OperatorTokenError):
        read_or_make(state)
    token_file(state).rmdir()
    token_file(state).touch(0o600)
    with pytest.raises(OperatorTokenError, match="has no token"):
        read_or_make(state)


def test_a_token_from_the_settings_comes_first(state: StateDir, tmp_path: Path) -> None:
    token = "a-token-from-the-settings"
    assert operator_token.operator_token(given(console_token=token), state) == token
    file = tmp_path / "token"
    file.write_text("a-token-from-a-file\n")
    assert operator_token.operator_token(given(console_token_file=str(file)), state) == "a-token-from-a-file"
    assert not token_file(state).exists()


def test_reset_removes_the_token(state: StateDir) -> None:
    before = read_or_make(state)
    control.reset(state, Terminal(io.StringIO()))
    assert read_or_make(state) != before


def test_the_banner_has_the_one_click_url_and_the_logs_do_not(state: StateDir) -> None:
    token = "of/the&operator?"
    text = banner(CONSOLE, state, token)
    line = next(line for line in text.splitlines() if line.lstrip().startswith("Console"))
    assert line.split()[1] == "http://127.0.0.1:3100/enter?token=of%2Fthe%26operator%3F"
    assert "Console" not in banner(URLS, state, token)
    assert "token=" not in banner(CONSOLE, state)
    state.log("up").write_text(f"{line}\n")
    shown: list[str] = []
    control.show_logs([state.log("up")], shown.append)
    assert shown == ["  Console     http://127.0.0.1:3100/enter?token=***"]
    assert "operator" not in masked(line)


def refused(state: StateDir, **settings: object) -> str:
    """Run `up`, which must end at once. Return what it says."""
    said = io.StringIO()
    given = Settings.model_validate({"port": ports.pick(["api"], {})["api"], **settings})
    assert up(given, state, Terminal(said), StopByTest()) == 1
    assert not (state.root / "stack.json").exists()
    return said.getvalue()


def test_up_does_not_start_with_a_token_that_others_can_read(state: StateDir) -> None:
    token = read_or_make(state)
    token_file(state).chmod(0o644)
    said = refused(state)
    assert "can be read by other users" in said
    assert token not in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "console.example"])
def test_up_opens_the_console_to_other_machines_only_with_a_token_from_the_settings(state: StateDir, host: str) -> None:
    assert "Set CONSOLE_TOKEN or CONSOLE_TOKEN_FILE too." in refused(state, console_host=host)
    operator_token.check_listens_safely(given(console_host=host, console_token="a-token-from-the-settings"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_on_loopback_no_token_from_the_settings_is_needed(host: str) -> None:
    operator_token.check_listens_safely(given(console_host=host))


@pytest.mark.parametrize("name", ["console_port", "metrics_port"])
def test_up_names_the_process_that_holds_a_given_port(state: StateDir, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(state, **{name: port})
    assert f"Port {port} is taken by pid {os.getpid()}" in said
    assert f"{name.upper()}={port + 1} make up" in said


def test_up_refuses_one_port_for_two_purposes(state: StateDir) -> None:
    assert "PORT, CONSOLE_PORT must be different." in refused(state, port=3999, console_port=3999)


def test_the_console_opens_no_port_to_other_machines_without_a_token_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(app, "listen", lambda *address: opened.append(address))
    monkeypatch.setenv("ORDERSTREAM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CONSOLE_HOST", "0.0.0.0")
    done = CliRunner().invoke(main, ["console"])
    assert (done.exit_code, opened) == (1, [])
    assert "Set CONSOLE_TOKEN or CONSOLE_TOKEN_FILE too." in done.output
    assert not token_file(StateDir(tmp_path / "state")).exists()
