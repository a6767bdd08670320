"""The geometric median in K x K numbers: once the peers' inner products are known, no iteration needs the models again.

With weights l that sum to 1, z = sum_k l_k x_k, any centre c and G_jk = <x_j - c, x_k - c>:
    |x_i - z|^2 = G_ii - 2 (G l)_i + l'G l.
Plain Python floats and exact sums (fsum), so that every machine finds the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from swarm_hpc.kernels.weights import median, quanta

Matrix = list[list[float]]

FAR: Final = 16.0
"""Spreads from the medoid, beyond which a search that has not come to its end is not near it either."""
MOST_HIDDEN: Final = 2.0**10
"""Spreads by which peers' parts in a step may cancel out without hiding how long it is: 2^-26 of it is rounded off."""


def medoid(squares: Matrix, parts: Sequence[float]) -> tuple[int, float]:
    """(peer, spread): the peer whose weighted median distance to all peers is the least, and that distance.

    `squares` holds the squared distances of each two peers, `parts` the weights as shares of 1.
    """
    counts = quanta(parts)
    spreads = [median([math.sqrt(square) for square in row], counts) for row in squares]
    spread = min(spreads)
    return spreads.index(spread), spread


def centred(squares: Matrix, centre: int) -> Matrix:
    """Inner products relative to one peer, from squared distances. Loses what is 2^-52 of the largest."""
    far = squares[centre]
    return [[(far[j] + far[k] - square) / 2 for k, square in enumerate(row)] for j, row in enumerate(squares)]


def weiszfeld(
    products: Matrix,
    parts: Sequence[float],
    spread: float,
    *,
    smoothing: float,
    tolerance: float,
    max_iterations: int,
) -> list[float]:
    """The weights, with sum 1, whose mean is `reference.geometric_median`; `spread` as from `medoid`, above 0.

    `products` are relative to the medoid.
    """
    own = [max(row[peer], 0.0) for peer, row in enumerate(products)]
    lengths = [math.sqrt(square) for square in own]

    def search(mixture: list[float]) -> tuple[list[float], bool]:
        """From there, and whether it came to its end."""
        for _ in range(max_iterations):
            before = mixture
            mixture = _step(parts, squared_distances(products, before), smoothing * spread)
            moved = [new - old for new, old in zip(mixture, before, strict=True)]
            short = _dot(moved, _times(products, moved)) <= (tolerance * spread) ** 2
            # where peers are far away on opposite sides, what is left may be nothing but rounding
            if short and _dot(map(abs, moved), lengths) <= MOST_HIDDEN * spread:
                return mixture, True
        return mixture, False

    found, ended = search(list(parts))
    if not ended and _dot(found, _times(products, found)) > (FAR * spread) ** 2:
        # The way back from the mean has too many steps where nearly half of the weight is far away: each leaves of it
        # that half as a part of the other. This start is at most 3 spreads from the medoid.
        found, _ = search(_step(parts, own, spread))
    return found


def squared_distances(products: Matrix, mixture: Sequence[float]) -> list[float]:
    """|x_k - z|^2 of each peer."""
    along = _times(products, mixture)
    middle = _dot(mixture, along)
    return [max(row[k] - 2 * along[k] + middle, 0.0) for k, row in enumerate(products)]


def _step(parts: Sequence[float], squares: Sequence[float], smoothing: float) -> list[float]:
    """The weights of the next point, from the squared distances of all peers to this one."""
    pulls = [part / math.sqrt(square + smoothing**2) for part, square in zip(parts, squares, strict=True)]
    total = math.fsum(pulls)
    return [pull / total for pull in pulls]


def _times(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    return [_dot(row, vector) for row in matrix]


def _dot(left: Iterable[float], right: Iterable[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))
