"""The worked example of docs/payment-provider.md keeps the contract, and the settings choose it."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from orderstream.domain.money import MINOR_DIGITS
from orderstream.local.processes.state import checkout
from orderstream.payment_worker.providers.choose import provider_of
from orderstream.settings import Settings
from tests.support.acme_pay import TOKEN, AcmePay
from tests.support.provider_contract import Account, PendingContract, Subject

PAGE = checkout() / "docs" / "payment-provider.md"
BLOCK = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the example to a directory of its own."""
    (found,) = re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    path: Path = tmp_path_factory.mktemp("example") / found[0]
    path.write_text(found[1], encoding="utf-8")
    return path


def test_the_example_has_the_style_of_the_project(example: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(checkout() / "pyproject.toml"), str(example)]
        done = subprocess.run(ruff, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout


class TestWorkedExample(PendingContract):
    """Acme Pay, through the example."""

    @pytest.fixture(autouse=True)
    def _importable(self, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(example.parent))
        monkeypatch.delitem(sys.modules, example.stem, raising=False)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Subject]:
        company = AcmePay()

        async def account(key: str) -> Account:
            order = company.orders.get(key, {"holds": 0, "state": "none"})
            if order["state"] != "held":
                return Account(order["holds"], Decimal(0))
            return Account(
                order["holds"], Decimal(order["minorUnits"]).scaleb(-MINOR_DIGITS[order["currency"].upper()])
            )

        async with company.serve() as url:
            settings = Settings.model_validate(
                {"payment_provider": "shop_payments:make", "payment_provider_url": url, "payment_api_key": TOKEN}
            )
            yield Subject(
                provider=provider_of(settings),
                hanging=company.mood_of("silent"),
                declining=company.mood_of("refusing"),
                refusals={"throttled": company.mood_of("throttling")},
                failures={"502": company.mood_of("broken"), "error after": company.mood_of("broken_after")},
                pending=company.mood_of("reviewing"),
                account=account,
            )
