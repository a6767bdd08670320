"""What each merge method means, in torch and float64. Every other backend repeats these names and is tested against it.

Plain rather than quick, and needs torch: only tests and benchmarks import it.

Shapes: K peers, P parameters; `stack_KP` holds one peer's flat parameters per row, `weight_K` one weight per peer.
Weights matter by their ratios only. A peer of weight 0 has no influence, whatever its values are.
"""

# ruff: noqa: N803, N806 (a name's last letters are its shape)
from __future__ import annotations

import math

import torch
from torch import Tensor

from swarm_hpc.errors import MergeError

QUANTA = 1 << 30
"""coord_median, trimmed_mean: the sum of all weights, in the units to which they are rounded."""
LIMIT = 2.0**480
"""Methods with distances: values beyond it count as not finite, so that sums of squares are."""
NO_SPREAD = 2.0**-400
"""Methods with distances: peers no farther apart than this are at one point."""


def mean(stack_KP: Tensor, weight_K: Tensor) -> Tensor:
    """Weighted mean: [K, P], [K] -> [P] in float64. NaN wherever a peer has NaN.

    mean_p = sum_k w_k x_kp / sum_k w_k
    """
    stack_KP, weight_K = _checked(stack_KP, weight_K)
    return (weight_K[:, None] * stack_KP).sum(0)


def coord_median(stack_KP: Tensor, weight_K: Tensor) -> Tensor:
    """Weighted median of each coordinate: [K, P], [K] -> [P] in float64.

    Sort a coordinate's values, and let c_j be the weight of the first j of them, W that of all. Then
        lower = the first value at which c_j >= W/2,  upper = the first at which c_j > W/2,  median = lower/2 + upper/2.
    The two differ only where the weight up to some value is exactly one half. So equal weights give the plain median
    (an even K: the mean of the middle two), and otherwise this is numpy's quantile(weights=, method="inverted_cdf").

    That "exactly" be exact, weights are rounded to whole multiples of W/2^30, and K/2 of these are no difference.
    NaN counts as +infinity: less than half of the weight, whatever its values, cannot make the result infinite.
    """
    stack_KP, weight_K = _checked(stack_KP, weight_K)
    num_peers = len(weight_K)
    quanta_K = (weight_K * QUANTA).round().long()
    values_KP, order_KP = stack_KP.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).sort(0)
    twice_cumulative_KP = 2 * quanta_K[order_KP].cumsum(0)
    # bool has no order of its own in argmax, int8 does: the first 1
    lower_P = (twice_cumulative_KP >= quanta_K.sum() - num_peers).to(torch.int8).argmax(0)
    upper_P = (twice_cumulative_KP > quanta_K.sum() + num_peers).to(torch.int8).argmax(0)
    return values_KP.gather(0, lower_P[None])[0] / 2 + values_KP.gather(0, upper_P[None])[0] / 2


def trimmed_mean(stack_KP: Tensor, weight_K: Tensor, *, trim: float) -> Tensor:
    """Weighted mean of each coordinate without its extremes: [K, P], [K] -> [P] in float64.

    Sort a coordinate's values, and lay their weights end to end from 0 to W. Each value counts with what lies between
    trim W and (1 - trim) W of its own stretch. With equal weights and a whole trim K that is the mean of all but the
    trim K largest and the trim K smallest values (Yin et al., Byzantine-Robust Distributed Learning, 2018).

    Breakdown point: trim. Peers with at most that part of the weight cannot take a coordinate out of the range of the
    others' values; with NaN, which counts as +infinity, or an infinity neither. To hold exactly, weights are rounded to
    whole multiples of W/2^30, and unequal ones have K of these more dropped at each end.
    """
    stack_KP, weight_K = _checked(stack_KP, weight_K)
    quanta_K = (weight_K * QUANTA).round().long()
    total = int(quanta_K.sum())
    slack = len(quanta_K) if trim > 0 and len(set(quanta_K.tolist())) > 1 else 0
    # at least one unit is left: trim near 0.5 gives the median
    low = min(round(trim * total) + slack, (total - 1) // 2)
    values_KP, order_KP = stack_KP.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).sort(dim=0, stable=True)
    after_KP = quanta_K[order_KP].cumsum(0)
    before_KP = after_KP - quanta_K[order_KP]
    counted_KP = (after_KP.clamp(max=total - low) - before_KP.clamp(min=low)).clamp(min=0)
    # not a product where nothing counts: 0 times infinity is NaN
    return torch.where(counted_KP > 0, values_KP * (counted_KP.double() / (total - 2 * low)), 0.0).sum(0)


