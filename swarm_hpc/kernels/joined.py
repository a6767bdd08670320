"""Comparing models of which each peer has one shard in memory: what it adds up there, the others get to know.

The numbers are those of whole models in one memory, to the last bit, because partial sums are handed on unrounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.cpu import Pieces, exact_parts, exact_sum, matrix
from swarm_hpc.kernels.plain import Measure
from swarm_hpc.kernels.weiszfeld import Matrix

Numbers: TypeAlias = npt.NDArray[np.float64]

MAX_PARTS: Final = 4
"""Numbers that an unrounded sum is written in: enough for terms that are apart by 2^150."""


class Joined:
    """`mixture.Measured` of models whose shards are at several peers."""

    def __init__(self, own: Pieces, exchange: Callable[[Numbers], Sequence[Numbers]]) -> None:
        """`exchange` hands its argument to all peers and returns what each of them hands over, of the same shape.

        All peers must make the same calls. What `exchange` raises comes through.
        """
        self._own = own
        self._exchange = exchange

    def sums(self, peers: Sequence[int], measure: Measure, centre: int = 0) -> Matrix:
        """`Measured.sums`. MergeError where this shard's sums take more than MAX_PARTS numbers, or squares add up to
        what they cannot."""
        columns = self._own.columns(peers, measure, centre)
        own = np.zeros((len(columns), MAX_PARTS))
        for place, parts in enumerate(map(exact_parts, columns)):
            if len(parts) > MAX_PARTS:
                raise MergeError(f"the values of a shard are too far apart for sums of {MAX_PARTS} numbers")
            own[place, : len(parts)] = parts
        # peers x places x parts
        found = np.stack(list(self._exchange(own))).swapaxes(0, 1).reshape(len(columns), -1)
        totals = [exact_sum(column) for column in found.tolist()]
        # squares are asked for where all values are in bounds; a peer may state any numbers
        if measure is Measure.SQUARES and not all(total >= 0 for total in totals):
            raise MergeError("what the peers state cannot be sums of squares")
        return matrix(totals, len(peers))

    def bounded(self, peers: Sequence[int], limit: float) -> list[bool]:
        """`Measured.bounded`"""
        own = np.array(self._own.bounded(peers, limit), np.float64)
        return [all(flags) for flags in zip(*(one.tolist() for one in self._exchange(own)), strict=True)]
