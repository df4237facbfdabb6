"""The faults of the simulator: which JSON is accepted, and how often each fault happens."""

import random
from collections import Counter
from decimal import Decimal
from functools import partial

import msgspec
import pytest

from orderstream.payment_simulator.faults import Draw, Faults, FaultsError, changed, initial_faults, share_of
from orderstream.settings import Settings, SettingsError

CALLS = 20_000
KEYS = [f"key-{number}" for number in range(CALLS)]


def draw(**members: object) -> Draw:
    """Return a draw with these faults, which is the same in every run."""
    return Draw(changed(Faults(), msgspec.json.encode(members)), random.Random(1))


def problems(json: bytes, faults: Faults | None = None) -> list[str]:
    """Return the problems of a JSON text."""
    with pytest.raises(FaultsError) as caught:
        changed(faults or Faults(), json)
    return caught.value.problems


def test_by_default_every_call_is_answered_at_once() -> None:
    harmless = draw()
    assert {harmless.fate(key) for key in KEYS[:100]} == {None}
    assert {harmless.latency_seconds() for _ in range(100)} == {0.0}
    assert not any(harmless.is_declined(key, Decimal(1)) or harmless.is_pending(key) for key in KEYS[:100])


def test_only_the_given_members_change() -> None:
    first = changed(Faults(), b'{"latencyMs": 300, "stuckKeys": ["a"]}')
    second = changed(first, b'{"webhookUrl": "http://127.0.0.1:1/hook", "stuckKeys": []}')
    assert second == Faults(latency_ms=300, webhook_url="http://127.0.0.1:1/hook")
    assert changed(second, b'{"webhookUrl": null}').webhook_url is None
    assert changed(second, b"{}") == second


def test_every_wrong_member_is_named_at_once() -> None:
    found = problems(
        b'{"latencyMs": -1, "declineRate": 1.1, "refuseRate": "x", "retryAfterSeconds": 1.5, "down": 1, "slow": true,'
        b' "latencyDistribution": "pareto", "stuckKeys": ["a/b"], "webhookUrl": "file:///etc/passwd",'
        b' "keyLifetimeSeconds": 0, "pendingSeconds": 1e9, "hangRate": null}'
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "latencyMs",
        "declineRate",
        "refuseRate",
        "retryAfterSeconds",
        "down",
        "slow",
        "latencyDistribution",
        "stuckKeys",
        "webhookUrl",
        "keyLifetimeSeconds",
        "pendingSeconds",
        "hangRate",
    ]


@pytest.mark.parametrize(
    "json",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"latencyMs": NaN}', b'{"latencyMs": 1e999}', b"[" * 100_000],
)
def test_a_text_that_is_no_json_object_of_numbers_is_refused(json: bytes) -> None:
    assert len(problems(json)) == 1


def test_too_many_stuck_keys_are_refused() -> None:
    assert changed(Faults(), msgspec.json.encode({"stuckKeys": KEYS[:10_000]})).stuck_keys[-1] == KEYS[9_999]
    assert problems(msgspec.json.encode({"stuckKeys": KEYS[:10_001]}))


def test_members_that_do_not_fit_together_are_refused() -> None:
    assert problems(b'{"refuseRate": 0.5, "hangRate": 0.6}') == [
        "refuseRate, hangRate, errorBeforeRate, errorAfterRate, dropAfterRate: their sum must not exceed 1"
    ]
    slow = Faults(latency_ms=300)
    assert problems(b'{"latencyDistribution": "normal"}', slow)
    assert changed(slow, b'{"latencyDistribution": "normal", "latencyP99Ms": 300}').latency_p99_ms == 300


def test_the_rates_are_the_shares_of_calls_with_each_fault() -> None:
    rates = {"refuse": 0.1, "hang": 0.05, "error_before": 0.2, "error_after": 0.15, "drop_after": 0.3}
    names = {"refuse": "refuseRate", "hang": "hangRate", "error_before": "errorBeforeRate"}
    names |= {"error_after": "errorAfterRate", "drop_after": "dropAfterRate"}
    faulty = draw(**{names[fate]: rate for fate, rate in rates.items()})
    fates = Counter(faulty.fate("one key") for _ in range(CALLS))
    assert {fate: fates[fate] / CALLS for fate in rates} == pytest.approx(rates, abs=0.015)  # type: ignore[index]
    assert fates[None] / CALLS == pytest.approx(0.2, abs=0.015)


