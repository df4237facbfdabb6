"""The settings choose the payment provider. A provider that cannot be made is a wrong setting."""

import asyncio
import sys
from pathlib import Path

import pytest

from orderstream.payment_worker.providers.choose import provider_of
from orderstream.payment_worker.providers.http import HttpPaymentProvider
from orderstream.payment_worker.providers.protocol import PaymentProvider
from orderstream.payment_worker.providers.simulated import SimulatedProvider
from orderstream.settings import Settings, SettingsError

ADAPTERS = """
from orderstream.payment_worker.providers.simulated import SimulatedProvider

class Blocking(SimulatedProvider):
    def void(self, order_id, call): ...

def good(settings): return SimulatedProvider(settings.payment_success_rate, 0)
def blocking(settings): return Blocking(1, 0)
def nothing(settings): return None
def failing(settings): raise LookupError("no account")
not_callable = 1
"""


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_payments.py").write_text(ADAPTERS, encoding="utf-8")
    (tmp_path / "shop_broken.py").write_text("import nothing_of_this_name", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop_payments", raising=False)


def made(provider: str, **further: object) -> PaymentProvider:
    """Return the provider for these settings."""
    return provider_of(Settings.model_validate({"payment_provider": provider, **further}))


def test_the_name_chooses_the_provider() -> None:
    assert isinstance(made("simulated"), SimulatedProvider)
    assert isinstance(made("simulator"), HttpPaymentProvider)
    assert isinstance(made("http", payment_provider_url="https://pay.example"), HttpPaymentProvider)


@pytest.mark.usefixtures("adapters")
def test_a_path_chooses_an_adapter_of_the_user() -> None:
    provider = made("shop_payments:good", payment_success_rate=0)
    assert isinstance(provider, SimulatedProvider)
    asyncio.run(provider.close())


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("shop_absent:good", "No module named 'shop_absent'"),
        ("shop_broken:good", "No module named 'nothing_of_this_name'"),
        ("shop_payments:absent", "has no attribute 'absent'"),
        ("shop_payments:not_callable", "not callable"),
        ("shop_payments:failing", "LookupError('no account')"),
        ("shop_payments:blocking", "what shop_payments:blocking returned has no async method void"),
        ("shop_payments:nothing", "has no async method authorize, void, close"),
    ],
)
def test_an_adapter_that_cannot_be_made_is_a_wrong_setting(path: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        made(path)
    (problem,) = caught.value.problems
    assert problem.startswith("PAYMENT_PROVIDER: ")
    assert reason in problem
