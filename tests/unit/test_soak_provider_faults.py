"""The faults that a soak causes in the payment simulator."""

import msgspec
import pytest

from orderstream.payment_simulator.faults import Faults, changed
from tests.load.soak.provider_faults import FAULTS, NONE

NOT_IN_A_SOAK = {
    "declinedAmounts": "only the play desk places orders with such amounts",
    "stuckKeys": "no order id is known before its first call",
    "keyLifetimeSeconds": "it is longer than a soak",
    "webhookUrl": "`up` sets it",
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_simulator_takes_each_fault_of_a_soak_and_its_end(name: str) -> None:
    during = changed(Faults(), msgspec.json.encode(NONE | FAULTS[name].members))
    assert changed(during, msgspec.json.encode(NONE)) == changed(Faults(), msgspec.json.encode(NONE))


def test_a_soak_causes_every_fault_that_the_simulator_has() -> None:
    caused = {member for fault in FAULTS.values() for member, value in fault.members.items() if value != NONE[member]}
    known = {field.encode_name for field in msgspec.structs.fields(Faults)}
    always = {"latencyDistribution", "declineRate"}
    assert caused | always | set(NOT_IN_A_SOAK) == known
    assert any(fault.kills for fault in FAULTS.values())
    assert any(fault.pauses for fault in FAULTS.values())
