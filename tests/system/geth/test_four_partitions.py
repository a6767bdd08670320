"""Sites that cannot reach each other: at most one side goes on, and afterwards there is one chain with all of it.

Cuts last 60 s (30 s for tunnels) with SWARM_HPC_LONG_TESTS=1, else a third of that.
"""

from __future__ import annotations

import pytest

from tests.conftest import LONG
from tests.system.geth.conftest import lasting, trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(900)]
ONE, OTHER = ("alpha", "beta"), ("gamma", "delta")


def heights(net):
    return {name: net.consensus(name).height for name in net.names}


def test_neither_half_goes_on_alone_and_both_do_together(four):
    with trained(four, contract="halves") as load:
        four.relays.cut(ONE, OTHER)
        for name, lost in (("alpha", OTHER), ("gamma", ONE)):
            four.until(
                lambda name=name, lost=lost: (seen := four.consensus(name)) and all(one in seen.halted for one in lost),
                f"{name} to say that {', '.join(lost)} are missing",
            )
        before, confirmed = heights(four), len(load.promises.at)
        four.linger(lasting(60.0))
        assert (heights(four), len(load.promises.at)) == (before, confirmed)
        four.relays.heal()
        four.await_whole()
        load.await_part(*four.names)


def test_three_go_on_without_one_whose_packets_are_lost(four):
    with trained(four, contract="three") as load:
        four.relays.isolate("delta", silently=True)
        begun = load.round
        four.linger(lasting(60.0))
        load.await_rounds(2)
        assert load.round > begun
        four.relays.heal()
        four.await_whole()
        load.await_part(*four.names)


def test_a_site_without_its_tunnels_catches_up_when_they_are_back(four):
    with trained(four, contract="tunnels") as load:
        four.relays.isolate("alpha")
        four.until(lambda: (seen := four.consensus("alpha")) and seen.halted, "alpha to say that it is alone")
        four.linger(lasting(30.0))
        load.await_rounds(1)
        four.relays.heal()
        four.await_whole()
        load.await_part("alpha")


@pytest.mark.skipif(not LONG, reason="takes 6 minutes: set SWARM_HPC_LONG_TESTS=1")
def test_a_partition_of_over_five_minutes_heals_by_itself(four):
    with trained(four, contract="long") as load:
        four.relays.isolate("delta", silently=True)
        four.linger(330.0)
        load.await_rounds(1)
        four.relays.heal()
        four.await_whole(patience_s=300.0)  # it takes over several hundred blocks
        load.await_part(*four.names)
