"""The definitions themselves against independent oracles: numpy's quantile, geometry, a search around the minimum."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import reference

METHODS = (
    reference.mean,
    reference.coord_median,
    partial(reference.trimmed_mean, trim=0.2),
    reference.geometric_median,
    reference.centred_clipping,
)
KRUMS = (partial(reference.krum, num_byzantine=1), partial(reference.multi_krum, num_byzantine=1))
whole_weights = st.lists(st.integers(0, 100), min_size=1, max_size=9).filter(any)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def peers(num_peers: int, num_parameters: int = 13, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_peers, num_parameters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost(stack: torch.Tensor, weights: list[float], point: torch.Tensor) -> float:
    return float((tensor(weights) * (stack - point).norm(dim=1)).sum())


def test_mean_weighs_each_peer():
    assert reference.mean(tensor([[1.0, 2.0], [4.0, 8.0]]), tensor([3, 1])).tolist() == [1.75, 3.5]


def test_one_nan_makes_the_mean_nan_there_and_nowhere_else():
    merged = reference.mean(tensor([[1.0, 2.0], [math.nan, 8.0]]), tensor([1, 1]))
    assert merged.isnan().tolist() == [True, False]


def test_equal_weights_give_the_plain_median_and_an_even_number_the_mean_of_the_middle_two():
    for num_peers in range(1, 10):
        stack = peers(num_peers)
        merged = reference.coord_median(stack, torch.full((num_peers,), 0.1))
        assert np.allclose(merged, np.median(stack.numpy(), axis=0), rtol=1e-15)


@given(whole_weights, st.integers(0, 1000))
def test_the_weighted_median_is_numpys_inverted_cdf_where_no_cumulative_weight_is_one_half(weights, seed):
    stack = peers(len(weights), 5, seed)
    merged = reference.coord_median(stack, tensor(weights)).numpy()
    for column, found in zip(stack.numpy().T, merged, strict=True):
        order = np.argsort(column)
        cumulative = np.cumsum(np.array(weights)[order])
        lower = np.quantile(column, 0.5, weights=weights, method="inverted_cdf")
        if 2 * cumulative[cumulative * 2 >= sum(weights)][0] != sum(weights):
            assert found == lower
        else:
            upper = column[order][np.argmax(2 * cumulative > sum(weights))]
            assert found == pytest.approx((lower + upper) / 2)


def test_a_half_is_a_half_although_weights_are_fractions():
    # 0.1 + 0.2 is not 0.3 in floating point
    assert reference.coord_median(tensor([[1.0], [2.0], [5.0]]), tensor([0.1, 0.2, 0.3])).item() == 3.5


def test_a_minority_of_nan_and_infinity_does_not_reach_the_median():
    stack = tensor([[1.0], [2.0], [math.nan], [3.0], [-math.inf]])
    assert reference.coord_median(stack, torch.ones(5)).item() == 2.0
    assert reference.coord_median(tensor([[math.nan], [math.nan], [1.0]]), torch.ones(3)).item() == math.inf


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [3, 1, 2, 1, 1], [0, 1, 1, 1, 1]])
def test_no_point_nearby_has_a_smaller_sum_of_distances_than_the_geometric_median(weights):
    stack = peers(5, 3)
    merged = reference.geometric_median(stack, tensor(weights))
    least = cost(stack, weights, merged)
    for direction in peers(60, 3, seed=1):
        for length in (1e-1, 1e-2, 1e-3):
            assert cost(stack, weights, merged + length * direction) > least


def test_the_geometric_median_of_a_triangle_sees_each_side_at_120_degrees():
    corners = tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    merged = reference.geometric_median(corners, torch.ones(3))
    rays = torch.nn.functional.normalize(corners - merged, dim=1)
    assert torch.allclose(rays @ rays.T, tensor([[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]]), atol=1e-6)


def test_more_than_half_of_the_weight_decides_alone():
    stack = peers(3)
    for method in (reference.coord_median, reference.geometric_median):
        assert torch.equal(method(stack, tensor([2, 5, 2])), stack[1])


def test_a_peer_that_is_not_finite_has_no_weight_in_the_geometric_median():
    stack = peers(4)
    stack[1, 3], stack[2, 0] = math.nan, -math.inf
    merged = reference.geometric_median(stack, tensor([1, 1, 1, 1]))
    assert torch.allclose(merged, (stack[0] + stack[3]) / 2)
    with pytest.raises(MergeError, match="no peer's parameters are finite"):
        reference.geometric_median(stack[1:3], torch.ones(2))


@pytest.mark.parametrize("method", METHODS)
def test_identical_peers_are_their_own_merge(method):
    stack = peers(1).expand(7, -1)
    assert torch.allclose(method(stack, tensor([1, 2, 3, 4, 5, 6, 7])), stack[0], rtol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_a_peer_of_weight_zero_has_no_influence(method):
    stack = peers(4)
    stack[2] = math.nan
    assert torch.equal(method(stack, tensor([1, 2, 0, 3])), method(stack[[0, 1, 3]], tensor([1, 2, 3])))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [[], [1], [0, 0], [1, -1], [1, math.nan], [1, math.inf]])
def test_weights_that_say_nothing_are_refused(method, weights):
    with pytest.raises(MergeError):
        method(peers(2), tensor(weights))


@pytest.mark.parametrize("method", KRUMS)
def test_krum_has_the_merge_of_identical_peers_and_no_use_for_one_of_weight_zero(method):
    assert method(peers(1).repeat(5, 1), torch.ones(5)).tolist() == pytest.approx(peers(1)[0].tolist())
    stack = peers(6)
    assert torch.equal(method(stack, tensor([0, 1, 2, 3, 1, 1])), method(stack[1:], tensor([1, 2, 3, 1, 1])))


@given(st.integers(1, 12), st.data())
def test_equal_weights_drop_whole_peers_from_the_trimmed_mean(num_peers, data):
    dropped = data.draw(st.integers(0, (num_peers - 1) // 2))
    stack = peers(num_peers, 7)
    merged = reference.trimmed_mean(stack, torch.full((num_peers,), 0.3), trim=dropped / num_peers)
    kept = np.sort(stack.numpy(), axis=0)[dropped : num_peers - dropped]
    assert np.allclose(merged, kept.mean(0), rtol=1e-14, atol=1e-14)


@given(whole_weights, st.integers(0, 49), st.integers(0, 1000))
def test_a_weighted_trimmed_mean_is_that_of_as_many_equal_peers(weights, percent, seed):
    stack, trim = peers(len(weights), 5, seed), percent / 100
    merged = reference.trimmed_mean(stack, tensor(weights), trim=trim).numpy()
    # 100 of each: a whole number of them is dropped
    copies = np.sort(stack.numpy().repeat([100 * weight for weight in weights], axis=0), axis=0)
    dropped = percent * sum(weights)
    assert np.allclose(merged, copies[dropped : len(copies) - dropped].mean(0), atol=1e-6)


def test_a_trim_of_nearly_one_half_gives_the_median():
    for num_peers in (1, 2, 5, 8):
        stack, weights = peers(num_peers), torch.ones(num_peers)
        merged = reference.trimmed_mean(stack, weights, trim=math.nextafter(0.5, 0))
        assert torch.allclose(merged, reference.coord_median(stack, weights))


@pytest.mark.parametrize("bad", [[math.nan, math.inf], [-math.inf, -math.inf], [math.nan, -math.inf], [1e308, 1e308]])
@pytest.mark.parametrize("weights", [[1] * 10, [3, 1, 2, 1, 4, 2, 1, 2, 2, 2]])
def test_what_is_not_finite_is_trimmed_where_it_has_no_more_than_that_weight(bad, weights):
    stack = peers(10)
    stack[[0, 1]] = tensor(bad)[:, None].expand(2, 13)
    merged = reference.trimmed_mean(stack, tensor(weights), trim=0.2)
    assert (stack[2:].min(0).values <= merged).all()
    assert (merged <= stack[2:].max(0).values).all()
    assert not reference.trimmed_mean(stack, tensor(weights), trim=0.01).abs().max() < 1e100


def test_krum_is_the_peer_amid_its_neighbours():
    stack = tensor([[0.0], [1.0], [3.0], [4.5], [100.0]])
    # the sums of the two least squares: 1 + 9, 1 + 4, 4 + 2.25, 2.25 + 12.25, 95.5^2 + 97^2
    assert reference.krum(stack, torch.ones(5), num_byzantine=1).tolist() == [1.0]
    assert reference.multi_krum(
        stack, tensor([1, 3, 2, 1, 1]), num_byzantine=1, num_selected=2
    ).tolist() == pytest.approx([1.8])
    assert reference.multi_krum(stack, torch.ones(5), num_byzantine=1).tolist() == [2.125]


def test_krum_takes_a_peer_that_is_not_finite_for_the_farthest_one():
    stack = peers(5)
    without = reference.multi_krum(stack, torch.ones(5), num_byzantine=1, num_selected=5)
    assert torch.allclose(without, stack.mean(0))
    stack[2, 0] = -math.inf
    merged = reference.multi_krum(stack, torch.ones(5), num_byzantine=1, num_selected=5)
    assert torch.allclose(merged, stack[[0, 1, 3, 4]].mean(0))


def test_krum_of_too_few_peers_is_refused():
    for method in KRUMS:
        with pytest.raises(MergeError):
            method(peers(3), torch.ones(3))
    stack = peers(5)
    stack[:3] = math.nan
    with pytest.raises(MergeError):
        reference.krum(stack, torch.ones(5), num_byzantine=1)


def test_a_step_of_centred_clipping_is_shorter_the_smaller_the_radius():
    stack = tensor([[0.0], [1.0], [3.0], [100.0], [1000.0]])
    # from 1, where the median of the distances 0, 1, 2, 99, 999 is 2: (-1 + 0 + 2 + 2 + 2) / 5 farther
    assert reference.centred_clipping(stack, torch.ones(5), iterations=1).tolist() == [2.0]
    assert reference.centred_clipping(stack, torch.ones(5), radius=0.5, iterations=1).tolist() == [1.4]
    assert reference.centred_clipping(stack, torch.ones(5), radius=1e6).tolist() == pytest.approx([220.8])


def test_a_peer_that_is_not_finite_has_no_weight_in_centred_clipping():
    stack = peers(5)
    wanted = reference.centred_clipping(stack[:4], torch.ones(4))
    stack[4, 1] = math.nan
    assert torch.allclose(reference.centred_clipping(stack, torch.ones(5)), wanted)
