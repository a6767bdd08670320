"""Merges whose result is one weighted mean of whole models, with weights found from how far the peers are apart.

Geometric median, Krum, multi-Krum and centred clipping: one pass over the models for the K x K inner products, then
arithmetic on K x K numbers (`weiszfeld`, `robust`), then a mean. `reference.py` says what each method means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.plain import Measure
from swarm_hpc.kernels.robust import centred_clipping, krum
from swarm_hpc.kernels.weights import shares
from swarm_hpc.kernels.weiszfeld import Matrix, centred, medoid, weiszfeld
from swarm_hpc.records import Merge, MergeMethod

METHODS: Final = (MergeMethod.GEOMEDIAN, MergeMethod.KRUM, MergeMethod.MULTIKRUM, MergeMethod.CENTREDCLIP)

LIMIT: Final = 2.0**480
"""Values beyond it count as not finite, so that sums of squares are."""
NO_SPREAD: Final = 2.0**-400
"""Peers no farther apart are at one point; the squares of smaller distances need not be above 0."""
MAX_SQUARED_RATIO: Final = 2.0**44
"""Above this, (farthest peer / spread)^2, squared distances have lost too many digits to find inner products from."""
MAX_QUICK_RATIO: Final = 2.0**12
"""The same for inner products that were added up in float32."""
LEAST_QUICK: Final = 2.0**-80
"""Squared spread below which float32 may have lost digits to its least exponent."""


class Measured(Protocol):
    """Models that lie anywhere, and can be compared."""

    def sums(self, peers: Sequence[int], measure: Measure, centre: int = 0) -> Matrix:
        """Over all floating values, for each two of `peers`; `centre` is a place in `peers`."""

    def bounded(self, peers: Sequence[int], limit: float) -> list[bool]:
        """For each of `peers`, whether no value is NaN or beyond the limit."""


def mixture(
    merge: Merge,
    weights: Sequence[float],
    measured: Measured,
    *,
    smoothing: float = 1e-6,
    tolerance: float = 1e-9,
    max_iterations: int = 1000,
) -> list[float]:
    """Per peer, its weight in the mean that is the result; the last three arguments are the geometric median's.

    Peers that are not finite have none. MergeError where no peer of positive weight is finite, or too few are there.
    """
    parts = shares(weights, len(weights))
    candidates = [peer for peer, part in enumerate(parts) if part > 0]
    usable, squares, careful = _compare(measured, candidates, parts)
    pulls = shares([parts[peer] for peer in usable], len(usable))
    if merge.method in (MergeMethod.KRUM, MergeMethod.MULTIKRUM):
        num_selected = 1 if merge.method is MergeMethod.KRUM else merge.num_selected
        everyone = _with_far(squares, [usable.index(peer) if peer in usable else None for peer in candidates])
        pulls = [parts[peer] for peer in candidates]
        found = krum(everyone, pulls, num_byzantine=merge.num_byzantine, num_selected=num_selected)
        usable = candidates
    else:
        centre, spread = medoid(squares, pulls)

        def exact() -> Matrix | None:
            """Inner products, where the squares have lost them."""
            if careful and max(squares[centre]) > MAX_SQUARED_RATIO * spread**2:
                return measured.sums(usable, Measure.PRODUCTS, centre)
            return None

        if spread <= NO_SPREAD:
            found = [float(index == centre) for index in range(len(usable))]
        elif merge.method is MergeMethod.CENTREDCLIP:
            found = centred_clipping(
                squares,
                pulls,
                centre,
                spread,
                radius=merge.clip_radius,
                iterations=merge.clip_iterations,
                products=exact(),
            )
        else:
            inner = exact() or centred(squares, centre)
            found = weiszfeld(
                inner, pulls, spread, smoothing=smoothing, tolerance=tolerance, max_iterations=max_iterations
            )
    by_peer = dict(zip(usable, found, strict=True))
    return [by_peer.get(peer, 0.0) for peer in range(len(weights))]


def _compare(measured: Measured, candidates: Sequence[int], parts: Sequence[float]) -> tuple[list[int], Matrix, bool]:
    """(the peers that are finite, their squared distances, whether these were added up in float64 throughout)."""
    quick = _quickly(measured, candidates, parts)
    if quick is not None:
        return list(candidates), quick, False
    flags = measured.bounded(candidates, LIMIT)
    usable = [peer for peer, good in zip(candidates, flags, strict=True) if good]
    if not usable:
        raise MergeError("no peer's parameters are finite")
    if not all(flags):
        quick = _quickly(measured, usable, parts)
    if quick is not None:
        return usable, quick, False
    return usable, measured.sums(usable, Measure.SQUARES), True


def _quickly(measured: Measured, peers: Sequence[int], parts: Sequence[float]) -> Matrix | None:
    """Squared distances from inner products that were added up in float32; None where that could cost digits."""
    gram = measured.sums(peers, Measure.GRAM)
    if not all(math.isfinite(value) for row in gram for value in row):
        return None
    squares = _squares(gram)
    _, spread = medoid(squares, shares([parts[peer] for peer in peers], len(peers)))
    farthest = max(gram[peer][peer] for peer in range(len(peers)))
    good = spread**2 >= LEAST_QUICK and farthest <= MAX_QUICK_RATIO * spread**2
    return squares if good else None


def _with_far(squares: Matrix, places: Sequence[int | None]) -> Matrix:
    """The squares for all peers, those without a place among them infinitely far from all others."""
    return [[math.inf if a is None or b is None else squares[a][b] for b in places] for a in places]


def _squares(gram: Matrix) -> Matrix:
    """Squared distances from inner products."""
    own = [gram[peer][peer] for peer in range(len(gram))]
    return [
        [max(own[j] + own[k] - 2 * value, 0.0) if j != k else 0.0 for k, value in enumerate(row)]
        for j, row in enumerate(gram)
    ]
