"""The rule of voting power: a pure function of the Registry's sites and the commits' votes."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm_hpc.config import PowerRule
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn.powers import UNIT, Rule, Standing, Vote, address_of, has_quorum, shares, step

RULE = Rule(power=PowerRule.SENIOR, jail_after_s=60)
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta")


def key_of(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def site(name: str, *, announced: int = 1, active: bool = True) -> SiteRecord:
    return SiteRecord(
        name=name,
        account="0x0",
        endpoint="h:1",
        ca_fingerprint="",
        consensus_key=key_of(name),
        p2p_id="",
        active=active,
        joined_at=0,
        announced=announced,
    )


def sites(num: int) -> list[SiteRecord]:
    return [site(name) for name in NAMES[:num]]


def votes(standing: Standing, *absent: str) -> list[Vote]:
    away = {key_of(name) for name in absent}
    return [Vote(address=address_of(key), present=key not in away) for key in standing.powers]


def founded(num: int) -> Standing:
    """The standing of a network in which those sites have come to be."""
    standing = Standing(powers={key_of("alpha"): UNIT})
    return step(standing, sites(num), votes(standing), 1000, RULE)


def powers(standing: Standing) -> dict[str, int]:
    names = {key_of(name): name for name in NAMES}
    return {names[key]: power for key, power in standing.powers.items()}


# --- shares ---


@pytest.mark.parametrize(
    ("num_sites", "expected"),
    [(1, [1]), (2, [3, 1]), (3, [2, 1, 1]), (4, [1] * 4), (5, [1] * 5), (6, [1] * 6), (7, [1] * 7)],
)
def test_the_senior_site_carries_more_below_four_sites(num_sites, expected):
    assert list(shares(num_sites, PowerRule.SENIOR)) == expected
    assert list(shares(num_sites, PowerRule.EQUAL)) == [1] * num_sites


def test_of_two_sites_the_senior_one_alone_goes_on_and_the_other_does_not():
    assert has_quorum(3, 4)
    assert not has_quorum(1, 4)


def test_of_three_sites_the_senior_one_and_any_other_go_on_and_no_others_do():
    assert has_quorum(2 + 1, 4)
    assert not has_quorum(2, 4)
    assert not has_quorum(1 + 1, 4)


@pytest.mark.parametrize(("num_sites", "may_be_down"), [(4, 1), (5, 1), (6, 1), (7, 2)])
def test_from_four_sites_on_fewer_than_a_third_may_be_down(num_sites, may_be_down):
    assert has_quorum(num_sites - may_be_down, num_sites)
    assert not has_quorum(num_sites - may_be_down - 1, num_sites)


@pytest.mark.parametrize("total", [3, 30, 300])
def test_exactly_two_thirds_are_no_quorum(total):
    assert not has_quorum(2 * total // 3, total)
    assert has_quorum(2 * total // 3 + 1, total)


# --- joining and leaving ---


def test_a_site_gets_power_by_its_first_announcement():
    before = founded(3)
    admitted = [*sites(3), site("delta", announced=0)]
    assert step(before, admitted, votes(before), 1001, RULE) == before
    after = step(before, sites(4), votes(before), 1001, RULE)
    assert powers(after) == dict.fromkeys(NAMES[:4], UNIT)
    assert before.updates(after) == {key_of("alpha"): UNIT, key_of("delta"): UNIT}


def test_a_removed_site_has_no_power_and_announcing_itself_does_not_help():
    before = founded(4)
    without = [*sites(3), site("delta", announced=2, active=False)]
    after = step(before, without, votes(before), 1001, RULE)
    assert powers(after) == {"alpha": 2 * UNIT, "beta": UNIT, "gamma": UNIT}
    assert before.updates(after) == {key_of("alpha"): 2 * UNIT, key_of("delta"): 0}


def test_a_site_that_is_admitted_again_has_to_announce_itself_once_more():
    before = founded(4)
    removed = step(before, [*sites(3), site("delta", active=False)], votes(before), 1001, RULE)
    again = step(removed, sites(4), votes(removed), 1002, RULE)
    assert "delta" not in powers(again)
    announced = step(again, [*sites(3), site("delta", announced=2)], votes(again), 1003, RULE)
    assert powers(announced)["delta"] == UNIT


def test_a_site_with_a_new_key_has_power_when_it_has_announced_itself_with_it():
    before = step(founded(4), sites(4), votes(founded(4)), 1000, RULE)
    changed = replace(site("delta"), consensus_key="ee" * 32)
    after = step(before, [*sites(3), changed], votes(before), 1001, RULE)
    assert before.updates(after) == {key_of("delta"): 0, key_of("alpha"): 2 * UNIT}
    still = step(after, [*sites(3), changed], votes(after), 1002, RULE)
    assert after.updates(still) == {}
    announced = step(still, [*sites(3), replace(changed, announced=2)], votes(still), 1003, RULE)
    assert still.updates(announced) == {"ee" * 32: UNIT, key_of("alpha"): UNIT}


def test_a_site_of_the_embedded_ledger_has_no_say():
    before = founded(4)
    keyless = replace(site("epsilon"), consensus_key="")
    assert step(before, [*sites(4), keyless], votes(before), 1001, RULE).powers == before.powers


# --- jailing ---


def test_a_site_loses_its_power_after_a_whole_while_of_absence_and_not_before():
    standing = founded(4)
    for time_s in (1001, 1030, 1060):
        standing = step(standing, sites(4), votes(standing, "delta"), time_s, RULE)
        assert "delta" in powers(standing)
    standing = step(standing, sites(4), votes(standing, "delta"), 1061, RULE)
    assert powers(standing) == {"alpha": 2 * UNIT, "beta": UNIT, "gamma": UNIT}
    assert standing.jailed == {"delta": 1}
    assert standing.missing_since == {}


def test_one_vote_in_between_starts_the_count_anew():
    standing = step(founded(4), sites(4), votes(founded(4), "delta"), 1001, RULE)
    standing = step(standing, sites(4), votes(standing), 1050, RULE)
    assert standing.missing_since == {}
    standing = step(standing, sites(4), votes(standing, "delta"), 1051, RULE)
    standing = step(standing, sites(4), votes(standing, "delta"), 1110, RULE)
    assert "delta" in powers(standing)


def test_a_validator_that_was_not_asked_yet_is_not_absent():
    standing = founded(4)
    asked = [vote for vote in votes(standing) if vote.address != address_of(key_of("delta"))]
    assert step(standing, sites(4), asked, 5000, RULE).missing_since == {}


def jailed_delta() -> Standing:
    standing = founded(4)
    for time_s in (1001, 1061):
        standing = step(standing, sites(4), votes(standing, "delta"), time_s, RULE)
    return standing


def test_a_jailed_site_is_back_by_a_new_announcement_only():
    standing = jailed_delta()
    for time_s in (1062, 9999):
        standing = step(standing, sites(4), votes(standing), time_s, RULE)
        assert "delta" not in powers(standing)
    back = [*sites(3), site("delta", announced=2)]
    standing = step(standing, back, votes(standing), 10000, RULE)
    assert powers(standing) == dict.fromkeys(NAMES[:4], UNIT)
    assert standing.jailed == {}


def test_a_site_that_is_back_has_the_whole_while_again():
    standing = jailed_delta()
    back = [*sites(3), site("delta", announced=2)]
    standing = step(standing, back, votes(standing), 2000, RULE)
    standing = step(standing, back, votes(standing, "delta"), 2001, RULE)
    standing = step(standing, back, votes(standing, "delta"), 2060, RULE)
    assert "delta" in powers(standing)
    standing = step(standing, back, votes(standing, "delta"), 2061, RULE)
    assert standing.jailed == {"delta": 2}


def test_the_power_shrinks_with_the_network_so_that_the_rest_has_a_quorum():
    standing = jailed_delta()
    assert has_quorum(standing.powers[key_of("alpha")] + UNIT, sum(standing.powers.values()))


def test_nobody_is_jailed_when_nobody_would_be_left():
    standing = Standing(powers={key_of("alpha"): UNIT})
    for time_s in (1000, 2000):
        standing = step(standing, sites(1), votes(standing, "alpha"), time_s, RULE)
        assert powers(standing) == {"alpha": UNIT}


# --- whatever happens ---

TRIED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SITES = st.lists(st.tuples(st.booleans(), st.integers(min_value=0, max_value=3)), min_size=1, max_size=len(NAMES)).map(
    lambda drawn: [site(NAMES[at], active=active, announced=n) for at, (active, n) in enumerate(drawn)]
)
BLOCK = st.tuples(SITES, st.sets(st.sampled_from(NAMES)), st.integers(min_value=0, max_value=70))


def history(blocks, rule):
    """Every standing that these blocks lead through, with the sites that led there."""
    standing, time_s = Standing(powers={key_of("alpha"): UNIT}), 1000
    yield standing, sites(1)
    for registry, absent, seconds in blocks:
        time_s += seconds
        standing = step(standing, registry, votes(standing, *absent), time_s, rule)
        yield standing, registry


@TRIED
@given(st.lists(BLOCK, max_size=12), st.sampled_from(PowerRule))
def test_whatever_happens_the_updates_lead_from_one_set_to_the_next_and_it_is_never_empty(blocks, power):
    rule = Rule(power=power, jail_after_s=60)
    steps = [standing for standing, _ in history(blocks, rule)]
    validators = dict(steps[0].powers)
    for before, after in pairwise(steps):
        updates = before.updates(after)
        assert all(key in validators for key, power in updates.items() if not power)  # CometBFT refuses others
        validators = {key: power for key, power in (validators | updates).items() if power}
        assert validators == after.powers
        assert validators


@TRIED
@given(st.lists(BLOCK, max_size=12))
def test_whatever_happens_only_announced_member_sites_have_power_and_jailed_ones_do_not(blocks):
    for standing, registry in history(blocks, RULE):
        able = {one.consensus_key for one in registry if one.active and one.announced}
        if able - {key_of(name) for name in standing.jailed}:
            assert set(standing.powers) <= able
            assert not set(standing.powers) & {key_of(name) for name in standing.jailed}


@TRIED
@given(st.lists(BLOCK, max_size=12))
def test_the_same_blocks_lead_to_the_same_text_also_after_a_restart_at_each(blocks):
    standing, time_s = Standing(powers={key_of("alpha"): UNIT}), 1000
    for (again, _), (registry, absent, seconds) in zip(list(history(blocks, RULE))[1:], blocks, strict=True):
        time_s += seconds
        standing = Standing.from_json(standing.as_json())
        standing = step(standing, registry, votes(standing, *absent), time_s, RULE)
        assert standing == again
        assert standing.as_json() == again.as_json()


def test_a_validators_address_is_the_beginning_of_its_keys_hash():
    assert address_of("00" * 32) == bytes.fromhex("66687aadf862bd776c8fc18b8e9f8e2008971485")
