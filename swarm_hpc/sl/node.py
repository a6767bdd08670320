"""An SL node's life: registers, starts its ML program, serves the program's sessions, leaves (`swarm-hpc sl`)."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from swarm_hpc.config import RanksKind, SlConfig
from swarm_hpc.errors import ConfigError, ProgramFailed, ProtocolError
from swarm_hpc.identity.certs import Identity, load
from swarm_hpc.records import NodeName
from swarm_hpc.sl.entrance import Entrance, Following, Single, Speaking
from swarm_hpc.sl.exchange import open_exchange
from swarm_hpc.sl.job import Job, open_job
from swarm_hpc.sl.listener import Connection, Listener, listen
from swarm_hpc.sl.member import Member, load_instance
from swarm_hpc.sl.program import started
from swarm_hpc.sl.session import Session
from swarm_hpc.sn.client import SnClient

log = logging.getLogger(__name__)

SOCKET_VARIABLE = "SWARM_SL_SOCKET"
"""Environment variable in which the program finds the socket of its SL node."""
RANK_VARIABLE = "SWARM_RANK"
"""Which rank of its job this program is: from 0; only with ranks=mpi, as the next one."""
NUM_RANKS_VARIABLE = "SWARM_NUM_RANKS"
MPI_VARIABLES: Final = ("PMI_", "PMIX_", "OMPI_", "HYDI_", "MPI_LOCAL")
"""What a launcher tells SL's MPI. A program that found it would take itself for a rank of a distributed training."""


async def run(config: SlConfig) -> None:
    """`live` until it ends, or until SIGTERM, which ends it in order. For the main thread."""
    life = asyncio.ensure_future(live(config))
    with _stopped_by(signal.SIGTERM, life) as was_stopped:
        try:
            await life
        except asyncio.CancelledError:
            if not was_stopped():
                raise
            log.info("stopped by SIGTERM")


async def live(config: SlConfig) -> None:
    """Be an SL node until the program has finished its training and ended; without one, until the session is over.

    ProgramFailed, or the error that the program was told last; Fenced or DuplicateNode: another process has the name.
    """
    if config.ranks.kind is RanksKind.SINGLE:
        await _speak(config, None)
        return
    async with open_job(config.ranks, max_wait_s=config.round.max_wait_s) as job:
        config = for_rank(config, job.rank, job.size)
        await (_speak(config, job) if job.rank == 0 else _follow(config, job))


async def _speak(config: SlConfig, job: Job | None) -> None:
    """Be the node on the ledger: alone, or for all ranks of a job."""
    identity = load(config.identity)
    _check_name(config, identity)
    state_dir = Path(config.state_dir)
    instance = load_instance(state_dir)
    async with AsyncExitStack() as stack:
        patience_s = config.round.max_wait_s
        sn = await stack.enter_async_context(
            SnClient(identity, config.sn, connection=config.connection, halt_wait_s=patience_s)
        )
        exchange = await stack.enter_async_context(
            open_exchange(identity, sn, config.transfer, config.connection, state_dir)
        )
        member = Member(sn, config.name, exchange.endpoint, instance)
        listener = stack.enter_context(listen(state_dir))
        await member.register()
        stack.push_async_callback(member.leave)
        single = Single(sn, member, exchange)
        work = _Work(config, single if job is None else Speaking(job, single), listener)
        await _first(member.keep_alive(), work.serve_programs(), work.run())


async def _follow(config: SlConfig, job: Job) -> None:
    """Be another rank of a job: no certificate, no connection but to rank 0."""
    with listen(Path(config.state_dir)) as listener:
        work = _Work(config, Following(job), listener)
        await _first(work.serve_programs(), work.run())


def for_rank(config: SlConfig, rank: int, num_ranks: int) -> SlConfig:
    """The settings of one rank of a job: what ranks on one file system must not share, and what its program is told."""
    program = config.program
    env = {**program.env, RANK_VARIABLE: str(rank), NUM_RANKS_VARIABLE: str(num_ranks)}
    if rank == 0:
        return replace(config, program=replace(program, env=env))
    log_file = program.log and f"{program.log}.rank-{rank}"
    own = str(Path(config.state_dir) / f"rank-{rank}")
    return replace(config, state_dir=own, program=replace(program, env=env, log=log_file))


class _Work:
    """The program and its sessions."""

    def __init__(self, config: SlConfig, entrance: Entrance, listener: Listener) -> None:
        self._config = config
        self._entrance = entrance
        self._listener = listener
        self._session: Session | None = None
        self._over = asyncio.Event()

    async def serve_programs(self) -> None:
        """Serve whoever connects, one session at a time. Raises only what ends the node."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(self._serve(await self._listener.accept()))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def run(self) -> None:
        """Run the program to its end; without one, wait for the session of a program that is started by hand."""
        program = self._config.program
        if not program.command:
            log.info("start the program with %s=%s", SOCKET_VARIABLE, self._listener.path)
            await self._over.wait()
            if self._session is None or not self._session.finished:
                raise self._error() or ProgramFailed("the ML program went away before its training was finished")
            return
        without = MPI_VARIABLES if self._config.ranks.kind is RanksKind.MPI else ()
        async with started(program, {SOCKET_VARIABLE: str(self._listener.path)}, without=without) as child:
            code = await child.wait()
            if code != 0:
                failure = child.failure(code)
                log.error("%s", failure)
                raise self._error() or failure
        if self._session is None or not self._session.finished:
            raise self._error() or ProgramFailed(
                f"the ML program {program.command[0]} ended before its training was finished: "
                "does it call SwarmCallback's on_train_begin and on_train_end?"
            )

    async def _serve(self, connection: Connection) -> None:
        try:
            if self._session is not None and not self._over.is_set():
                await connection.refuse(ProtocolError("another program has a session with this SL node"))
                return
            self._over.clear()
            self._session = Session(self._config, self._entrance)
            await self._session.serve(connection)
            if self._session.joined and not self._session.finished:
                # the program may run on without us, or for long until it has ended: the peers must not wait for it
                log.warning("the ML program closed its session before its training was finished")
                await self._entrance.abandon()
            self._over.set()
        finally:
            connection.close()

    def _error(self) -> Exception | None:
        return self._session.error if self._session is not None else None


async def _first(*work: Coroutine[Any, Any, None]) -> None:
    """Run all of it until one ends; the rest is cancelled, and waited for."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _check_name(config: SlConfig, identity: Identity) -> None:
    site = NodeName.parse(config.name).site
    if site != identity.name.site:
        raise ConfigError(f"name: {config.name} is of site {site}, its certificate of site {identity.name.site}")


@contextmanager
def _stopped_by(number: signal.Signals, life: asyncio.Future[None]) -> Iterator[Any]:
    """Cancel `life` at that signal; yields whether that has happened."""
    seen: list[signal.Signals] = []

    def stop() -> None:
        seen.append(number)
        life.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(number, stop)
    try:
        yield lambda: bool(seen)
    finally:
        loop.remove_signal_handler(number)