def geometric_median(
    stack_KP: Tensor,
    weight_K: Tensor,
    *,
    smoothing: float = 1e-6,
    tolerance: float = 1e-9,
    max_iterations: int = 1000,
) -> Tensor:
    """The point with the least weighted sum of distances to the peers' whole models: [K, P], [K] -> [P] in float64.

    argmin_z sum_k w_k sqrt(|x_k - z|^2 + e^2), by Weiszfeld's iteration from the weighted mean,
        z <- sum_k l_k x_k / sum_k l_k,  l_k = w_k / sqrt(|x_k - z|^2 + e^2),
    until a step is shorter than tolerance * s, or max_iterations. e = smoothing * s (Pillutla et al., Robust
    Aggregation for Federated Learning, 2022), where s is how far apart the peers are, in a measure that a minority
    cannot move: the least, over peers i, of the weighted median of the distances |x_i - x_k|. Where s is 0
    (below 2^-400) more than half of the weight is in one point, which is the result.

    From the mean the way back is long where peers with nearly half of the weight are far away. Where max_iterations end
    neither it nor within 16 s of the medoid (the peer i of s), the iteration begins anew at most 3 s from the medoid:
    with a step from there in which e = s.

    P runs over all floating tensors of the model together. A peer with a value that is not finite, or beyond 2^480,
    gets weight 0; MergeError where that leaves none.
    """
    stack_KP, weight_K = _checked(stack_KP, weight_K)
    stack_KP, weight_K = _finite(stack_KP, weight_K)
    centre, spread = _medoid(stack_KP, weight_K)
    if spread <= NO_SPREAD:
        return stack_KP[centre]

    def next_point(point_P: Tensor, smoothing: float) -> Tensor:
        squares_K = (stack_KP - point_P).square().sum(1)
        pull_K = weight_K / (squares_K + smoothing**2).sqrt()
        return (pull_K[:, None] * stack_KP).sum(0) / pull_K.sum()

    medoid_P = stack_KP[centre]
    for start_P in (mean(stack_KP, weight_K), next_point(medoid_P, spread)):
        middle_P = start_P
        for _ in range(max_iterations):
            before_P, middle_P = middle_P, next_point(middle_P, smoothing * spread)
            if (middle_P - before_P).norm() <= tolerance * spread:
                return middle_P
        if (middle_P - medoid_P).norm() <= 16 * spread:
            break
    return middle_P


def krum(stack_KP: Tensor, weight_K: Tensor, *, num_byzantine: int) -> Tensor:
    """The peer whose model is nearest to its nearest others: `multi_krum` of one."""
    return multi_krum(stack_KP, weight_K, num_byzantine=num_byzantine, num_selected=1)


