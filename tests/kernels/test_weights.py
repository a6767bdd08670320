"""Shares and quanta of the peers' weights."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.weights import QUANTA, median, quanta, shares

weights = st.lists(st.floats(0, 1e300), min_size=1, max_size=9).filter(any)


@given(weights)
def test_shares_keep_the_ratios_and_sum_to_one(drawn):
    found = shares(drawn, len(drawn))
    assert math.fsum(found) == pytest.approx(1)
    for share, weight in zip(found, drawn, strict=True):
        assert share == pytest.approx(max(found) * (weight / max(drawn)))


@given(weights)
def test_quanta_are_the_shares_to_half_a_unit(drawn):
    found = shares(drawn, len(drawn))
    assert all(abs(count - share * QUANTA) <= 0.5 for count, share in zip(quanta(found), found, strict=True))
    assert abs(sum(quanta(found)) - QUANTA) <= len(drawn) / 2 + 1e-3


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=9))
def test_the_median_of_equal_weights_is_the_plain_one(values):
    assert median(values, quanta(shares([0.3] * len(values), len(values)))) == np.median(values)


def test_a_heavier_value_draws_the_median():
    assert median([1.0, 2.0, 10.0], quanta(shares([1, 1, 3], 3))) == 10
    assert median([1.0, 2.0, 10.0], quanta(shares([1, 1, 2], 3))) == 6
    assert median([10.0, 2.0, 1.0], quanta(shares([1, 0, 1], 3))) == 5.5


@pytest.mark.parametrize(
    ("given_weights", "num_peers"),
    [([], 0), ([1], 2), ([1, 2], 1), ([0, 0], 2), ([1, -1], 2), ([math.nan], 1), ([math.inf, 1], 2)],
)
def test_weights_that_say_nothing_are_refused(given_weights, num_peers):
    with pytest.raises(MergeError):
        shares(given_weights, num_peers)
