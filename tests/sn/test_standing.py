"""Whose clock is wrong, as far as the votes for a block tell."""

from __future__ import annotations

import pytest

from swarm_hpc.sn.standing import clock_skew_s

LATER = 500.0
"""How long ago the newest block came: the ledger is quiet most of the time."""


@pytest.mark.parametrize(
    ("votes", "own", "clock", "skew"),
    [
        pytest.param({"a": 0, "b": 1, "c": 0, "d": 1}, "a", 0, 0, id="all the same"),
        pytest.param({"a": 0, "b": 0, "c": 30}, "c", 30, 30, id="the own one is ahead"),
        pytest.param({"a": 0, "b": 0, "c": 30}, "a", 0, 0, id="another one is ahead"),
        pytest.param({"a": 0, "c": 30, "d": 0}, "a", 0, 0, id="another one is ahead and one vote is missing"),
        pytest.param({"a": 0, "c": 30}, "a", 0, 0, id="two votes that differ"),
        pytest.param({"b": 0, "c": 0, "d": 0}, "d", -30 - LATER, -30, id="the own one is behind"),
        pytest.param({"b": 0, "c": 0}, "a", 0, 0, id="the own vote is not in the commit"),
        pytest.param({"a": 30}, "a", 30, 0, id="nobody to compare with"),
        pytest.param({}, "a", 0, 0, id="no block yet"),
    ],
)
def test_a_clock_is_wrong_that_differs_from_most(votes, own, clock, skew):
    now = 1e9 + clock + LATER
    assert clock_skew_s({site: 1e9 + at for site, at in votes.items()}, own, now) == skew
