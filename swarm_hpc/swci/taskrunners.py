"""Commands about taskrunners: groups of SWOP nodes that do one task at a time. Waiting for them is in waiting.py."""

from __future__ import annotations

from swarm_hpc.errors import ConfigError, NotFound
from swarm_hpc.records import Taskrunner, TaskrunnerPeer, TaskState
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swci.grammar import Label, Subject
from swarm_hpc.swci.result import Result, facts, moment, said, table
from swarm_hpc.swci.session import Session

SUBJECT = Subject("Taskrunners")

_PEERS = ("Index", "UID", "SLNodes", "State", "SLDone", "Reported", "Description")


@SUBJECT.command("CREATE TASKRUNNER {taskrunner}")
async def create_taskrunner(session: Session, taskrunner: Label) -> Result:
    """Create a taskrunner, which SWOP nodes then enrol in; nothing happens where it is there."""
    return said(f"TASKRUNNER CREATED : {taskrunner}", data=await session.sn.create_taskrunner(taskrunner))


@SUBJECT.command("LIST TASKRUNNERS")
async def list_taskrunners(session: Session) -> Result:
    """List all taskrunners, oldest first."""
    found = await session.sn.taskrunners()
    rows = [(one.name, one.state, one.task or "Empty", len(one.peers), one.num_runs) for one in found]
    return said(*table(("Name", "State", "Task", "Peers", "Runs"), rows), data=found)


@SUBJECT.command("GET TASKRUNNER INFO {taskrunner}")
async def get_taskrunner_info(session: Session, taskrunner: Label) -> Result:
    """Show how many SWOP nodes a taskrunner has, and how many SL nodes they can start."""
    found = await session.sn.taskrunner(taskrunner)
    lines = facts(
        [
            ("TASKRUNNER", found.name),
            ("PEERS", len(found.peers)),
            ("SL_NODES", sum(one.num_sl for one in found.peers)),
            ("RUNS", found.num_runs),
        ]
    )
    return said(*lines, data=found)


@SUBJECT.command("LIST TASKRUNNER PEERS {taskrunner}")
async def list_taskrunner_peers(session: Session, taskrunner: Label) -> Result:
    """List the SWOP nodes that are enrolled in a taskrunner."""
    found = await session.sn.taskrunner(taskrunner)
    rows = [(index, one.node, one.num_sl) for index, one in enumerate(found.peers)]
    return said(*table(("Index", "UID", "SLNodes"), rows), data=found.peers)


@SUBJECT.command("GET TASKRUNNER STATUS {taskrunner}")
async def get_taskrunner_status(session: Session, taskrunner: Label) -> Result:
    """Show what a taskrunner does, and how far it is."""
    found = await session.sn.taskrunner(taskrunner)
    states = [one.state for one in found.peers]
    lines = facts(
        [
            ("TASKRUNNER", found.name),
            ("TASK", found.task or "Empty"),
            ("PEER_TYPE", "SL" if found.counts_sl else "SWOP"),
            ("TASK_STATE", found.state),
            ("PEERS_WANTED", found.num_peers),
            ("ACTIVE_PEERS", states.count(TaskState.RUNNING)),
            ("COMPLETED_PEERS", states.count(TaskState.COMPLETE)),
            ("FAILED_PEERS", states.count(TaskState.ERROR)),
            ("ASSIGNED", moment(found.assigned_at)),
            ("ENDED", moment(found.ended_at)),
            ("RUN", found.run),
        ]
    )
    return said(*lines, data=found)


@SUBJECT.command("GET TASKRUNNER PEER STATUS {taskrunner} {peer}")
async def get_taskrunner_peer_status(session: Session, taskrunner: Label, peer: str) -> Result:
    """Show what a SWOP node has reported about the task at hand; name it by its index (from 0) or its UID."""
    found = await session.sn.taskrunner(taskrunner)
    one = await _peer(session.sn, found, peer)
    values: list[tuple[str, object]] = [("SWOP_UID", one.node)]
    if found.counts_sl:
        values += [("SL_NODES", one.num_sl), ("SL_NODES_DONE", one.num_done)]
    values += [("STATUS", one.state), ("DESCRIPTION", one.text), ("REPORTED", moment(one.at))]
    return said(*facts(values), data=one)


