"""The figures of a run, and the orders that it places."""

import json
import random
import re
from decimal import Decimal
from typing import get_args

import msgspec
import pytest

from orderstream.api_gateway.orders.parsing import read_order
from orderstream.console.play import figures
from orderstream.console.play.figures import Figures, OutcomeView
from orderstream.console.play.orders import (
    DECLINED_AMOUNT,
    DEFAULT_MIX,
    SOLD_OUT,
    STOCKED,
    UNKNOWN,
    KindName,
    draw_kind,
    order_of,
)
from orderstream.console.play.simulator import PRESETS, WELL
from orderstream.local.processes.state import checkout
from orderstream.payment_simulator.faults import Faults, changed


@pytest.mark.parametrize("kind", get_args(KindName))
def test_every_order_is_valid_and_of_its_kind(kind: KindName) -> None:
    source = random.Random(1)
    for _ in range(50):
        body = order_of(kind, source)
        read_order(msgspec.json.encode(body), "an-id")
        skus = [item["sku"] for item in body["items"]]
        assert (body["amount"] == DECLINED_AMOUNT) == (kind == "declined")
        assert Decimal(body["amount"]) == sum(Decimal(item["price"]) for item in body["items"])
        assert (SOLD_OUT in skus) == (kind == "outOfStock")
        assert (UNKNOWN in skus) == (kind == "unknownSku")
        assert set(skus) <= {*STOCKED, SOLD_OUT, UNKNOWN}


def test_kinds_are_drawn_by_their_shares() -> None:
    source = random.Random(1)
    drawn = [draw_kind({"well": 3, "declined": 1}, source) for _ in range(4_000)]
    assert 0.7 < drawn.count("well") / 4_000 < 0.8
    assert set(drawn) == {"well", "declined"}
    assert set(DEFAULT_MIX) == set(get_args(KindName))


def test_every_preset_is_accepted_by_the_simulator_and_sets_every_member_of_the_others() -> None:
    names = [preset.name for preset in PRESETS]
    assert len(set(names)) == len(names)
    for preset in PRESETS:
        changed(Faults(), msgspec.json.encode(preset.members))
        assert set(WELL) <= set(preset.members)
        assert preset.watch.endswith(".")


def test_make_demo_starts_with_the_faults_of_all_well() -> None:
    makefile = (checkout() / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^DEMO_FAULTS \?= (.*)$", makefile, re.MULTILINE)
    assert found is not None
    given = json.loads(found[1])
    assert given == {name: WELL[name] for name in given}
    assert changed(Faults(), found[1].encode()) == changed(Faults(), msgspec.json.encode(WELL))


def test_orders_are_followed_in_turn_up_to_a_limit_of_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FOLLOWED_MAX", 5)
    found = Figures()
    for number in range(7):
        found.follow(f"o{number}", "well", float(number))
    assert found.view().not_followed == 2
    assert found.to_look_up(2, 10) == ["o0", "o1"]
    assert found.to_look_up(2, 10) == ["o2", "o3"]
    assert found.to_look_up(2, 10) == ["o4"]
    assert found.to_look_up(2, 10) == ["o0", "o1"]
    found.settled("o1", "CONFIRMED", 0.5)
    found.settled("o1", "CONFIRMED", 0.5)
    found.settled("unknown", "CONFIRMED", 9.0)
    found.refused("well", "not accepted: 503")
    assert found.to_look_up(10, 2 + figures.FOLLOW_SECONDS) == ["o3", "o4"]
    view = found.view()
    assert (view.open, view.not_followed) == (2, 4)
    assert view.outcomes == [OutcomeView("well", "CONFIRMED", 1), OutcomeView("well", "not accepted: 503", 1)]


def test_percentiles_of_the_newest_settle_times(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Figures()
    assert found.view().settle_p50 is None
    for number in range(figures.SETTLE_TIMES_KEPT + 100):
        found.follow(f"o{number}", "well", 0.0)
        found.settled(f"o{number}", "CONFIRMED", float(number))
    view = found.view()
    assert (view.settle_p50, view.settle_p95, view.settle_max) == (600.0, 1_050.0, 1_099.0)
