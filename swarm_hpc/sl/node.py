"""An SL node's life: registers, starts its ML program, serves the program's sessions, leaves (`swarm-hpc sl`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from swarm_hpc.config import ProgramConfig, RanksKind, SlConfig
from swarm_hpc.daemon import until_one_ends
from swarm_hpc.errors import ConfigError, ProgramFailed, ProtocolError
from swarm_hpc.identity.certs import Identity, load
from swarm_hpc.license.client import hold_seat
from swarm_hpc.license.terms import SeatRequest
from swarm_hpc.records import NodeName
from swarm_hpc.sl.departure import Departure
from swarm_hpc.sl.entrance import Entrance, Following, Single, Speaking
from swarm_hpc.sl.exchange import open_exchange
from swarm_hpc.sl.frames import SOCKET_VARIABLE, STATE_VARIABLE
from swarm_hpc.sl.job import Job, open_job
from swarm_hpc.sl.listener import Connection, Listener, listen
from swarm_hpc.sl.member import Member, load_instance
from swarm_hpc.sl.program import Program, started
from swarm_hpc.sl.ranks import Leaving
from swarm_hpc.sl.session import Session
from swarm_hpc.sn.client import SnClient

log = logging.getLogger(__name__)

RANK_VARIABLE = "SWARM_RANK"
"""Which rank of its job this program is: from 0; only with ranks=mpi, as the next one."""
NUM_RANKS_VARIABLE = "SWARM_NUM_RANKS"
_SOON_S: Final = 2.0
MPI_VARIABLES: Final = ("PMI_", "PMIX_", "OMPI_", "HYDI_", "MPI_LOCAL")
"""What a launcher tells SL's MPI. A program that found it would take itself for a rank of a distributed training."""


async def run(config: SlConfig) -> None:
    """`live` until it ends, or until a signal, which ends it in order (departure.py). For the main thread."""
    departure = Departure()
    life = asyncio.ensure_future(live(config, departure))
    with departure.by_signals(life):
        try:
            await life
        except asyncio.CancelledError:
            if not departure.stopped:
                raise
            log.info("stopped: %s", departure.reason)
    if departure.warned and not departure.finished and config.left_file:
        await asyncio.to_thread(Path(config.left_file).touch)


async def live(config: SlConfig, departure: Departure | None = None) -> None:
    """Be an SL node until the program has finished its training and ended; without one, until the session is over; or
    until it has left.

    ProgramFailed, or the error that the program was told last; Fenced or DuplicateNode: another process has the name.
    LicenseError: there is no seat, or it was lost, after the program had its time to save.
    """
    departure = departure or Departure()
    await _live(config, departure)
    if departure.error is not None:
        raise departure.error


async def _live(config: SlConfig, departure: Departure) -> None:
    if config.ranks.kind is RanksKind.SINGLE:
        await _speak(config, None, departure)
        return
    async with open_job(config.ranks, max_wait_s=config.round.max_wait_s) as job:
        config = for_rank(config, job.rank, job.size)
        job.on_leaving = lambda leaving: departure.ask(leaving.reason, warned=leaving.warned)
        telling = asyncio.create_task(_tell_leaving(job, departure))
        try:
            await (_speak(config, job, departure) if job.rank == 0 else _follow(config, job, departure))
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        if departure.asked.is_set():
            job.patience_s = config.program.save_timeout_s + config.program.stop_timeout_s


async def _tell_leaving(job: Job, departure: Departure) -> None:
    """Slurm tells all ranks; whoever else tells one of them means the job."""
    await departure.asked.wait()
    await job.tell_leaving(Leaving(reason=departure.reason, warned=departure.warned))


async def _speak(config: SlConfig, job: Job | None, departure: Departure) -> None:
    """Be the node on the ledger: alone, or for all ranks of a job."""
    identity = load(config.identity)
    _check_name(config, identity)
    state_dir = Path(config.state_dir)
    instance = load_instance(state_dir)
    seat = SeatRequest(node=config.name, instance=instance, num_seats=max(1, config.ranks.num_ranks))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            hold_seat(config.license, identity, seat, config.connection, on_lost=departure.fail)
        )
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
        work = _Work(config, single if job is None else Speaking(job, single), listener, departure)
        await until_one_ends(member.keep_alive(), work.serve_programs(), work.run())


