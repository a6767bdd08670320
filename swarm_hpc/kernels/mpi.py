"""The ranks of one MPI job: start, messages, collectives, end. The only file that imports mpi4py; it merges nothing.

MPI cannot time out a collective. So all of them are the non-blocking ones, polled until a deadline; after RankLost the
communicator is of no more use, and `abort` ends the job. One thread, the one that called `start`, makes all calls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from itertools import count
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import ConfigError, RankLost, RanksMismatch
from swarm_hpc.kernels.arena import Array

try:
    import mpi4py

    # `start` and `close` do that, and nothing happens at import
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI
except (ImportError, RuntimeError) as exc:  # mpi4py of a wheel looks for a library only now
    raise ConfigError(
        f"ranks=mpi: mpi4py or its MPI library cannot be loaded ({exc}); install swarm-hpc[mpi], or load the site's MPI"
    ) from exc

PIECE_BYTES: Final = 64 << 20
"""A broadcast goes in pieces of this size, each with its own deadline."""
_CONTROL: Final = 1
"""Tag of messages."""
_SPINS: Final = 2000
"""Polls without a pause; after that one every _PAUSE_S."""
_PAUSE_S: Final = 0.0005


class Ranks:
    """All processes of the job, seen from one of them. `start` makes it; `close` or `abort` ends it."""

    def __init__(self, comm: MPI.Intracomm, timeout_s: float) -> None:
        """Take over a communicator."""
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.timeout_s = timeout_s
        """The longest that one collective, or one piece of it, may take."""
        self._comm = comm
        self._sending: list[tuple[MPI.Request, bytes]] = []
        self._stuck: list[MPI.Request] = []
        comm.Set_errhandler(MPI.ERRORS_RETURN)

    @classmethod
    def start(cls, num_ranks: int, timeout_s: float) -> Ranks:
        """Initialise MPI in this thread. RanksMismatch where it does not see all `num_ranks` processes of the job."""
        try:
            if not MPI.Is_initialized():
                MPI.Init_thread(MPI.THREAD_FUNNELED)
        except MPI.Exception as exc:
            raise ConfigError(f"ranks=mpi: MPI does not start: {exc}; under Slurm: srun --mpi=pmi2") from exc
        ranks = cls(MPI.COMM_WORLD, timeout_s)
        check_size(ranks.size, num_ranks)
        return ranks

    def send(self, rank: int, data: bytes) -> None:
        """Send a message on its way; messages from one rank to another arrive in order."""
        self._sending = [(request, kept) for request, kept in self._sending if not _done(request)]
        self._sending.append((_started(self._comm.Isend, data, rank, _CONTROL), data))

    def receive(self) -> list[tuple[int, bytes]]:
        """The messages that are there, each with the rank that sent it."""
        messages = []
        while (found := self._next()) is not None:
            messages.append(found)
        return messages

    def flush(self) -> None:
        """Until every message is on its way. RankLost."""
        for request, _ in self._sending:
            self._finish(request, "a message")
        self._sending = []

    def sum_shards(self, terms: Array, counts: Sequence[int], out: Array) -> None:
        """`out`: this rank's shard of the sum of all ranks' `terms` (float32 or float64), `counts` elements per rank.

        Never for narrower floats: some MPI libraries return nonsense, without an error.
        """
        assert terms.dtype in (np.float32, np.float64) and out.dtype == terms.dtype
        self._finish(_started(self._comm.Ireduce_scatter, terms, out, list(counts), MPI.SUM), "a sum")

    def largest(self, values: Array) -> None:
        """Every element becomes the largest that any rank has; for integers."""
        self._finish(_started(self._comm.Iallreduce, MPI.IN_PLACE, values, MPI.MAX), "a maximum")

    def exchange(self, values: Array, counts: Sequence[int], rows: Array) -> None:
        """Rank r gets the r-th shard of each rank's `values`: one row per rank of its `counts[rank]` elements."""
        width = values.itemsize
        sent = [one * width for one in counts]
        size = sent[self.rank]
        received = [size] * self.size
        request = _started(
            self._comm.Ialltoallv,
            [_bytes(values), sent, _starts(sent), MPI.BYTE],
            [_bytes(rows), received, _starts(received), MPI.BYTE],
        )
        self._finish(request, "an exchange of shards")

    def gather_shards(self, shard: Array, counts: Sequence[int], out: Array) -> None:
        """Every rank gets all shards, one after the other."""
        sizes = [one * out.itemsize for one in counts]
        request = _started(self._comm.Iallgatherv, [_bytes(shard), MPI.BYTE], [_bytes(out), sizes, MPI.BYTE])
        self._finish(request, "a collection of shards")

    def gather_numbers(self, row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Every rank gets every rank's few numbers, a row per rank."""
        rows = np.empty((self.size, len(row)))
        self._finish(_started(self._comm.Iallgather, row, rows), "a collection of numbers")
        return rows

    def broadcast(self, data: memoryview | Array, root: int = 0) -> None:
        """Every rank's `data` becomes the root's."""
        values = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else _bytes(data)
        for start in range(0, len(values), PIECE_BYTES):
            piece = values[start : start + PIECE_BYTES]
            self._finish(_started(self._comm.Ibcast, [piece, MPI.BYTE], root), "a broadcast")

    def close(self) -> None:
        """Finalize MPI: returns once every rank has come here, and never where one does not."""
        self.flush()
        MPI.Finalize()

    def abort(self, code: int) -> None:
        """End every process of the job, this one included, with that exit code."""
        self._comm.Abort(code)

    def _next(self) -> tuple[int, bytes] | None:
        status = MPI.Status()
        try:
            message = self._comm.Improbe(MPI.ANY_SOURCE, _CONTROL, status)
            if message is None:
                return None
            data = bytearray(status.Get_count(MPI.BYTE))
            request = message.Irecv([data, MPI.BYTE])
        except MPI.Exception as exc:
            raise RankLost(f"MPI failed while looking for messages: {exc}") from exc
        self._finish(request, f"a message from rank {status.Get_source()}")
        return status.Get_source(), bytes(data)

    def _finish(self, request: MPI.Request, what: str) -> None:
        deadline = time.monotonic() + self.timeout_s
        for poll in count():
            if _done(request):
                return
            # more ranks than cores: the others need this one to go on
            time.sleep(_PAUSE_S if poll > _SPINS else 0)
            if poll > _SPINS and time.monotonic() > deadline:
                # its buffers are MPI's until the end
                self._stuck.append(request)
                raise RankLost(
                    f"rank {self.rank} of {self.size}: {what} among the job's ranks did not come to its end within "
                    f"{self.timeout_s:g} s (ranks.timeout_s): a rank is lost or hangs; see the logs of the other ranks"
                )


def check_size(found: int, num_ranks: int) -> None:
    """RanksMismatch unless MPI sees as many processes as the job has: a wrong PMI makes each one a job of its own."""
    if found != num_ranks:
        raise RanksMismatch(
            f"MPI sees {found} rank{'s' if found != 1 else ''}, the job has {num_ranks} (ranks.num_ranks): "
            "the launcher and the MPI library do not understand each other; under Slurm start it with "
            "srun --mpi=pmi2 (MPICH) or srun --mpi=pmix (Open MPI)"
        )


class Transfer(StrEnum):
    """How a tensor's memory gets into MPI."""

    AS_IT_IS = "as it is"
    """The library reads it where it lies."""
    PINNED = "pinned"
    """By way of page-locked host memory."""


def choose_transfer(device: str, memory_kinds: str, *, cuda_support: bool | None = None) -> Transfer:
    """How MPI gets a tensor on `device` (`cpu`, `cuda`, `cuda:1`).

    `memory_kinds` is what the library says in MPI 4.1's `mpi_memory_alloc_kinds` (`memory_kinds`); `cuda_support` the
    answer of its MPIX_Query_cuda_support, None where it has no such function. One that does not say is not trusted:
    GPU memory in a library that does not know it is a crash.
    """
    kinds = {kind.strip().partition(":")[0] for kind in memory_kinds.split(",")}
    if device == "cpu" or (device.partition(":")[0] == "cuda" and (cuda_support or "cuda" in kinds)):
        return Transfer.AS_IT_IS
    return Transfer.PINNED


def memory_kinds() -> str:
    """The kinds of memory that the library says it takes, such as `mpi,system,cuda`; empty where it is silent."""
    return MPI.COMM_WORLD.Get_info().Get("mpi_memory_alloc_kinds") or ""


def _started(call: Any, *arguments: Any) -> MPI.Request:
    try:
        request: MPI.Request = call(*arguments)
    except MPI.Exception as exc:
        raise RankLost(f"MPI failed: {exc}") from exc
    return request


def _done(request: MPI.Request) -> bool:
    try:
        return bool(request.Test())
    except MPI.Exception as exc:
        raise RankLost(f"MPI failed, most likely since a rank is lost: {exc}") from exc


def _bytes(values: Array) -> npt.NDArray[np.uint8]:
    """The same memory; MPI has no name for bfloat16."""
    return values.reshape(-1).view(np.uint8)


def _starts(sizes: Sequence[int]) -> list[int]:
    starts = [0]
    for size in sizes[:-1]:
        starts.append(starts[-1] + size)
    return starts
