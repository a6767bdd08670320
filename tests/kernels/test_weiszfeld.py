"""The geometric median in K x K numbers."""

import numpy as np
import pytest

from swarm_hpc.kernels.weiszfeld import centred, medoid, weiszfeld

SETTINGS = {"smoothing": 1e-6, "tolerance": 1e-9, "max_iterations": 1000}


def squared_distances(points: np.ndarray) -> list[list[float]]:
    return (((points[:, None] - points[None]) ** 2).sum(-1)).tolist()


def test_inner_products_follow_from_squared_distances():
    points = np.random.default_rng(0).standard_normal((5, 9))
    for centre in range(5):
        relative = points - points[centre]
        assert np.allclose(centred(squared_distances(points), centre), relative @ relative.T, atol=1e-12)


def test_the_medoid_is_amid_the_majority_however_far_the_minority_is():
    points = np.array([[0.0], [1.0], [1.5], [3.0], [1e30]])
    assert medoid(squared_distances(points), [0.2] * 5) == (1, 1.0)


def test_the_spread_is_zero_where_more_than_half_of_the_weight_is_at_one_point():
    points = np.array([[5.0], [0.0], [5.0]])
    assert medoid(squared_distances(points), [0.3, 0.4, 0.3]) == (0, 0.0)


def test_a_square_meets_in_its_middle_and_a_kite_where_its_diagonals_cross():
    for points, crossing in (
        ([[0, 0], [1, 0], [1, 1], [0, 1]], [0.5, 0.5]),
        ([[0, 0], [1, -1], [5, 0], [1, 1]], [1, 0]),
    ):
        corners = np.array(points, float)
        squares = squared_distances(corners)
        centre, spread = medoid(squares, [0.25] * 4)
        mixture = weiszfeld(centred(squares, centre), [0.25] * 4, spread, **SETTINGS)
        assert sum(mixture) == pytest.approx(1)
        assert np.allclose(np.array(mixture) @ corners, crossing, atol=1e-6)


def test_it_ends_after_max_iterations():
    points = np.random.default_rng(1).standard_normal((4, 3))
    squares = squared_distances(points)
    centre, spread = medoid(squares, [0.25] * 4)
    mixture = weiszfeld(centred(squares, centre), [0.25] * 4, spread, **SETTINGS | {"max_iterations": 1})
    distances = np.linalg.norm(points - points.mean(0), axis=1)
    assert np.allclose(mixture, (1 / distances) / (1 / distances).sum(), rtol=1e-6)