def test_rates_that_sum_up_to_one_leave_no_call_without_a_fault() -> None:
    faulty = draw(refuseRate=0.7, errorBeforeRate=0.3)
    assert None not in {faulty.fate("a") for _ in range(CALLS)}


def test_the_result_of_a_key_never_changes_and_decline_does_not_depend_on_pending() -> None:
    faulty = draw(declineRate=0.3, pendingRate=0.3)
    declined, pending = (
        [test(key) for key in KEYS] for test in (partial(faulty.is_declined, amount=Decimal(1)), faulty.is_pending)
    )
    assert declined == [faulty.is_declined(key, Decimal(1)) for key in KEYS]
    both = sum(first and second for first, second in zip(declined, pending, strict=True))
    assert [sum(declined) / CALLS, sum(pending) / CALLS] == pytest.approx([0.3, 0.3], abs=0.015)
    assert both / CALLS == pytest.approx(0.09, abs=0.01)
    assert all(0 <= share_of(key, b"any") < 1 for key in KEYS)


def test_a_stuck_key_hangs_in_every_call() -> None:
    stuck = draw(stuckKeys=["a"], refuseRate=1)
    assert [stuck.fate(key) for key in ("a", "b", "a")] == ["hang", "refuse", "hang"]


def quantile(seconds: list[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    return sorted(seconds)[int(len(seconds) * share)] * 1_000


def test_a_fixed_latency_is_the_same_for_every_call() -> None:
    assert {draw(latencyMs=300).latency_seconds() for _ in range(10)} == {0.3}


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
def test_the_median_and_the_99th_percentile_are_those_of_the_faults(distribution: str) -> None:
    slow = draw(latencyMs=300, latencyDistribution=distribution, latencyP99Ms=2_000)
    seconds = [slow.latency_seconds() for _ in range(CALLS)]
    assert quantile(seconds, 0.5) == pytest.approx(300, rel=0.05)
    assert quantile(seconds, 0.99) == pytest.approx(2_000, rel=0.05)
    assert min(seconds) >= 0
    assert (min(seconds) == 0) == (distribution == "normal")


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
def test_a_distribution_without_latency_takes_no_time(distribution: str) -> None:
    assert draw(latencyDistribution=distribution, latencyP99Ms=100).latency_seconds() == 0


def test_a_long_tail_has_an_end() -> None:
    slow = draw(latencyMs=0.001, latencyDistribution="lognormal", latencyP99Ms=600_000)
    assert max(slow.latency_seconds() for _ in range(CALLS)) == 600


def test_wrong_faults_in_the_settings_are_named_with_their_variable() -> None:
    assert initial_faults(Settings.model_validate({"simulator_faults": '{"down": true}'})) == Faults(down=True)
    with pytest.raises(SettingsError) as caught:
        initial_faults(Settings.model_validate({"simulator_faults": '{"down": 2, "up": 1}'}))
    assert [problem.split(":")[:2] for problem in caught.value.problems] == [
        ["SIMULATOR_FAULTS", " down"],
        ["SIMULATOR_FAULTS", " up"],
    ]


def test_listed_amounts_are_declined_however_they_are_written() -> None:
    faulty = draw(declinedAmounts=["13.13", "7"])
    written = ("13.13", "13.1300", "7.00", "13.14", "0.07")
    declined = [amount for amount in written if faulty.is_declined("k", Decimal(amount))]
    assert declined == ["13.13", "13.1300", "7.00"]
    for wrong in ("1e3", "-1", "NaN", ""):
        assert problems(msgspec.json.encode({"declinedAmounts": [wrong]}))
    assert problems(msgspec.json.encode({"declinedAmounts": ["1"] * 101}))
