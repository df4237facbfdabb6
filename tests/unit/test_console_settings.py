"""The settings of the console: what is accepted, and errors that show no secret."""

from pathlib import Path
from typing import Any

import pytest

from orderstream import console_settings
from orderstream.settings import Settings, SettingsError, load

SECRET = "s3cret"


def given(**values: Any) -> Settings:
    """Return the settings of an environment that has only these variables."""
    return Settings(**values)


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def problem(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Return the only problem of wrong variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    (found,) = caught.value.problems
    return found


def test_the_defaults() -> None:
    given = load()
    assert (given.console_host, given.console_port, given.replicas_console) == ("127.0.0.1", 3100, 1)
    assert (given.console_hostnames, given.console_token, given.console_read_token) == ((), None, None)
    assert (given.console_postgres_url, given.trace_ui_url) == (None, None)
    assert given.read_console_token() is None


def test_the_address_of_the_api_follows_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "3456")
    assert load().base_url == "http://127.0.0.1:3456"
    monkeypatch.setenv("BASE_URL", "https://orders.example/")
    assert load().base_url == "https://orders.example"


@pytest.mark.parametrize("name", ["CONSOLE_TOKEN", "CONSOLE_READ_TOKEN"])
@pytest.mark.parametrize("value", [SECRET, "", f"{SECRET} with a space", f"{SECRET * 3}ü", "x" * 513])
def test_a_wrong_token_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    if not value:
        monkeypatch.setenv(name, value)
        assert getattr(load(), name.lower()) is None
        return
    found = problem(monkeypatch, **{name: value})
    assert found.startswith(f"{name}: must have 16 to 512 visible ASCII characters and no space")
    assert SECRET not in found
    assert "xxx" not in found


def test_a_token_can_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-operators-token\n")
    monkeypatch.setenv("CONSOLE_TOKEN_FILE", str(file))
    assert load().read_console_token() == "the-operators-token"
    assert problem(monkeypatch, CONSOLE_TOKEN="another-token-of-operators").startswith(
        "CONSOLE_TOKEN_FILE: must not be set together"
    )


@pytest.mark.parametrize("content", ["", "short\n", f"{SECRET * 3}\n{SECRET * 3}\n"])
def test_a_file_without_a_token_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    found = problem(monkeypatch, CONSOLE_TOKEN_FILE=str(file))
    assert "the file must have one line" in found
    assert SECRET not in found
    file.unlink()
    assert "cannot be read: No such file" in problem(monkeypatch, CONSOLE_TOKEN_FILE=str(file))


def test_the_read_token_must_differ_from_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problem(monkeypatch, CONSOLE_TOKEN=SECRET * 3, CONSOLE_READ_TOKEN=SECRET * 3)
    assert found.startswith("CONSOLE_READ_TOKEN: must differ from the operator's token")
    assert SECRET not in found


def test_no_secret_of_the_console_is_in_the_text_of_the_settings() -> None:
    settings = given(console_token=SECRET * 3, console_read_token=SECRET * 4, console_postgres_url=f"password={SECRET}")
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("console.example", ("console.example",)),
        (" Console.Example. , 192.0.2.7,[2001:db8::1]", ("console.example", "192.0.2.7", "2001:db8::1")),
        ("my-host,", ("my-host",)),
    ],
)
def test_further_host_names(monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[str, ...]) -> None:
    monkeypatch.setenv("CONSOLE_HOSTNAMES", value)
    assert load().console_hostnames == expected


@pytest.mark.parametrize(
    "value",
    [
        "https://console.example",
        "console.example:3100",
        "*",
        "a b",
        "-a",
        "a..b",
        "[::1",
        "2001:db8::1",
        "x" * 254,
        "ü",
    ],
)
def test_a_wrong_host_name_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert problem(monkeypatch, CONSOLE_HOSTNAMES=value).startswith("CONSOLE_HOSTNAMES: expected host names")


def test_too_many_host_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ",".join(f"h{number}" for number in range(console_settings.HOSTNAMES_MAX + 1))
    assert "must have at most 20 names" in problem(monkeypatch, CONSOLE_HOSTNAMES=names)


@pytest.mark.parametrize("name", ["BASE_URL", "TRACE_UI_URL"])
@pytest.mark.parametrize(
    "value", ["javascript:alert(1)", "//host", "http://", "http://u:p@h", 'http://h/"', "http://h:99999", "http://ü"]
)
def test_a_wrong_address_of_a_page_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert problem(monkeypatch, **{name: value}).startswith(f"{name}: it")


def test_the_account_of_the_console_is_checked_as_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problem(monkeypatch, CONSOLE_POSTGRES_URL=f"postgresql://u:{SECRET}@h:port/db")
    assert found.startswith("CONSOLE_POSTGRES_URL: ")
    assert SECRET not in found


@pytest.mark.parametrize("value", ["2", "-1", "x"])
def test_there_is_one_console_or_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert problem(monkeypatch, REPLICAS_CONSOLE=value).startswith("REPLICAS_CONSOLE: ")
