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
"""coord_median: the sum of all weights, in the units to which they are rounded."""
LIMIT = 2.0**480
"""geometric_median: values beyond it count as not finite, so that sums of squares are."""
NO_SPREAD = 2.0**-400
"""geometric_median: peers no farther apart than this are at one point."""


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

    P runs over all floating tensors of the model together. A peer with a value that is not finite, or beyond 2^480,
    gets weight 0; MergeError where that leaves none.
    """
    stack_KP, weight_K = _checked(stack_KP, weight_K)
    usable_K = (stack_KP.abs() <= LIMIT).all(1)
    if not usable_K.any():
        raise MergeError("no peer's parameters are finite")
    stack_KP, weight_K = stack_KP[usable_K], weight_K[usable_K]
    spread_K = torch.stack([_median_distance(stack_KP, point_P, weight_K) for point_P in stack_KP])
    spread = spread_K.min()
    if spread <= NO_SPREAD:
        return stack_KP[spread_K.argmin()]
    middle_P = mean(stack_KP, weight_K)
    for _ in range(max_iterations):
        squares_K = (stack_KP - middle_P).square().sum(1)
        pull_K = weight_K / (squares_K + (smoothing * spread) ** 2).sqrt()
        before_P, middle_P = middle_P, (pull_K[:, None] * stack_KP).sum(0) / pull_K.sum()
        if (middle_P - before_P).norm() <= tolerance * spread:
            break
    return middle_P


def _median_distance(stack_KP: Tensor, point_P: Tensor, weight_K: Tensor) -> Tensor:
    return coord_median((stack_KP - point_P).norm(dim=1)[:, None], weight_K)[0]


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
