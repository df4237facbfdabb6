"""The settings of the payment provider: wrong ones are all reported at once, and no message shows a secret."""

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from msgspec import Struct

from orderstream.provider_settings import API_KEY_MAX_CHARACTERS
from orderstream.settings import Settings, SettingsError, load

SECRET = "s3cret-key"


class Files(Struct):
    """Files with and without faults."""

    key: str
    two_lines: str
    ca: str
    cert: str
    private_key: str
    other_private_key: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("provider")
    authority = trustme.CA()
    own, other = authority.issue_cert("client.example"), authority.issue_cert("other.example")
    made = Files(*(str(folder / name) for name in Files.__struct_fields__))
    Path(made.key).write_text(f"{SECRET}\n", encoding="utf-8")
    Path(made.two_lines).write_text(f"{SECRET}\n{SECRET}\n", encoding="utf-8")
    authority.cert_pem.write_to_path(made.ca)
    own.cert_chain_pems[0].write_to_path(made.cert)
    own.private_key_pem.write_to_path(made.private_key)
    other.private_key_pem.write_to_path(made.other_private_key)
    return made


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """Set variables, and return the problems that `load` reports."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        load()
    except SettingsError as error:
        found = error.problems
    else:
        found = []
    assert SECRET not in str(found)
    return found


@pytest.mark.parametrize("name", ["simulated", "simulator", "shop.payments:adapter", "payments:make_adapter_2"])
def test_a_provider_is_one_of_three_or_the_path_of_a_function(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert problems(monkeypatch, PAYMENT_PROVIDER=name) == []
    assert load().payment_provider == name


@pytest.mark.parametrize("name", ["HTTP", "stripe", "shop.payments", "shop:", ":adapter", "shop/pay:make", "a:b:c"])
def test_another_provider_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (problem,) = problems(monkeypatch, PAYMENT_PROVIDER=name)
    assert problem.startswith("PAYMENT_PROVIDER: must be simulated, http, simulator, or the path of a function")


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:3200", "https://pay.example", "https://pay.example/", "https://pay.example:8443/api/v2"),
        *("http://[::1]:3200", "http://payment_simulator:3200", "https://pay.example.:8443"),
    ],
)
def test_a_url_of_a_provider_is_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert problems(monkeypatch, PAYMENT_PROVIDER="http", PAYMENT_PROVIDER_URL=url) == []
    assert load().payment_provider_url == url


@pytest.mark.parametrize(
    "url",
    [
        *("pay.example", "ftp://pay.example", "https://", "https:pay.example", "https://pay.example:0"),
        *(
            "https://pay.example:99999",
            "https://pay.example:x",
            "https://[::1",
            "https://pay example",
            "https://pay/%zz",
        ),
        *("https://päy.example", f"https://user:{SECRET}@pay.example", f"https://pay.example/?key={SECRET}"),
        *(f"https://pay.example/#{SECRET}=", "https://pay.example?", "https://pay.example:"),
        *("https://pay..example", "https://.example", "https://.", f"https://{'p' * 64}.example"),
    ],
)
def test_a_wrong_url_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    (problem,) = problems(monkeypatch, PAYMENT_PROVIDER="http", PAYMENT_PROVIDER_URL=url)
    assert problem.startswith("PAYMENT_PROVIDER_URL: it")


@pytest.mark.parametrize(("minutes", "hours"), [("721", None), ("31", "1"), ("43200", "1439")])
def test_a_payment_cannot_be_pending_longer_than_its_order_may_be_charged(
    monkeypatch: pytest.MonkeyPatch, minutes: str, hours: str | None
) -> None:
    given = {"PAYMENT_PENDING_LIMIT_MINUTES": minutes} | ({"PAYMENT_KEY_LIFETIME_HOURS": hours} if hours else {})
    (problem,) = problems(monkeypatch, **given)
    assert problem.startswith(
        "PAYMENT_KEY_LIFETIME_HOURS: half of it must not be less than PAYMENT_PENDING_LIMIT_MINUTES "
    )
    assert problems(monkeypatch, PAYMENT_PENDING_LIMIT_MINUTES="30", PAYMENT_KEY_LIFETIME_HOURS="1") == []


def test_http_needs_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, PAYMENT_PROVIDER="http") == [
        "PAYMENT_PROVIDER_URL: must be set, because PAYMENT_PROVIDER is http (is not set)"
    ]


@pytest.mark.parametrize("key", ["two words", "ümlaut", "line\nbreak", "x" * (API_KEY_MAX_CHARACTERS + 1)])
def test_a_wrong_api_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    (problem,) = problems(monkeypatch, PAYMENT_API_KEY=key)
    assert problem.startswith("PAYMENT_API_KEY: must have 1 to 4096 visible ASCII characters and no space")
    assert key not in problem


def test_there_is_one_source_of_the_api_key(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    (problem,) = problems(monkeypatch, PAYMENT_API_KEY=SECRET, PAYMENT_API_KEY_FILE=files.key)
    assert problem.startswith("PAYMENT_API_KEY_FILE: must not be set together with PAYMENT_API_KEY")


def test_a_file_with_two_lines_is_no_api_key(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    (problem,) = problems(monkeypatch, PAYMENT_API_KEY_FILE=files.two_lines)
    assert problem.startswith("PAYMENT_API_KEY_FILE: the file must have one line")


def test_complete_settings_are_accepted(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    given = {
        "PAYMENT_PROVIDER": "http",
        "PAYMENT_PROVIDER_URL": "https://pay.example",
        "PAYMENT_API_KEY_FILE": files.key,
        "PAYMENT_TLS_CA_FILE": files.ca,
        "PAYMENT_TLS_CERT_FILE": files.cert,
        "PAYMENT_TLS_KEY_FILE": files.private_key,
    }
    assert problems(monkeypatch, **given) == []


def test_a_certificate_and_its_key_are_set_together(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    (problem,) = problems(monkeypatch, PAYMENT_TLS_CERT_FILE=files.cert)
    assert problem.startswith(
        "PAYMENT_TLS_KEY_FILE: PAYMENT_TLS_CERT_FILE and PAYMENT_TLS_KEY_FILE must be set together"
    )
    (problem,) = problems(monkeypatch, PAYMENT_TLS_KEY_FILE=files.other_private_key)
    assert problem.startswith("PAYMENT_TLS_KEY_FILE: it does not fit PAYMENT_TLS_CERT_FILE")


def test_a_private_key_with_a_passphrase_is_refused(
    monkeypatch: pytest.MonkeyPatch, files: Files, tmp_path: Path
) -> None:
    """Otherwise OpenSSL would ask the terminal for the passphrase, and the process would wait."""
    plain = load_pem_private_key(Path(files.private_key).read_bytes(), None)
    locked = tmp_path / "locked"
    locked.write_bytes(
        plain.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret"))
    )
    (problem,) = problems(monkeypatch, PAYMENT_TLS_CERT_FILE=files.cert, PAYMENT_TLS_KEY_FILE=str(locked))
    assert problem.startswith("PAYMENT_TLS_KEY_FILE: it does not fit PAYMENT_TLS_CERT_FILE")


def test_certificates_need_https(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    given = {"PAYMENT_TLS_CA_FILE": files.ca, "PAYMENT_TLS_CERT_FILE": files.cert}
    found = problems(monkeypatch, PAYMENT_PROVIDER_URL="http://pay", PAYMENT_TLS_KEY_FILE=files.private_key, **given)
    assert [problem.partition(" (")[0] for problem in found] == [
        f"{name}: needs a PAYMENT_PROVIDER_URL that begins with https://" for name in given
    ]


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    found = problems(
        monkeypatch,
        PORT="0",
        PAYMENT_PROVIDER="https",
        PAYMENT_PROVIDER_URL="pay.example",
        PAYMENT_POOL_SIZE="-1",
        PAYMENT_API_KEY="two words",
        PAYMENT_API_KEY_FILE="/nowhere/key",
        PAYMENT_TLS_CA_FILE=files.key,
        PAYMENT_TLS_CERT_FILE="/nowhere/cert",
        PAYMENT_TLS_KEY_FILE="/nowhere",
    )
    names = [name.upper() for name in Settings.model_fields if name.startswith(("payment_provider", "payment_tls"))]
    assert {problem.partition(":")[0] for problem in found} == {
        *names,
        *("PORT", "PAYMENT_POOL_SIZE", "PAYMENT_API_KEY", "PAYMENT_API_KEY_FILE"),
    }
    assert "PAYMENT_API_KEY_FILE: cannot be read: No such file or directory (is '/nowhere/key')" in found


def test_a_traceback_shows_no_api_key() -> None:
    settings = Settings.model_validate({"payment_api_key": SECRET})
    assert SECRET not in f"{settings!r} {settings}"
