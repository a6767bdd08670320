"""Krum, centred clipping and the bounds of a trimmed mean, against the definitions on whole models."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import reference
from swarm_hpc.kernels.robust import centred_clipping, krum, trim_bounds
from swarm_hpc.kernels.weights import quanta, shares
from swarm_hpc.kernels.weiszfeld import medoid

WEIGHTS = st.lists(st.integers(1, 100), min_size=4, max_size=12)
NUM_PARAMETERS = 17


def peers(num_peers, seed=0):
    return np.random.default_rng(seed).standard_normal((num_peers, NUM_PARAMETERS))


def attacked(num_honest, num_colluding, distance, seed=0):
    """Honest peers first, then some that all send the same, so far away."""
    points = peers(num_honest + num_colluding, seed)
    points[num_honest:] = distance / math.sqrt(NUM_PARAMETERS)
    return points


def squares_of(points):
    with np.errstate(invalid="ignore"):
        return ((points[:, None] - points[None]) ** 2).sum(-1).tolist()


def products_of(points, centre):
    away = points - points[centre]
    return (away @ away.T).tolist()


def clipped(points, weights, *, exact=False, radius=1.0, iterations=5):
    parts, squares = shares(weights, len(weights)), squares_of(points)
    centre, spread = medoid(squares, parts)
    products = products_of(points, centre) if exact else None
    return centred_clipping(squares, parts, centre, spread, radius=radius, iterations=iterations, products=products)


def by_reference(method, points, weights, **parameters):
    return method(torch.from_numpy(points), torch.tensor(weights, dtype=torch.float64), **parameters).numpy()


@given(WEIGHTS, st.integers(0, 3), st.integers(0, 12), st.integers(0, 1000))
def test_krum_selects_and_averages_as_the_definition_on_whole_models(weights, num_byzantine, num_selected, seed):
    points = peers(len(weights), seed)
    parameters = {
        "num_byzantine": min(num_byzantine, len(weights) - 3),
        "num_selected": min(num_selected, len(weights)),
    }
    mixture = krum(squares_of(points), shares(weights, len(weights)), **parameters)
    assert sum(mixture) == pytest.approx(1)
    assert np.allclose(mixture @ points, by_reference(reference.multi_krum, points, weights, **parameters))


def test_krum_is_one_peer_and_multi_krum_the_mean_of_the_selected_by_their_weights():
    points, parts = peers(6), shares([1, 2, 3, 4, 5, 6], 6)
    one = krum(squares_of(points), parts, num_byzantine=1, num_selected=1)
    assert sorted(one) == [0, 0, 0, 0, 0, 1]
    three = krum(squares_of(points), parts, num_byzantine=1, num_selected=3)
    chosen = [peer for peer, weight in enumerate(three) if weight]
    assert len(chosen) == 3
    assert three[one.index(1)] > 0
    assert [three[peer] for peer in chosen] == pytest.approx(shares([peer + 1 for peer in chosen], 3))
    default = krum(squares_of(points), parts, num_byzantine=1, num_selected=0)
    assert sum(weight > 0 for weight in default) == 5


def test_of_equal_scores_the_first_peer_is_krums():
    points = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert krum(squares_of(points), [0.25] * 4, num_byzantine=0, num_selected=1) == [0, 1, 0, 0]
    assert krum(squares_of(points[:1].repeat(4, 0)), [0.25] * 4, num_byzantine=1, num_selected=1) == [1, 0, 0, 0]


def test_a_heavy_weight_makes_no_peer_krums():
    points = attacked(5, 1, 1e3)
    light, heavy = shares([1] * 6, 6), shares([1, 1, 1, 1, 1, 100], 6)
    for parts in (light, heavy):
        assert krum(squares_of(points), parts, num_byzantine=1, num_selected=1)[5] == 0


@pytest.mark.parametrize("distance", [30.0, 1e3, 1e12, 1e120])
@pytest.mark.parametrize("num_byzantine", [1, 2, 3])
def test_krum_selects_none_of_the_colluding_peers(num_byzantine, distance):
    # the fewest honest peers with 2 f + 2 < n
    points = attacked(num_byzantine + 3, num_byzantine, distance)
    parts = shares([1] * len(points), len(points))
    for num_selected in (1, 0):
        mixture = krum(squares_of(points), parts, num_byzantine=num_byzantine, num_selected=num_selected)
        assert sum(mixture[: num_byzantine + 3]) == pytest.approx(1)


def test_a_peer_that_is_not_finite_is_one_of_the_byzantine_ones():
    points = peers(5)
    points[1, 3] = math.nan
    mixture = krum(squares_of(points), [0.2] * 5, num_byzantine=1, num_selected=5)
    assert mixture == pytest.approx([0.25, 0, 0.25, 0.25, 0.25])
    assert np.allclose(
        mixture @ np.nan_to_num(points),
        by_reference(reference.multi_krum, points, [1] * 5, num_byzantine=1, num_selected=5),
    )
    points[2:4] = math.inf
    with pytest.raises(MergeError, match="too many of 5 peers' parameters are not finite"):
        krum(squares_of(points), [0.2] * 5, num_byzantine=1, num_selected=1)


def test_too_few_peers_for_krum_are_refused_with_the_remedy():
    with pytest.raises(MergeError, match=r"needs at least 4 peers, here are 3: set round\.min_peers=4"):
        krum(squares_of(peers(3)), [1 / 3] * 3, num_byzantine=1, num_selected=1)
    with pytest.raises(MergeError, match="cannot select 5 of 4 peers"):
        krum(squares_of(peers(4)), [0.25] * 4, num_byzantine=1, num_selected=5)


@given(WEIGHTS, st.sampled_from([0.1, 0.5, 1.0, 3.0]), st.integers(1, 20), st.integers(0, 1000))
def test_centred_clipping_is_the_definition_on_whole_models(weights, radius, iterations, seed):
    points = peers(len(weights), seed)
    mixture = clipped(points, weights, radius=radius, iterations=iterations)
    wanted = by_reference(reference.centred_clipping, points, weights, radius=radius, iterations=iterations)
    assert math.fsum(mixture) == pytest.approx(1)
    assert min(mixture) >= 0
    assert np.allclose(mixture @ points, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("distance", "tolerance"), [(10.0, 1e-9), (1e3, 1e-9), (1e6, 1e-6)])
def test_centred_clipping_with_colluding_peers_is_the_definition(distance, tolerance):
    points = attacked(5, 2, distance)
    wanted = by_reference(reference.centred_clipping, points, [1] * 7)
    assert np.allclose(clipped(points, [1] * 7) @ points, wanted, atol=tolerance)


@pytest.mark.parametrize("distance", [1e9, 1e12])
def test_centred_clipping_takes_inner_products_where_distances_have_lost_them(distance):
    points = attacked(5, 2, distance)
    wanted = by_reference(reference.centred_clipping, points, [1] * 7)
    assert np.allclose(clipped(points, [1] * 7, exact=True) @ points, wanted, atol=1e-3)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("distance", [10.0, 1e6, 1e12, 1e100])
def test_colluding_peers_move_centred_clipping_no_farther_than_its_steps(distance, exact):
    points = attacked(5, 4, distance)
    squares, parts = squares_of(points), shares([1] * 9, 9)
    centre, spread = medoid(squares, parts)
    assert centre < 5
    mixture = clipped(points, [1] * 9, exact=exact, radius=0.5, iterations=4)
    assert np.linalg.norm(mixture @ points - points[centre]) <= 4 * 0.5 * spread * (1 + 1e-9)


def test_centred_clipping_with_a_wide_radius_is_the_mean():
    points, weights = peers(5), [1, 2, 3, 4, 5]
    assert clipped(points, weights, radius=1e3) == pytest.approx(shares(weights, 5))


def test_more_than_half_of_the_weight_in_one_point_is_where_centred_clipping_stays():
    points = peers(5)
    points[:3] = points[0]
    assert clipped(points, [1] * 5) == [1, 0, 0, 0, 0] or np.allclose(clipped(points, [1] * 5) @ points, points[0])


def test_equal_weights_are_trimmed_by_whole_peers():
    for num_peers in range(1, 40):
        counts = quanta(shares([0.1] * num_peers, num_peers))
        for dropped in range((num_peers + 1) // 2):
            low, high = trim_bounds(counts, dropped / num_peers)
            assert (low, high) == (dropped * counts[0], (num_peers - dropped) * counts[0])


@given(WEIGHTS, st.floats(0, 0.5, exclude_max=True))
def test_peers_with_just_so_much_weight_are_trimmed_and_something_is_left(weights, trim):
    counts = quanta(shares(weights, len(weights)))
    low, high = trim_bounds(counts, trim)
    assert 0 <= low < high <= sum(counts)
    assert low + high == sum(counts)
    for number in range(len(weights)):
        # the first `number` peers at one end, with exactly that part of the weight
        share = sum(weights[:number]) / sum(weights)
        if 0 < share < 0.499:
            low, _ = trim_bounds(counts, share)
            assert sum(counts[:number]) <= low
