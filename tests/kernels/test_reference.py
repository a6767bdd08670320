"""The definitions themselves against independent oracles: numpy's quantile, geometry, a search around the minimum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import reference

METHODS = (reference.mean, reference.coord_median, reference.geometric_median)
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
