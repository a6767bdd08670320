"""Up to where a site may have signed, by what the others have seen; and when it has to ask them."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm_hpc.config import LedgerConfig
from swarm_hpc.records import SeenVotes
from swarm_hpc.sn.comet import CometHome, ConsensusKeys
from swarm_hpc.sn.links import Peers
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.signing import LAST_ROUND, SigningGuard, floor

FOUR = {"alpha": 10, "beta": 10, "gamma": 10, "delta": 10}


def seen(site, height=20, vote=(0, 0, 0), last_signed=0, powers=FOUR):
    return SeenVotes(
        site=site,
        height=height,
        powers=powers,
        vote_height=vote[0],
        vote_round=vote[1],
        vote_step=vote[2],
        last_signed=last_signed,
    )


def by_name(*answers):
    return {one.site: one for one in answers}


def test_nobody_answers():
    assert floor("delta", (5, 0, 3), {}) is None


def test_one_of_three_others_is_too_few():
    assert floor("delta", (0, 0, 0), by_name(seen("alpha"))) is None


def test_more_than_a_third_of_the_power_keeps_two_heights_away():
    assert floor("delta", (0, 0, 0), by_name(seen("alpha"), seen("beta", 19))) == (22, LAST_ROUND, 3)


def test_all_others_together_know_every_vote_that_can_appear():
    assert floor("delta", (0, 0, 0), by_name(seen("alpha"), seen("beta"), seen("gamma"))) == (20, LAST_ROUND, 3)


def test_a_vote_that_one_of_them_has_seen_counts():
    answers = by_name(seen("alpha", vote=(21, 1, 2)), seen("beta", vote=(21, 0, 3)), seen("gamma", 19))
    assert floor("delta", (0, 0, 0), answers) == (21, 1, 2)


def test_the_own_record_counts_where_it_is_newer():
    assert floor("delta", (21, 0, 2), by_name(seen("alpha"), seen("beta"), seen("gamma"))) == (21, 0, 2)


def test_a_site_without_power_is_not_asked_for():
    powers = FOUR | {"gamma": 0}
    answers = by_name(seen("alpha", powers=powers), seen("beta", powers=powers))
    assert floor("delta", (0, 0, 0), answers) == (20, LAST_ROUND, 3)


def test_the_powers_of_the_newest_answer_count():
    answers = by_name(seen("alpha", 30, powers={"alpha": 30, "delta": 10}), seen("beta", 2))
    assert floor("delta", (0, 0, 0), answers) == (30, LAST_ROUND, 3)


class Answers:
    """A guard whose others answer from a list, one element per round of questions."""

    def __init__(self, guard: SigningGuard, *rounds: dict[str, SeenVotes]) -> None:
        self.rounds = list(rounds)
        self.asked = 0
        guard._ask = self  # type: ignore[method-assign]

    async def __call__(self, addresses):
        self.asked += 1
        return self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]


ALL = by_name(*(seen(site, last_signed=20) for site in ("beta", "gamma", "delta")))


@pytest.fixture
def home(tmp_path: Path) -> CometHome:
    return CometHome(tmp_path / "comet", ConsensusKeys.load(tmp_path / "keys"), tmp_path)


@pytest.fixture
def guard(tmp_path: Path, home, sites) -> SigningGuard:
    return SigningGuard(tmp_path, home, sites.identity("alpha/sn/sn"), home.keys.consensus_key())


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("swarm_hpc.sn.signing._ASK_AGAIN_S", 0.01)


async def test_a_new_site_asks_nobody(guard, home):
    answers = Answers(guard, ALL)
    await guard.secure(["a:1"], is_new=True, told=print)
    assert answers.asked == 0
    assert home.signed() == (0, 0, 0)


async def test_after_that_a_restart_goes_on_without_an_answer(guard, home):
    await guard.secure(["a:1"], is_new=True, told=print)
    home.set_signed(7, 0, 3)
    Answers(guard, {})
    await guard.secure(["a:1"], is_new=False, told=print)
    assert home.signed() == (7, 0, 3)


async def test_a_site_that_was_only_away_keeps_its_record(guard, home):
    await guard.secure(["a:1"], is_new=True, told=print)
    home.set_signed(7, 0, 3)
    Answers(guard, by_name(*(seen(site, last_signed=7) for site in ("beta", "gamma", "delta"))))
    await guard.secure(["a:1"], is_new=False, told=print)
    assert home.signed() == (7, 0, 3)


async def test_old_files_put_back_in_place_are_found_out_by_the_others(guard, home):
    await guard.secure(["a:1"], is_new=True, told=print)
    home.set_signed(7, 0, 3)
    Answers(guard, ALL)
    await guard.secure(["a:1"], is_new=False, told=print)
    assert home.signed() == (20, LAST_ROUND, 3)


async def test_a_lost_record_waits_until_enough_answer(guard, home):
    told = []
    answers = Answers(guard, {}, by_name(seen("beta")), ALL)
    await guard.secure(["a:1"], is_new=False, told=told.append)
    assert answers.asked == 3
    assert "waiting for other sites" in told[0]
    assert home.signed() == (20, LAST_ROUND, 3)


async def test_a_copied_folder_asks_too(guard, home, tmp_path):
    await guard.secure(["a:1"], is_new=True, told=print)
    home.set_signed(7, 0, 3)
    old = home.sign_state.parent
    old.rename(tmp_path / "before")
    old.mkdir()
    (tmp_path / "before" / home.sign_state.name).rename(home.sign_state)
    answers = Answers(guard, {}, ALL)
    await guard.secure(["a:1"], is_new=False, told=print)
    assert answers.asked == 2
    assert home.signed() == (20, LAST_ROUND, 3)


async def test_the_only_site_of_a_network_goes_on_with_a_copy(guard, home):
    await guard.secure([], is_new=False, told=print)
    assert home.signed() == (0, 0, 0)


def test_addresses_are_remembered(tmp_path: Path):
    peers = Peers(tmp_path / "peers.json")
    assert peers.load() == {}
    peers.save({"beta": "b:1"})
    assert peers.load() == {"beta": "b:1"}


def test_starting_comet_does_not_touch_the_record(home, tmp_path: Path):
    network = Network.found(LedgerConfig(), "alpha", "0x" + "11" * 20, home.keys.consensus_key())
    home.set_signed(9, 1, 2)
    home.prepare(network.comet_genesis, 1, 100)
    assert home.signed() == (9, 1, 2)
