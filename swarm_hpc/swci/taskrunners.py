"""Commands about taskrunners: giving tasks to SWOP nodes, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from swarm_hpc.errors import ConfigError, NotFound, TaskFailed, TimedOut
from swarm_hpc.records import Taskrunner, TaskrunnerPeer, TaskState
from swarm_hpc.swci.grammar import Subject
from swarm_hpc.swci.result import Result, Tell, facts, moment, said, table
from swarm_hpc.swci.session import GENERIC_TASK_WAIT, RUN_TASK_WAIT, Session

SUBJECT = Subject("Taskrunners")

EMPTY: Final = "Empty"
"""Name of the task of a taskrunner that has none."""
OVER: Final = "WARNING - Maximum configured SWCI wait time is over"
_MARK_S: Final = 10.0
"""How often WAIT FOR TASKRUNNER shows that it is still there."""


@SUBJECT.command("CREATE TASKRUNNER {taskrunner}")
async def create_taskrunner(session: Session, taskrunner: str) -> Result:
    """Create a taskrunner, which SWOP nodes can enrol in; one that is there is left as it is."""
    return said(f"TASKRUNNER CREATED : {taskrunner}", data=await session.sn.create_taskrunner(taskrunner))


@SUBJECT.command("LIST TASKRUNNERS")
async def list_taskrunners(session: Session) -> Result:
    """List the taskrunners with their states."""
    found = await session.sn.taskrunners()
    rows = [(one.name, one.state, one.task or EMPTY, len(one.peers)) for one in found]
    return said(*table(("Name", "State", "Task", "Peers"), rows), data=found)


@SUBJECT.command("GET TASKRUNNER INFO {taskrunner}")
async def get_taskrunner_info(session: Session, taskrunner: str) -> Result:
    """Show who is enrolled in a taskrunner, in numbers, and how many runs it has had."""
    found = await session.sn.taskrunner(taskrunner)
    values = [
        ("TASKRUNNER", found.name),
        ("SWOP_PEERS", len(found.peers)),
        ("SL_PEERS", sum(one.num_sl for one in found.peers)),
        ("RUNS", found.num_runs),
    ]
    return said(*facts(values), data=found)


@SUBJECT.command("LIST TASKRUNNER PEERS {taskrunner}")
async def list_taskrunner_peers(session: Session, taskrunner: str) -> Result:
    """List the SWOP nodes that are enrolled in a taskrunner."""
    peers = (await session.sn.taskrunner(taskrunner)).peers
    rows = [(index, one.node, one.num_sl) for index, one in enumerate(peers)]
    return said(*table(("Index", "UID", "SLs"), rows), data=peers)


@SUBJECT.command("GET TASKRUNNER STATUS {taskrunner}")
async def get_taskrunner_status(session: Session, taskrunner: str) -> Result:
    """Show how far a taskrunner is with its task."""
    found = await session.sn.taskrunner(taskrunner)
    return said(*_status(found), data=found)


@SUBJECT.command("GET TASKRUNNER PEER STATUS {taskrunner} {peer}")
async def get_taskrunner_peer_status(session: Session, taskrunner: str, peer: str) -> Result:
    """Show how far one SWOP node is, named by its index (from 0) or its UID."""
    found = await session.sn.taskrunner(taskrunner)
    one = _peer(found, peer)
    values: list[tuple[str, object]] = [("SWOP_UID", one.node)]
    if found.counts_sl:
        values += [("SL_PEERS", one.num_sl), ("SL_PEERS_DONE", one.num_done)]
    values += [("STATUS", one.state), ("DESCRIPTION", one.text), ("REPORTED", moment(one.at))]
    return said(*facts(values), data=one)


@SUBJECT.command("ASSIGN TASK {task} TO {taskrunner} WITH {num_peers} PEERS")
async def assign_task(session: Session, task: str, taskrunner: str, num_peers: int) -> Result:
    """Give a taskrunner a task for so many peers: SL nodes for RUN_SWARM, SWOP nodes otherwise."""
    if num_peers < 1:
        raise ConfigError(f"num_peers: {num_peers} peers do nothing; at least 1, or WITH ALL PEERS")
    return _assigned(await session.sn.assign(taskrunner, task, num_peers))


@SUBJECT.command("ASSIGN TASK {task} TO {taskrunner} WITH ALL PEERS")
async def assign_task_to_all(session: Session, task: str, taskrunner: str) -> Result:
    """Give a taskrunner a task for all that are enrolled now."""
    return _assigned(await session.sn.assign(taskrunner, task))


@SUBJECT.command("ASSIGN TASK {task} TO {taskrunner} TARGET {node}")
async def assign_task_to_target(session: Session, task: str, taskrunner: str, node: str) -> Result:
    """Give a task to one SWOP node alone. It may join a run of the same task: after a failure, or late."""
    return _assigned(await session.sn.assign(taskrunner, task, target=node))


@SUBJECT.command("WAIT FOR TASKRUNNER {taskrunner}")
async def wait_for_taskrunner(session: Session, taskrunner: str, *, tell: Tell) -> Result:
    """Wait until a taskrunner's task has ended; fails where it ended in ERROR, and when the time limit is over."""
    found = await session.sn.taskrunner(taskrunner)
    variable = RUN_TASK_WAIT if found.counts_sl else GENERIC_TASK_WAIT
    minutes = float(session.context().env[variable])
    tell(f"WAITING FOR TASKRUNNER TO COMPLETE : at most {minutes:g} minutes ({variable})")
    found = await _until_ended(session, found, session.now() + 60 * minutes, tell)
    if found.state is TaskState.RUNNING:
        tell(OVER)
        raise TimedOut(f"{taskrunner} still runs {found.task} after {minutes:g} min; wait again, or RESET TASKRUNNER")
    if found.state is TaskState.ERROR:
        raise TaskFailed(_failure(found))
    return said(*_status(found), data=found)