@SUBJECT.command("ASSIGN TASK {task} TO {taskrunner} WITH {num_peers} PEERS")
async def assign_task(session: Session, task: Label, taskrunner: Label, num_peers: int) -> Result:
    """Give a taskrunner a task for so many peers: SL nodes where the task is RUN_SWARM (as many or more start), SWOP
    nodes otherwise."""
    if num_peers < 1:
        raise ConfigError(f"num_peers: {num_peers} is less than 1; for all of them write WITH ALL PEERS")
    return _assigned(await session.sn.assign(taskrunner, task, num_peers), task)


@SUBJECT.command("ASSIGN TASK {task} TO {taskrunner} WITH ALL PEERS")
async def assign_task_to_all(session: Session, task: Label, taskrunner: Label) -> Result:
    """Give a taskrunner a task for all its peers: those that are enrolled at this moment."""
    return _assigned(await session.sn.assign(taskrunner, task), task)


@SUBJECT.command("ASSIGN TASK {task} TO {taskrunner} TARGET {peer}")
async def assign_task_to_peer(session: Session, task: Label, taskrunner: Label, peer: str) -> Result:
    """Give a task to one SWOP node, named by its UID. It may join a task that is running: a failed peer tries again, a
    late one is added."""
    target = await _uid(session.sn, peer)
    return _assigned(await session.sn.assign(taskrunner, task, target=target), task)


@SUBJECT.command("RESET TASKRUNNER {taskrunner}")
async def reset_taskrunner(session: Session, taskrunner: Label) -> Result:
    """Take a taskrunner's task back, whatever its state: its nodes stop what they do, and end what they started."""
    return said(f"TASKRUNNER RESET : {taskrunner}", data=await session.sn.reset_taskrunner(taskrunner))


@SUBJECT.command("LIST RUNS {taskrunner}", ours=True)
async def list_runs(session: Session, taskrunner: Label) -> Result:
    """List all that a taskrunner was ever given to do, and how it ended."""
    runs = await session.sn.task_runs(taskrunner)
    rows = [
        (one.number, one.task, one.state, one.num_peers, one.target, moment(one.assigned_at), moment(one.ended_at))
        for one in runs
    ]
    return said(*table(("Run", "Task", "State", "Peers", "Target", "Assigned", "Ended"), rows), data=runs)


@SUBJECT.command("GET RUN {taskrunner} {number}", ours=True)
async def get_run(session: Session, taskrunner: Label, number: int) -> Result:
    """Show what each node reported in one run of a taskrunner (numbered from 1)."""
    if number < 1:
        raise ConfigError(f"number: {number}: runs are numbered from 1")
    runs = await session.sn.task_runs(taskrunner, number, number)
    if not runs:
        raise NotFound(f"{taskrunner} has had no run {number}; LIST RUNS {taskrunner} lists them")
    (run,) = runs
    lines = facts([("TASK", run.task), ("TASK_STATE", run.state)])
    return said(*lines, *table(_PEERS, [_row(at, one) for at, one in enumerate(run.peers)]), data=run)


def _row(index: int, peer: TaskrunnerPeer) -> tuple[object, ...]:
    return index, peer.node, peer.num_sl, peer.state, peer.num_done, moment(peer.at), peer.text


def _assigned(runner: Taskrunner, task: str) -> Result:
    return said(f"TASK ASSIGNED : {task} TO {runner.name}", data=runner)


async def _peer(sn: SnClient, runner: Taskrunner, peer: str) -> TaskrunnerPeer:
    """The peer of that index or UID. NotFound."""
    if peer.isascii() and peer.isdigit() and len(peer) < 6:
        if int(peer) < len(runner.peers):
            return runner.peers[int(peer)]
    elif found := [one for one in runner.peers if one.node == await _uid(sn, peer)]:
        return found[0]
    there = f"it has {len(runner.peers)}, from index 0" if runner.peers else "nobody is enrolled"
    raise NotFound(f"{runner.name} has no peer {peer}: {there} (LIST TASKRUNNER PEERS {runner.name})")


async def _uid(sn: SnClient, peer: str) -> str:
    """A node's name, given that or the UUID that LIST NODES shows."""
    if "/" in peer:
        return peer
    for one in await sn.nodes():
        if one.node.instance == peer:
            return one.node.name
    raise NotFound(f"no node has the UID {peer}; it is a name, such as alpha/swop/one, or a UUID of LIST NODES")