def multi_krum(stack_KP: Tensor, weight_K: Tensor, *, num_byzantine: int, num_selected: int = 0) -> Tensor:
    """Weighted mean of the peers whose models are nearest to their nearest others: [K, P], [K] -> [P] in float64.

    score_i = the sum of the K - f - 2 least |x_i - x_k|^2, k != i, where f = num_byzantine. The num_selected peers with
    the least scores are averaged (0: K - f of them); of equal scores the first ones. Weights do not count in scores,
    only in the mean: a peer that says it stands for many still is one peer. Blanchard et al., Machine Learning with
    Adversaries: Byzantine Tolerant Gradient Descent, 2017. Breakdown point: f peers, where 2f + 2 < K.

    K counts the peers of positive weight. One with a value that is not finite, or beyond 2^480, is infinitely far from
    all and never selected. MergeError: K < f + 3, num_selected > K, or nobody has a finite score.
    """
    stack_KP, weight_K = _checked(stack_KP, weight_K)
    size = len(stack_KP)
    if size < num_byzantine + 3 or size < num_selected:
        raise MergeError(f"{size} peers are too few: num_byzantine={num_byzantine}, num_selected={num_selected}")
    usable_K = (stack_KP.abs() <= LIMIT).all(1)
    scores = []
    for peer in range(size):
        square_K = (stack_KP - stack_KP[peer]).square().sum(1)
        square_K[~(usable_K & usable_K[peer])] = math.inf
        others = [square for other, square in enumerate(square_K.tolist()) if other != peer]
        scores.append(sum(sorted(others)[: size - num_byzantine - 2]))
    best = sorted(range(size), key=lambda peer: scores[peer])[: num_selected or size - num_byzantine]
    selected = [peer for peer in best if math.isfinite(scores[peer])]
    if not selected:
        raise MergeError("too few peers' parameters are finite")
    return mean(stack_KP[selected], weight_K[selected])


def centred_clipping(stack_KP: Tensor, weight_K: Tensor, *, radius: float = 1.0, iterations: int = 5) -> Tensor:
    """Weighted mean in which no peer pulls farther than a radius: [K, P], [K] -> [P] in float64.

    So many times, from the model in the middle (the peer i with the least s below), with w of sum 1 and tau = radius s:
        v <- v + sum_k w_k (x_k - v) min(1, tau / |x_k - v|).
    Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, 2021; there v starts at the last
    result, and tau is a constant. s as in `geometric_median`; where it is 0 the result is the point that more than half
    of the weight is in.

    Breakdown point: half of the weight. While others have more, the start is at most D away from one of them, D being
    the greatest distance of two of them, s is at most D, and the result at most iterations * radius * D from the start.

    Peers that are not finite as in `geometric_median`.
    """
    stack_KP, weight_K = _finite(*_checked(stack_KP, weight_K))
    weight_K = weight_K / weight_K.sum()
    centre, spread = _medoid(stack_KP, weight_K)
    middle_P = stack_KP[centre]
    if spread <= NO_SPREAD:
        return middle_P
    for _ in range(iterations):
        away_KP = stack_KP - middle_P
        # 1 where a peer is at the centre: radius / 0 is infinite
        clip_K = (radius * spread / away_KP.norm(dim=1)).clamp(max=1)
        middle_P = middle_P + ((weight_K * clip_K)[:, None] * away_KP).sum(0)
    return middle_P


def _finite(stack_KP: Tensor, weight_K: Tensor) -> tuple[Tensor, Tensor]:
    """Without the peers that have a value which is not finite, or beyond LIMIT. MergeError where that leaves none."""
    usable_K = (stack_KP.abs() <= LIMIT).all(1)
    if not usable_K.any():
        raise MergeError("no peer's parameters are finite")
    return stack_KP[usable_K], weight_K[usable_K]


def _medoid(stack_KP: Tensor, weight_K: Tensor) -> tuple[int, float]:
    """(peer, s): the peer with the least weighted median distance to all peers, and that distance."""
    spreads = [coord_median((stack_KP - point_P).norm(dim=1)[:, None], weight_K)[0].item() for point_P in stack_KP]
    spread = min(spreads)
    return spreads.index(spread), spread


def _checked(stack_KP: Tensor, weight_K: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, peers of weight 0 left out, weights with sum 1. MergeError where there is nothing to merge."""
    weights: list[float] = weight_K.double().tolist()
    if len(weights) != len(stack_KP):
        raise MergeError(f"{len(stack_KP)} peers, but {len(weights)} weights")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise MergeError(f"weights {weights}: each must be finite and at least 0, one of them more")
    heaviest = max(weights)
    scaled = [weight / heaviest for weight in weights]
    keep = [index for index, weight in enumerate(weights) if weight > 0]
    shares = [scaled[index] / math.fsum(scaled) for index in keep]
    return stack_KP.double()[keep], torch.tensor(shares, dtype=torch.float64)
