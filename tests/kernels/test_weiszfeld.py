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


def products_of(points: np.ndarray, centre: int) -> list[list[float]]:
    away = points - points[centre]
    return (away @ away.T).tolist()


@pytest.mark.parametrize("far", [1e3, 1e38, 1e140])
def test_nearly_half_of_the_peers_cannot_move_it_however_far_away_they_are(far):
    honest = np.random.default_rng(2).standard_normal((21, 3))
    points = np.concatenate([honest, np.full((20, 3), far)])
    parts = [1 / 41] * 41
    centre, spread = medoid(squared_distances(points), parts)
    found = np.array(weiszfeld(products_of(points, centre), parts, spread, **SETTINGS)) @ points
    # a bound of the geometric median: 2 (1 - a) / (1 - 2 a) times how far the others are from the point, a = 20 / 41
    assert np.linalg.norm(found) <= 42 * np.linalg.norm(honest, axis=1).max()


def test_peers_far_away_on_opposite_sides_do_not_end_it_by_cancelling_out():
    """Rounding decides how long a step seems to be: not with every model it is short, but with some."""
    for seed in range(50):
        honest = 1 + 1e-6 * np.random.default_rng(seed).standard_normal((5, 8))
        points = np.concatenate([honest, [np.full(8, 1e15), np.full(8, -1e15)]])
        centre, spread = medoid(squared_distances(points), [1 / 7] * 7)
        mixture = weiszfeld(products_of(points, centre), [1 / 7] * 7, spread, **SETTINGS)
        pulls = np.array(mixture) * np.linalg.norm(points - points[centre], axis=1)
        assert pulls.max() <= spread


def test_numbers_that_are_no_models_products_are_no_error():
    """In a merge in shards a peer may state any."""
    products = [[0.0, 0.0, 0.0], [0.0, 1e300, 0.0], [0.0, 0.0, -1e200]]
    mixture = weiszfeld(products, [1 / 3] * 3, 1.0, **SETTINGS | {"max_iterations": 1})
    assert sum(mixture) == pytest.approx(1)