async def _follow(config: SlConfig, job: Job, departure: Departure) -> None:
    """Be another rank of a job: no certificate, no connection but to rank 0."""
    with listen(Path(config.state_dir)) as listener:
        work = _Work(config, Following(job), listener, departure)
        await until_one_ends(work.serve_programs(), work.run())


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

    def __init__(self, config: SlConfig, entrance: Entrance, listener: Listener, departure: Departure) -> None:
        self._config = config
        self._entrance = entrance
        self._listener = listener
        self._departure = departure
        self._session: Session | None = None
        self._served: Connection | None = None
        """Where the session's program is; None when it is over."""
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
        self._departure.attended = True
        await self._run()
        self._departure.finished = self._has_finished

    async def _run(self) -> None:
        program = self._config.program
        if not program.command:
            log.info("start the program with %s=%s", SOCKET_VARIABLE, self._listener.path)
            if await self._until_left(self._over.wait()) and not self._has_finished:
                raise self._error() or ProgramFailed("the ML program went away before its training was finished")
            return
        without = MPI_VARIABLES if self._config.ranks.kind is RanksKind.MPI else ()
        async with started(self._filled(program), self._env(), without=without) as child:
            if not await self._until_left(child.wait()):
                return
            await self._check_code(child)
        if not (self._departure.asked.is_set() or self._has_finished):
            raise self._error() or ProgramFailed(
                f"the ML program {program.command[0]} ended before its training was finished: "
                "does it call SwarmCallback's on_train_begin and on_train_end?"
            )

    def _env(self) -> dict[str, str]:
        return {SOCKET_VARIABLE: str(self._listener.path), STATE_VARIABLE: str(self._state)}

    def _filled(self, program: ProgramConfig) -> ProgramConfig:
        """With the launcher's words as they are for this node."""
        if not program.launcher:
            return program
        self._state.mkdir(parents=True, exist_ok=True)  # it may be bound into a container
        channel, state = str(self._listener.path.parent), str(self._state)
        words = [word.replace("{channel}", channel).replace("{state}", state) for word in program.launcher]
        return replace(program, launcher=words)

    @property
    def _state(self) -> Path:
        return Path(self._config.state_dir).absolute() / "program"

    async def _check_code(self, child: Program) -> None:
        code = await child.wait()
        if self._session is not None and self._session.saved and await self._is_leaving_soon():
            return
        if code != 0:
            failure = child.failure(code)
            log.error("%s", failure)
            raise self._error() or failure

    async def _is_leaving_soon(self) -> bool:
        """A signal for all processes of a job may reach the program first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SOON_S):
                await self._departure.asked.wait()
        return self._departure.asked.is_set()

    async def _until_left(self, end: Coroutine[Any, Any, Any]) -> bool:
        """Wait for the program's end: True. False: the node is to leave, and the program had its time to save."""
        ended = asyncio.ensure_future(end)
        asked = asyncio.ensure_future(self._departure.asked.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return True
            await self._withdraw_and_save(ended)
            return self._has_finished
        finally:
            for each in (ended, asked):
                each.cancel()
            await asyncio.gather(ended, asked, return_exceptions=True)

    async def _withdraw_and_save(self, ended: asyncio.Future[Any]) -> None:
        withdrawing = asyncio.ensure_future(self._entrance.withdraw())
        try:
            await self._await_saved(ended)
            # no longer: it takes as long as the ledger stands still, and a job's time limit comes before that
            if (await asyncio.wait({withdrawing}, timeout=_SOON_S))[0]:
                withdrawing.result()
        finally:
            withdrawing.cancel()
            await asyncio.gather(withdrawing, return_exceptions=True)

    async def _await_saved(self, ended: asyncio.Future[Any]) -> None:
        """Have the program save its state, if it is in the middle of a training, and end."""
        session, patience_s = self._session, self._config.program.save_timeout_s
        if session is None or not session.joined or self._over.is_set():
            return
        session.ask_to_leave(self._departure.reason)
        await asyncio.wait({ended}, timeout=patience_s)
        if session.saved:
            log.info("the ML program has saved its state")
        elif not session.finished:
            log.warning(
                "the ML program did not save its state within %g s (program.save_timeout_s): it needs a SwarmCallback, "
                "and batches that take less time",
                patience_s,
            )

    async def _serve(self, connection: Connection) -> None:
        try:
            while self._served is not None:
                if not self._served.is_over:
                    await connection.refuse(ProtocolError("another program has a session with this SL node"))
                    return
                await self._over.wait()
            self._over.clear()
            self._served = connection
            self._session = Session(self._config, self._entrance)
            await self._session.serve(connection)
            if self._session.joined and not self._session.finished and not self._departure.asked.is_set():
                # the program may run on without us, or for long until it has ended: the peers must not wait for it
                log.warning("the ML program closed its session before its training was finished")
                await self._entrance.abandon()
            self._served = None
            self._over.set()
        finally:
            connection.close()

    @property
    def _has_finished(self) -> bool:
        """The program's training has come to its end."""
        return self._session is not None and self._session.finished

    def _error(self) -> Exception | None:
        return self._session.error if self._session is not None else None


def _check_name(config: SlConfig, identity: Identity) -> None:
    site = NodeName.parse(config.name).site
    if site != identity.name.site:
        raise ConfigError(f"name: {config.name} is of site {site}, its certificate of site {identity.name.site}")
