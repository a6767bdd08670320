"""Krum, centred clipping and the bounds of a trimmed mean, in K x K numbers: `reference.py` says what they mean.

Each result of the first two is one weighted mean of the peers' models; what is found here are its weights. Plain Python
floats and exact sums (fsum), as in weiszfeld.py, so that every machine finds the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.weights import shares
from swarm_hpc.kernels.weiszfeld import Matrix, centred, squared_distances


def krum(squares: Matrix, parts: Sequence[float], *, num_byzantine: int, num_selected: int) -> list[float]:
    """The weights, with sum 1, of `reference.multi_krum`; with num_selected=1 that is `reference.krum`.

    With n peers and f = num_byzantine, score_i = the sum of the n - f - 2 least |x_i - x_k|^2, k != i. The peers with
    the num_selected least scores are averaged by their `parts` (0: n - f of them), of equal scores the first ones;
    nobody's part counts in a score. Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent, 2017. Breakdown point: withstands f peers that send anything whatever, where 2f + 2 < n.

    `squares`: squared distances of each two peers. One that is not finite is infinitely far, so a peer with such values
    is one of the f, and never selected. MergeError: too few peers, or too few that are finite.
    """
    num_peers = len(squares)
    if num_peers < num_byzantine + 3:
        raise MergeError(
            f"Krum with num_byzantine={num_byzantine} needs at least {num_byzantine + 3} peers, here are {num_peers}: "
            f"set round.min_peers={num_byzantine + 3}, or a smaller merge.num_byzantine"
        )
    if num_selected > num_peers:
        raise MergeError(
            f"multi-Krum cannot select {num_selected} of {num_peers} peers: set a smaller merge.num_selected"
        )
    scores = [_score(row, peer, num_peers - num_byzantine - 2) for peer, row in enumerate(squares)]
    best = sorted(range(num_peers), key=scores.__getitem__)[: num_selected or num_peers - num_byzantine]
    selected = {peer for peer in best if math.isfinite(scores[peer])}
    if not selected:
        raise MergeError(f"too many of {num_peers} peers' parameters are not finite, for num_byzantine={num_byzantine}")
    return shares([part if peer in selected else 0.0 for peer, part in enumerate(parts)], num_peers)


def _score(row: Sequence[float], peer: int, num_neighbours: int) -> float:
    others = [square if math.isfinite(square) else math.inf for k, square in enumerate(row) if k != peer]
    return math.fsum(sorted(others)[:num_neighbours])


def centred_clipping(
    squares: Matrix,
    parts: Sequence[float],
    centre: int,
    spread: float,
    *,
    radius: float,
    iterations: int,
    products: Matrix | None = None,
) -> list[float]:
    """The weights, with sum 1, of `reference.centred_clipping`; all peers are finite, centre and spread `medoid`'s.

    From v = x_centre, so many times, with p the parts and tau = radius * spread:
        v <- v + sum_k p_k (x_k - v) min(1, tau / |x_k - v|).
    In the weights l of v = sum_k l_k x_k, with c_k = p_k min(1, tau / |x_k - v|):  l_k <- l_k (1 - sum_j c_j) + c_k.
    Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, 2021. Breakdown point: while others
    have more than half of the weight, the start is at most their diameter away from one of them, the spread is at most
    that diameter, and a step is at most tau long.

    `products`: inner products relative to the centre, for peers so far away that squared distances have lost them
    (mixture.MAX_SQUARED_RATIO).
    """
    inner = _inner(squares, centre) if products is None else products
    mixture = [float(peer == centre) for peer in range(len(parts))]
    for _ in range(iterations):
        pulls = [
            part * _clip(math.sqrt(square), radius * spread)
            for part, square in zip(parts, squared_distances(inner, mixture), strict=True)
        ]
        rest = 1 - math.fsum(pulls)
        mixture = [weight * rest + pull for weight, pull in zip(mixture, pulls, strict=True)]
    return mixture


def _inner(squares: Matrix, centre: int) -> Matrix:
    """`weiszfeld.centred`, within what lengths allow: rounding cannot let one that is far away pull by more."""
    far = [math.sqrt(square) for square in squares[centre]]
    return [
        [max(min(product, far[j] * far[k]), -far[j] * far[k]) for k, product in enumerate(row)]
        for j, row in enumerate(centred(squares, centre))
    ]


def _clip(distance: float, longest: float) -> float:
    return 1.0 if distance <= longest else longest / distance


def trim_bounds(counts: Sequence[int], trim: float) -> tuple[int, int]:
    """(low, high): in a trimmed mean each value counts with what lies between them of its own stretch of the weight.

    `counts`: weights from `weights.quanta`; a value's stretch begins where those of all smaller values end, of equal
    ones the earlier peer's. high - low, the same for all coordinates, is at least 1: divide by it.
    """
    total = sum(counts)
    # each unequal weight may be half a unit off, and peers with just `trim` of the weight must not get in by that
    slack = len(counts) if trim > 0 and len(set(counts)) > 1 else 0
    low = min(round(trim * total) + slack, (total - 1) // 2)
    return low, total - low
