"""kill -9 of any process of any site, at any moment: training goes on, and what was killed is back by itself."""

from __future__ import annotations

import logging
import os
import random

import pytest

from swarm_hpc.records import Round, RoundState
from tests.conftest import LONG
from tests.lab.consortium import PARTS, Consortium
from tests.lab.load import Load
from tests.system.geth.conftest import lasting, trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(900)]
NUM_KILLS = 30 if LONG else 9

log = logging.getLogger(__name__)


def open_round(net: Consortium, load: Load, site: str) -> Round | None:
    """The round that has begun and is not over, if there is one."""

    async def ask(client):
        contract = await client.contract(load.contract)
        return (await client.rounds(load.contract, contract.round))[0]

    found = net.ask(site, ask)
    return found if found.check_ins and found.state is not RoundState.PUBLISHED else None


def test_a_round_ends_without_the_sentinel_which_returns(four):
    with trained(four, contract="sentinel") as load:
        begun = four.until(lambda: open_round(four, load, "beta"), "a round with check-ins")
        four.kill("alpha", back=False)
        four.until(lambda: load.round_of("beta") >= begun.number + 1, "a round without the sentinel's site")
        four.launch("alpha")
        four.await_whole()
        load.await_part("alpha")


def test_each_process_of_each_site_can_be_killed_alone_at_any_moment(four):
    """30 kills at moments of chance with SWARM_HPC_LONG_TESTS=1, else 9, always the same."""
    seed = int(os.environ.get("SWARM_HPC_SEED", "") or (random.randrange(1 << 32) if LONG else 1))
    dice = random.Random(seed)
    victims = [(dice.choice(four.names), part) for part in PARTS for _ in range(NUM_KILLS // len(PARTS))]
    dice.shuffle(victims)
    log.warning("SWARM_HPC_SEED=%d: %s", seed, victims)
    with trained(four, contract="kills") as load:
        for site, part in victims:
            four.linger(dice.uniform(0.0, 1.0))
            begun = load.round
            four.kill(site, part)
            four.await_whole()
            four.until(lambda begun=begun: load.round > begun, f"a round after {site}'s {part} was killed")
        load.await_part(*four.names)


@pytest.mark.parametrize("part", ["geth", "cometbft"])
def test_a_program_that_hangs_is_started_again_without_anybodys_help(four, part):
    with trained(four, contract=f"hangs-{part}") as load:
        hanging = four.until(lambda: four.sites["gamma"].child(part), f"gamma to have a {part}")
        hanging.suspend()
        four.until(lambda: not hanging.is_running(), f"the {part} that hangs to be ended")
        four.await_whole()
        load.await_part("gamma")


def test_training_goes_on_without_a_site_that_catches_up_by_itself(four):
    """Down for 60 s with SWARM_HPC_LONG_TESTS=1, else for 20 s."""
    with trained(four, contract="absence") as load:
        four.kill("delta", back=False)
        begun = load.round
        four.linger(lasting(60.0))
        assert load.round > begun
        load.await_rounds(2)
        four.launch("delta")
        four.await_whole()
        load.await_part("delta")


def test_with_two_of_four_down_training_waits_says_who_is_missing_and_goes_on_when_one_returns(four):
    with trained(four, contract="two") as load:
        for site in ("gamma", "delta"):
            four.kill(site, back=False)
        said = four.until(
            lambda: (
                (seen := four.consensus("alpha"))
                and all(one in seen.halted.partition("missing:")[2] for one in ("gamma", "delta"))
                and seen.halted
            ),
            "alpha to say that the ledger stands still",
        )
        assert "stands still" in said
        four.until(
            lambda: all(one in load.reason("beta").partition("missing:")[2] for one in ("gamma", "delta")),
            "beta's node to say who is missing",
        )
        height, confirmed = four.consensus("alpha").height, len(load.promises.at)
        four.linger(3.0)
        assert (four.consensus("alpha").height, len(load.promises.at)) == (height, confirmed)

        four.launch("gamma")
        load.await_part("alpha", "beta", "gamma")
        assert not four.consensus("alpha").halted
        four.launch("delta")
        four.await_whole()
        load.await_part("delta")
