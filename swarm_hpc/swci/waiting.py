"""Commands that wait: for a taskrunner's task to end, and for an SN to answer. Every wait has its end."""

from __future__ import annotations

from typing import Final

from swarm_hpc.errors import ConfigError, NotReachable, TaskFailed, TimedOut
from swarm_hpc.records import TaskRun, Taskrunner, TaskState
from swarm_hpc.swci.contexts import API_PORT, address_of
from swarm_hpc.swci.grammar import Label, Subject
from swarm_hpc.swci.result import Result, Tell, facts, said
from swarm_hpc.swci.session import GENERIC_TASK_WAIT, RUN_TASK_WAIT, Session

SUBJECT = Subject("Waiting")

POLL_S: Final = 20.0
"""While a taskrunner works without a change, a # comes so often."""
RETRIES: Final = 360
PAUSE_S: Final = 5.0
"""Between two tries of WAIT FOR IP."""
_MAX_RETRIES: Final = 100_000
_OVER: Final = "WARNING - Maximum configured SWCI wait time is over"


@SUBJECT.command("WAIT FOR TASKRUNNER {taskrunner}")
async def wait_for_taskrunner(session: Session, taskrunner: Label, *, tell: Tell) -> Result:
    """Wait until a taskrunner has ended its task; that fails as soon as so many peers have failed that it cannot be
    completed, or where it takes longer than the context's SWCI_RUN_TASK_MAX_WAIT_TIME or
    SWCI_GENERIC_TASK_MAX_WAIT_TIME (minutes)."""
    runner = await session.sn.taskrunner(taskrunner)
    minutes = float(session.context().env[RUN_TASK_WAIT if runner.counts_sl else GENERIC_TASK_WAIT])
    tell(f"WAITING FOR TASKRUNNER TO COMPLETE (at most {minutes:g} minutes)")
    if runner.state is TaskState.RUNNING:
        await _follow(session, runner, session.now() + minutes * 60, tell)
    elif not runner.run:
        return said(*facts([("TASK_STATE", runner.state)]), data=runner)  # nothing was assigned since the reset
    # The run that was waited for, whatever the taskrunner does by now.
    (run,) = await session.sn.task_runs(taskrunner, runner.run, runner.run)
    if run.state is not TaskState.COMPLETE:
        raise TaskFailed(failure(run))
    return said(*facts([("TASK_STATE", run.state)]), data=run)


@SUBJECT.command("WAIT FOR IP {ip} [{port} [{retries}]]")
async def wait_for_ip(session: Session, ip: str, port: int = API_PORT, retries: int = RETRIES, *, tell: Tell) -> Result:
    """Wait until an SN answers at an address: 360 tries, 5 s apart."""
    return await _wait_for(session, address_of(ip, port), retries, tell)


@SUBJECT.command("WAIT FOR SERVICE {service} [{retries}]")
async def wait_for_service(session: Session, service: str, retries: int = RETRIES, *, tell: Tell) -> Result:
    """Wait until an SN answers at the FQDN[:port] of its service (port 443 if not given): 360 tries, 5 s apart."""
    return await _wait_for(session, service, retries, tell)


def failure(run: TaskRun) -> str:
    """Why a run did not complete: the task, each node that failed, and its words."""
    what = f"{run.taskrunner}: task {run.task}"
    if run.state is TaskState.RESET:
        return f"{what} was taken back by a reset of the taskrunner (run {run.number})"
    failed = [f"{one.node}: {one.text or 'no reason given'}" for one in run.peers if one.state is TaskState.ERROR]
    if not failed:
        return f"{what} ended in ERROR: fewer peers did it than the {run.num_peers} that were wanted"
    text = f"{what} ended in ERROR at {len(failed)} of {len(run.peers)} peers: {'; '.join(failed)}"
    working = [one.node for one in run.peers if one.state is TaskState.RUNNING]
    if run.state is TaskState.RUNNING and working:
        text += f"; still at work: {', '.join(working)} (RESET TASKRUNNER {run.taskrunner} stops them)"
    return text


async def _follow(session: Session, runner: Taskrunner, until: float, tell: Tell) -> None:
    """Wait until the run that is under way is over, or cannot be completed any more. TimedOut."""
    first = runner.run
    has_told = False
    while runner.state is TaskState.RUNNING and runner.run == first and runner.reachable:
        left_s = until - session.now()
        if left_s <= 0:
            tell(f"\n{_OVER}" if has_told else _OVER)
            raise TimedOut(
                f"{_OVER}: {runner.name} goes on with task {runner.task}; WAIT FOR TASKRUNNER again, or RESET it"
            )
        before = runner.version
        runner = await session.sn.taskrunner(runner.name, seen=before, wait_s=min(POLL_S, left_s))
        if runner.version == before:
            tell("#", end="")
            has_told = True
    if has_told:
        tell("")


async def _wait_for(session: Session, address: str, retries: int, tell: Tell) -> Result:
    if not 1 <= retries <= _MAX_RETRIES:
        raise ConfigError(f"retries: {retries} is outside 1-{_MAX_RETRIES}")
    tell(f"WAITING FOR API SERVER : {address}")
    async with session.probe(address) as client:
        for left in range(retries, 0, -1):
            try:
                status = await client.status()
            except (NotReachable, TimedOut) as exc:
                if left == 1:
                    raise type(exc)(f"{exc}; given up after {retries} tries") from exc
                tell("#", end="")
                await session.sleep(PAUSE_S)
            else:
                return said("API Server is UP!", data={"address": address, "site": status.site, "node": status.node})
    raise AssertionError("the last try ends the loop")
