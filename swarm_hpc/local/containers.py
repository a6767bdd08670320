"""container=apptainer on one host: the command lines of SNs and of programs without a swarm. SLs make their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from swarm_hpc.config import ContainerConfig, ContainerKind, LocalConfig, ProgramConfig, SnConfig
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.slurm import container
from swarm_hpc.slurm.container import Host
from swarm_hpc.slurm.images import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Containers:
    """Both images, checked, and where containers keep what they write."""

    config: ContainerConfig
    host: Host
    sn_image: Image
    image: Image
    tmp: Path

    @classmethod
    def find(cls, config: LocalConfig, folder: RunFolder, env: Mapping[str, str]) -> Self | None:
        """None with container=none. ConfigError, ImageNotFound, ImageRefused."""
        if config.container.kind is ContainerKind.NONE:
            return None
        chosen = config.container.of(config.experiment.platform)
        host = container.look_at_host(chosen, env)
        return cls(
            config=chosen,
            host=host,
            sn_image=container.find_checked(chosen, chosen.sn_image, host, env),
            image=container.find_checked(chosen, chosen.image, host, env),
            tmp=folder.tmp,
        )

    def sn(self, config: SnConfig, settings: Path, words: Sequence[str]) -> list[str]:
        """`swarm-hpc WORDS` of an SN whose settings are in that folder."""
        made = container.sn_container(config, self.sn_image, settings, self.tmp / Path(config.data_dir).name)
        return container.command_line(self.host, made, [container.COMMAND, *words])

    def program(self, program: ProgramConfig, name: str) -> list[str]:
        """A program that runs without a swarm."""
        made = container.program_container(program, self.config, self.image, self.tmp / name)
        return container.command_line(self.host, made, program.command)
