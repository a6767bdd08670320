"""`swarm-hpc sl` with container=apptainer: its program in a container, and itself in another one if that is wanted."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from swarm_hpc.errors import ConfigError

if TYPE_CHECKING:
    from swarm_hpc.config import SlConfig
    from swarm_hpc.slurm.container import Host
    from swarm_hpc.slurm.images import Image

_SIGNALLED: Final = 128
_LEFT: Final = "left"


def run_sl(config: SlConfig) -> int:
    """Be the node until it has ended; its exit code.

    ConfigError, ImageNotFound, ImageRefused, and what a node raises.
    """
    from swarm_hpc.config import SlPlace
    from swarm_hpc.sl import node
    from swarm_hpc.slurm import container

    if not config.program.command:
        raise ConfigError("container=apptainer: program.command is empty, and there is nothing to put into a container")
    host = container.look_at_host(config.container, os.environ)
    image = container.find_checked(config.container, config.container.image, host, os.environ)
    container.warn_of_signals(host, image)
    # on the node's own disk: what a program keeps in /tmp is not for the other nodes
    with TemporaryDirectory(prefix="swarm-sl-") as name:
        config = container.with_absolute_paths(config)
        contained = container.contain(config, image, host, Path(name))
        if config.container.sl is SlPlace.HOST:
            asyncio.run(node.run(contained))
            return 0
        return _run_apart(contained, image, host, Path(name))


def _run_apart(config: SlConfig, image: Image, host: Host, tmp: Path) -> int:
    from swarm_hpc import settings_file
    from swarm_hpc.config import ContainerConfig
    from swarm_hpc.sl.node import MPI_VARIABLES
    from swarm_hpc.slurm import container, outside
    from swarm_hpc.slurm.environment import read_inherited

    program, left = config.program, Path(config.state_dir).absolute() / _LEFT
    inner = replace(
        config,
        container=ContainerConfig(),
        program=replace(program, launcher=outside.launcher(tmp), cwd=config.state_dir, env={}),
        left_file=str(left) if config.left_file else "",
    )
    left.unlink(missing_ok=True)
    words = settings_file.write(tmp / "settings", "sl", "inner", inner)
    made = container.sl_container(config, image, tmp / "settings", tmp)
    code = outside.run(
        outside.Pair(
            sl=container.command_line(host, made, [container.COMMAND, *words]),
            program=[*program.launcher, *program.command],
            cwd=Path(program.cwd),
            log=Path(program.log) if program.log else None,
            folder=tmp,
            env=program.env,
            without=MPI_VARIABLES,
            pass_fds=read_inherited(os.environ),
        )
    )
    if left.exists():
        Path(config.left_file).touch()
    return code if code >= 0 else _SIGNALLED - code
