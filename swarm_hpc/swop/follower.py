"""A SWOP node at work: follows its taskrunner and takes the steps that state.py decides on, one task at a time."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn

from swarm_hpc.config import FollowConfig
from swarm_hpc.errors import (
    DuplicateNode,
    Fenced,
    LedgerError,
    NotFound,
    NotMember,
    SlurmError,
    SlurmMissing,
    SwarmError,
    TaskRefused,
    TransportError,
)
from swarm_hpc.records import NodeName, NodeStatus, Task, Taskrunner, TaskState, TaskType
from swarm_hpc.sl.member import Member
from swarm_hpc.sn.client import SnClient
from swarm_hpc.sn.client_tasks import MAX_WAIT_S
from swarm_hpc.swop import report
from swarm_hpc.swop.doing import Doing, Workshop
from swarm_hpc.swop.journal import Journal
from swarm_hpc.swop.part import Ending, Part, Slot, SlotState, with_slots
from swarm_hpc.swop.state import Step, decide, needs, why_dropped

log = logging.getLogger(__name__)

ROOT_TASK: Final = "ROOTTASK"
_FIRST_PAUSE_S: Final = 1.0
_LAST_PAUSE_S: Final = 30.0
_MAX_PREREQS: Final = 64
_AWAY: Final = (TransportError, LedgerError, SlurmError)
"""What may pass by itself: it is tried again for ever."""
_REPLACED: Final = (Fenced, DuplicateNode, NotMember)
"""What does not."""


class Follower:
    """Works for one taskrunner until it is cancelled; what runs then goes on, and the next one finds it."""

    def __init__(
        self, sn: SnClient, member: Member, taskrunner: str, workshop: Workshop, state_dir: Path, config: FollowConfig
    ) -> None:
        self._sn = sn
        self._member = member
        self._taskrunner = taskrunner
        self._workshop = workshop
        self._state_dir = state_dir
        self._config = config
        self._journal = Journal(state_dir)
        self._part = self._journal.read()
        self._doing: Doing | None = None
        self._said = ""
        self._said_at = 0.0
        self._look_at = 0.0
        self._seen = -1
        self._refused: tuple[object, ...] = ()

    async def run(self) -> NoReturn:
        """Enrol, and do what the taskrunner is given. Fenced, DuplicateNode: another process has this node's name."""
        pause_s = _FIRST_PAUSE_S
        enrolled = False
        while True:
            try:
                if not enrolled:
                    await self._enrol()
                    enrolled = True
                await self._turn()
                pause_s = _FIRST_PAUSE_S
            except _REPLACED:
                raise
            except _AWAY as exc:
                log.warning("%s; trying again in %.0f s", exc, pause_s)
                enrolled = enrolled and not isinstance(exc, NotFound)  # a ledger that was founded anew
                self._seen = -1
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    async def _enrol(self) -> None:
        await self._sn.create_taskrunner(self._taskrunner)
        num_sl = self._workshop.num_sl
        await self._member.call(
            lambda incarnation: self._sn.enrol(self._taskrunner, self._member.name, incarnation, num_sl)
        )
        log.info("enrolled in %s with %d SL nodes", self._taskrunner, num_sl)

    async def _turn(self) -> None:
        """Wait for something to do, and do it."""
        wait_s = MAX_WAIT_S if self._part is None else max(0.0, self._look_at - time.monotonic())
        runner = await self._sn.taskrunner(self._taskrunner, seen=self._seen, wait_s=wait_s)
        step = decide(runner, self._member.name, self._part)
        is_done = await self._take(step, runner)
        self._seen = -1 if is_done else runner.version

    async def _take(self, step: Step, runner: Taskrunner) -> bool:
        """Take the step; True: there may be another one at once."""
        part = self._part
        if step is Step.REST:
            return False
        if step is Step.CLAIM:
            return await self._claim(runner)
        assert part is not None
        if step is Step.WORK:
            return await self._work(part)
        if step is Step.FINISH:
            return await self._finish(part)
        if step is Step.DROP:
            await self._drop(part, part.dropped or why_dropped(runner, part))
        self._forget()
        return True

    async def _claim(self, runner: Taskrunner) -> bool:
        if self._refused == needs(runner):
            return False
        try:
            await self._report(runner.run, TaskState.RUNNING, f"{runner.task}: begun")
        except TaskRefused as exc:
            log.info("run %d of %s is not for us: %s", runner.run, runner.name, exc)
            self._refused = needs(runner)
            return False
        task, prereqs = await self._fetch(runner.task)
        part = Part(taskrunner=runner.name, run=runner.run, task=task.name, kind=task.type, token=uuid.uuid4().hex[:8])
        log.info("run %d of %s: %s %s of site %s", runner.run, runner.name, task.type, task.name, task.site)
        try:
            self._doing = await asyncio.to_thread(self._workshop.open, task, prereqs)
            part = with_slots(part, NodeName.parse(self._member.name).name, self._doing.indexes)
        except SwarmError as exc:
            part = replace(part, ending=_refused(part, exc))
        self._said, self._look_at = "", 0.0
        # variables of tasks and profiles are in there, and may be secrets
        part.folder(self._state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(part)
        return True

    async def _fetch(self, name: str) -> tuple[Task, list[Task]]:
        """The task, and what comes before it, the nearest first."""
        task = await self._sn.task(name)
        prereqs: list[Task] = []
        before = task.prereq
        while before and before != ROOT_TASK and len(prereqs) < _MAX_PREREQS:
            prereqs.append(await self._sn.task(before))
            before = prereqs[-1].prereq
        return task, prereqs

    async def _work(self, part: Part) -> bool:
        """Start what is to be started, look at the rest, and say how it goes; True: all is over."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + self._config.poll_s
        if self._doing is None:
            task, prereqs = await self._fetch(part.task)
            try:
                self._doing = await asyncio.to_thread(self._workshop.open, task, prereqs)
            except SwarmError as exc:
                await self._cancel(part)
                self._write(replace(part, ending=_refused(part, exc)))
                return True
        before = part
        for slot in part.slots:
            part = part.with_slot(await self._advance(part, slot, self._doing))
            if part != self._part:
                self._write(part)
        if part.is_over:
            self._write(replace(part, ending=await self._end(part, self._doing)))
            return True
        changed = [slot.state for slot in before.slots] != [slot.state for slot in part.slots]
        if changed or time.monotonic() >= self._said_at + self._config.report_s:
            await self._say(part, self._doing)
        return False

    async def _advance(self, part: Part, slot: Slot, doing: Doing) -> Slot:
        """The slot, one step further."""
        folder = part.folder_of(slot, self._state_dir)
        if slot.state.is_over:
            return slot
        try:
            if slot.state is SlotState.WAITING:
                handle = await asyncio.to_thread(doing.start, part, slot, folder)
                log.info("%s: started as %s", slot.tag, handle)
                return replace(slot, state=SlotState.STARTED, handle=handle)
            standing = await asyncio.to_thread(doing.poll, slot, folder)
            return replace(slot, state=standing.state, why=standing.why)
        except (SwarmError, OSError) as exc:
            passes = isinstance(exc, SlurmMissing | TransportError)
            if slot.state is SlotState.WAITING and not passes:
                return replace(slot, state=SlotState.FAILED, why=str(exc))
            log.warning("%s: %s; asking again", slot.tag, exc)
            return slot

    async def _progress(self, part: Part, doing: Doing) -> dict[int, Sequence[NodeStatus]]:
        if part.kind is not TaskType.RUN_SWARM:
            return {}
        nodes = await self._sn.nodes()
        found: dict[int, Sequence[NodeStatus]] = {}
        for slot in part.slots:
            prefix = doing.node_prefix(part, slot)
            if prefix:
                found[slot.index] = [one for one in nodes if one.node.name.startswith(prefix)]
        return found

    async def _say(self, part: Part, doing: Doing) -> None:
        """Report how it goes, if there is anything new to say."""
        said = ""
        if part.kind is not TaskType.RUN_SWARM and part.slots:
            slot = part.slots[0]
            folder = part.folder_of(slot, self._state_dir)
            said = "".join(await asyncio.to_thread(doing.tail, slot, folder, 1))
        text = report.describe(part, await self._progress(part, doing), said)
        if text == self._said:
            return
        try:
            await self._report(part.run, TaskState.RUNNING, text, part.num_done)
        except TaskRefused as exc:
            log.info("%s: %s", part.task, exc)  # the next turn sees why
        self._said, self._said_at = text, time.monotonic()

    async def _end(self, part: Part, doing: Doing) -> Ending:
        failed = [slot for slot in part.slots if slot.state is SlotState.FAILED]
        causes: dict[int, str] = {}
        lines: list[str] = []
        for slot in failed[:1]:
            folder = part.folder_of(slot, self._state_dir)
            found = await asyncio.to_thread(doing.tail, slot, folder, max(1, self._config.share_log_lines))
            failure = await asyncio.to_thread(doing.failure, slot, folder)
            words = [failure.text, *(found[-1:] if failure.is_programs else [])]
            causes[slot.index] = ": ".join(word for word in words if word)
            lines = found if self._config.share_log_lines else []
        return report.end(part, await self._progress(part, doing), causes, lines)

    async def _finish(self, part: Part) -> bool:
        ending = part.ending
        assert ending is not None
        try:
            await self._report(part.run, ending.state, ending.text, ending.num_done)
        except TaskRefused as exc:
            log.warning("the end of %s is not taken: %s", part.task, exc)
            self._look_at = time.monotonic() + self._config.poll_s
            return False
        log.info("%s", ending.text.partition("\n")[0])
        return True

    async def _drop(self, part: Part, why: str) -> None:
        """End all that the part has started. Journalled first: a SWOP that is killed meanwhile goes on with it."""
        log.warning("%s: given up: %s", part.task, why)
        self._write(replace(part, dropped=why))
        await self._cancel(part)

    async def _cancel(self, part: Part) -> None:
        await asyncio.gather(
            *(
                asyncio.to_thread(self._workshop.cancel, part.kind, slot, part.folder_of(slot, self._state_dir))
                for slot in part.slots
                if not slot.state.is_over
            )
        )

    async def _report(self, run: int, state: TaskState, text: str, num_done: int = 0) -> None:
        await self._member.call(
            lambda incarnation: self._sn.report(
                self._taskrunner, run, self._member.name, incarnation, state, text, num_done
            )
        )

    def _write(self, part: Part) -> None:
        self._journal.write(part)
        self._part = part

    def _forget(self) -> None:
        self._journal.clear()
        self._part = self._doing = None


def _refused(part: Part, exc: SwarmError) -> Ending:
    return Ending(state=TaskState.ERROR, text=report.fit([f"{part.task}: not done here: {exc}"]))