@SUBJECT.command("RESET TASKRUNNER {taskrunner}")
async def reset_taskrunner(session: Session, taskrunner: str) -> Result:
    """Drop a taskrunner's task, whatever its state: its nodes stop what they do for it."""
    return said(f"TASKRUNNER RESET : {taskrunner}", data=await session.sn.reset_taskrunner(taskrunner))


@SUBJECT.command("LIST RUNS {taskrunner}", ours=True)
async def list_runs(session: Session, taskrunner: str) -> Result:
    """List all runs of a taskrunner, those before a reset included."""
    runs = await session.sn.task_runs(taskrunner)
    heading = ("Run", "Task", "State", "PeersNeeded", "Assigned", "Ended")
    rows = [
        (one.number, one.task, one.state, one.num_peers, moment(one.assigned_at), moment(one.ended_at)) for one in runs
    ]
    return said(*table(heading, rows), data=runs)


@SUBJECT.command("GET RUN {taskrunner} {number}", ours=True)
async def get_run(session: Session, taskrunner: str, number: int) -> Result:
    """Show what each SWOP node reported in one run."""
    if number < 1:
        raise ConfigError(f"number: {number} is no run; they count from 1")
    runs = await session.sn.task_runs(taskrunner, number, number)
    if not runs:
        raise NotFound(f"{taskrunner} has had no run {number}")
    rows = [(one.node, one.state, one.num_sl, one.num_done, one.text, moment(one.at)) for one in runs[0].peers]
    return said(*table(("UID", "State", "SLs", "SLsDone", "Description", "Reported"), rows), data=runs[0])


async def _until_ended(session: Session, found: Taskrunner, deadline: float, tell: Tell) -> Taskrunner:
    """The taskrunner once it does not run any more, or as it is at the deadline."""
    run, marked = found.run, False
    while found.state is TaskState.RUNNING and found.run == run and (left := deadline - session.now()) > 0:
        found = await session.sn.taskrunner(found.name, seen=found.version, wait_s=min(left, _MARK_S))
        tell("#", end="")
        marked = True
    if marked:
        tell("")
    if found.run != run:  # somebody else's RESET, or that and a new task
        raise TaskFailed(f"{found.name}: run {run}, which was waited for, was reset by somebody")
    return found


def _status(found: Taskrunner) -> tuple[str, ...]:
    values: list[tuple[str, object]] = [
        ("TASKRUNNER", found.name),
        ("TASK", found.task or EMPTY),
        ("PEER_TYPE", "SL" if found.counts_sl else "SWOP"),
        ("TASK_STATE", found.state),
        ("PEERS_NEEDED", found.num_peers),
        ("ACTIVE_PEERS", _count(found.peers, TaskState.RUNNING)),
        ("COMPLETED_PEERS", _count(found.peers, TaskState.COMPLETE)),
        ("FAILED_PEERS", _count(found.peers, TaskState.ERROR)),
        ("ASSIGNED", moment(found.assigned_at)),
        ("ENDED", moment(found.ended_at)),
    ]
    return facts(values)


def _count(peers: Iterable[TaskrunnerPeer], state: TaskState) -> int:
    return sum(one.state is state for one in peers)


def _assigned(found: Taskrunner) -> Result:
    return said(f"TASK ASSIGNED : {found.task} TO {found.name}, RUN {found.run}", data=found)


def _peer(found: Taskrunner, name: str) -> TaskrunnerPeer:
    for index, one in enumerate(found.peers):
        if name in (one.node, str(index)):
            return one
    known = ", ".join(f"{index} ({one.node})" for index, one in enumerate(found.peers)) or "none"
    raise NotFound(f"{found.name} has no peer {name!r}; there are: {known}")


def _failure(found: Taskrunner) -> str:
    failed = [f"{one.node}: {one.text or 'gave no reason'}" for one in found.peers if one.state is TaskState.ERROR]
    reasons = "; ".join(failed) or f"fewer than {found.num_peers} peers could do it"
    return f"task {found.task} on {found.name} ended in ERROR: {reasons}"
