"""What this site does for tasks: with its profile, its policy and its executor.

What a body means is in run_swarm.py and work.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from swarm_hpc.config import ContainerKind, ExecutorKind, SwopConfig
from swarm_hpc.errors import ConfigError
from swarm_hpc.processes import last_lines
from swarm_hpc.records import NodeName, Task, TaskType
from swarm_hpc.swop import attended, run_swarm
from swarm_hpc.swop.doing import Doing, Workshop
from swarm_hpc.swop.executor import Executor, Failure, Order, Standing
from swarm_hpc.swop.images import image_name
from swarm_hpc.swop.local_executor import LocalExecutor
from swarm_hpc.swop.part import Part, Slot, SlotState
from swarm_hpc.swop.places import Job, Places, write_job
from swarm_hpc.swop.profile import NodeDefinition, Profile
from swarm_hpc.swop.work import MODULE
from swarm_hpc.tasks.file import RunSwarm
from swarm_hpc.tasks.lines import from_lines

log = logging.getLogger(__name__)

_VOLUMES: Final = "volumes"
_IMAGE_MAKERS: Final = (TaskType.MAKE_USER_CONTAINER, TaskType.PULL_IMAGE)


class SiteWorkshop(Workshop):
    """The site of a profile."""

    def __init__(self, config: SwopConfig, profile: Profile) -> None:
        self._config = config
        self._profile = profile
        self._executor = _executor(config)
        self.volumes = Path(config.volumes_dir or Path(config.state_dir) / _VOLUMES).absolute()

    @property
    def num_sl(self) -> int:
        """As many as the profile has nodes, and the policy allows."""
        return len(self._nodes)

    @property
    def _nodes(self) -> Sequence[NodeDefinition]:
        return self._profile.nodes[: self._profile.policy.nodes(len(self._profile.nodes))]

    def open(self, task: Task, prereqs: Sequence[Task]) -> Doing:
        """Take on the task, unless the policy is against it. The program runs in the nearest image that came before."""
        body = from_lines(task.type, task.body, task.name)
        self._profile.policy.check(task, body)
        if isinstance(body, RunSwarm):
            image = next((image_name(one.outcome) for one in prereqs if one.type in _IMAGE_MAKERS), "")
            if image and self._config.container.kind is ContainerKind.NONE:
                log.warning("%s: container=none: its programs run with what is here, not in %s", task.name, image)
            return _Swarm(self._config, self._profile, self._nodes, body, image, self._executor, self.volumes)
        return _Work(self._config, self._profile, task, self.volumes)

    def cancel(self, kind: TaskType, slot: Slot, folder: Path) -> None:
        """End what was started for the slot, and see to it that nothing is."""
        if kind is TaskType.RUN_SWARM:
            self._executor.cancel(folder, slot.tag, slot.handle)
        else:
            attended.cancel(folder)


class _Swarm(Doing):
    """A RUN_SWARM: a slot per node of the profile."""

    def __init__(
        self,
        config: SwopConfig,
        profile: Profile,
        nodes: Sequence[NodeDefinition],
        body: RunSwarm,
        image: str,
        executor: Executor,
        volumes: Path,
    ) -> None:
        self._config = config
        self._profile = profile
        self._nodes = {node.index: node for node in nodes}
        self._body = body
        self._image = image
        self._executor = executor
        self._volumes = volumes

    @property
    def indexes(self) -> Sequence[int]:
        return list(self._nodes)

    def start(self, part: Part, slot: Slot, folder: Path) -> str:
        return self._executor.start(self._order(part, slot, folder))

    def poll(self, slot: Slot, folder: Path) -> Standing:
        return self._executor.poll(folder, slot.handle)

    def tail(self, slot: Slot, folder: Path, num_lines: int) -> list[str]:
        return self._executor.tail(folder, slot.handle, num_lines)

    def failure(self, slot: Slot, folder: Path) -> Failure:
        return self._executor.failure(folder, slot.handle)

    def node_prefix(self, part: Part, slot: Slot) -> str:
        return self._executor.node_prefix(_node(self._config, part, slot), slot.handle)

    def _order(self, part: Part, slot: Slot, folder: Path) -> Order:
        node = self._nodes.get(slot.index)
        if node is None:
            raise ConfigError(f"node {slot.index} has gone from the profile")
        seen = run_swarm.seen_paths(self._body, node, self._volumes)
        kind, env = self._config.container.kind, self._profile.sl_env(node)
        if kind is ContainerKind.APPTAINER:
            run_swarm.make_mount_points(seen)
        folder.mkdir(parents=True, exist_ok=True)
        return Order(
            tag=slot.tag,
            folder=folder,
            name=_node(self._config, part, slot),
            program=run_swarm.program(self._body, self._profile, node, seen, kind, folder.absolute()),
            identity=run_swarm.identity(self._config.site.identity, node, self._volumes),
            round=run_swarm.rules(self._config.round, env),
            container=run_swarm.container(self._config.container, self._image, seen),
            num_gpus=node.options.num_gpus,
        )


class _Work(Doing):
    """The other types: one child process, `work.py`, on this host."""

    def __init__(self, config: SwopConfig, profile: Profile, task: Task, volumes: Path) -> None:
        self._config = config
        self._profile = profile
        self._task = task
        self._volumes = volumes

    @property
    def indexes(self) -> Sequence[int]:
        return [0]

    def start(self, part: Part, slot: Slot, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        places = Places(
            images=Path(self._config.container.image_dir),
            volumes=self._volumes,
            log=folder.absolute() / "programs.log",
            apptainer=self._config.container.apptainer,
            nodes=tuple(node.index for node in self._profile.nodes),
            env=self._profile.env,
            registries=self._profile.policy.registries,
            downloads=self._profile.policy.downloads,
            paths=self._profile.policy.paths,
        )
        task = self._task
        job = Job(task=task.name, type=task.type, outcome=task.outcome, body=task.body, places=places)
        file = folder.absolute() / "job.json"
        write_job(file, job)
        return attended.start(folder, [sys.executable, "-m", MODULE, str(file)], env={}, cwd=folder.absolute())

    def poll(self, slot: Slot, folder: Path) -> Standing:
        standing = attended.poll(folder)
        if standing.state is SlotState.DONE:  # the last line says what was made
            return Standing(SlotState.DONE, "".join(last_lines(folder / attended.LOG, 1)))
        return standing

    def tail(self, slot: Slot, folder: Path, num_lines: int) -> list[str]:
        return last_lines(folder / attended.LOG, num_lines)

    def failure(self, slot: Slot, folder: Path) -> Failure:
        return Failure()

    def node_prefix(self, part: Part, slot: Slot) -> str:
        return ""


def _node(config: SwopConfig, part: Part, slot: Slot) -> str:
    """Last part of a local SL's name."""
    return f"{NodeName.parse(config.name).name}-{part.run}-{slot.index}"


def _executor(config: SwopConfig) -> Executor:
    if config.executor is ExecutorKind.LOCAL:
        return LocalExecutor(config)
    from swarm_hpc.swop.slurm_executor import SlurmExecutor  # submitit is needed there only

    return SlurmExecutor(config)
