"""What a profile says of a user's container (usrcontaineropts), for Apptainer without root and jobs of Slurm.

Nobody gets more rights than the user has: what asks for some is named in a note and otherwise left out. A device that
a job cannot have is refused, because the program would fail without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from swarm_hpc.tasks.yaml import Value

ALL: Final = -1
_NVIDIA: Final = re.compile(r"/dev/nvidia[a-z0-9/-]*")
_AMD: Final = re.compile(r"/dev/(kfd|dri)(/[A-Za-z0-9]+)?")
_INFINIBAND: Final = re.compile(r"/dev/infiniband(/[A-Za-z0-9]+)?")
_NAMES: Final = ("gpus", "device", "ipc", "shm-size", "group-add", "cap-add", "security-opt", "privileged")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerOptions:
    """What is left of them here."""

    num_gpus: int = 0
    """GPUs that the program wants; ALL: those of its node, as the site's own profile for Slurm asks for them."""


def read_options(value: Value | None) -> tuple[ContainerOptions, list[str]]:
    """The options, and what there is to say of them. ConfigError."""
    if value is None or value.is_null:
        return ContainerOptions(), []
    num_gpus, devices, notes = 0, [], []
    for name, option in value.pairs():
        if name == "gpus":
            num_gpus = _gpus(option)
        elif name == "device":
            devices += [_device(one) for one in _listed(option)]
        elif name in _IGNORED:
            _check_scalars(option)
            if not option.is_null and not (name == "privileged" and not option.boolean()):
                notes.append(f"usrcontaineropts.{name}: {_IGNORED[name]}")
        else:
            Value({name: option}, "map", value.file, value.path, value.line).fields((), _NAMES)  # says what is known
    if num_gpus > 0:
        notes.append("usrcontaineropts.gpus: counts; which GPUs of a node a job gets is for Slurm to say")
    wanted = num_gpus or (ALL if {"amd", "nvidia"} & set(devices) else 0)
    if wanted == ALL:
        notes.append("usrcontaineropts: of a node's GPUs all are as many as site.gpus_per_task says (or site.gres)")
    return ContainerOptions(num_gpus=wanted), notes


_IGNORED: Final = {
    "ipc": "has no effect: programs share the IPC namespace of their cluster node",
    "shm-size": "has no effect: /dev/shm is the cluster node's own, and counts as memory of the job",
    "group-add": "has no effect: a program has the groups of the user whose job it is",
    "cap-add": "has no effect: Apptainer runs as the user, without capabilities; they can trace their own processes",
    "security-opt": "has no effect: Apptainer uses no seccomp, AppArmor or SELinux profile unless told to",
    "privileged": "has no effect: Apptainer runs as the user, who gets no more rights; GPUs are there without",
}


def _gpus(value: Value) -> int:
    """`all`, a number, `device=3,5` as Docker has it."""
    text = value.text(most=240).strip("\"' ")
    if text == "all":
        return ALL
    if re.fullmatch(r"[0-9]{1,4}", text, re.ASCII):
        return int(text)
    if named := re.fullmatch(r"\"?device=([\w:.,-]+)\"?", text, re.ASCII):
        return len([one for one in named[1].split(",") if one])
    raise value.wrong(f'{text!r}: write "all", a number, or "device=3,5"')


def _listed(value: Value) -> list[Value]:
    return value.content if isinstance(value.content, list) else [value] if not value.is_null else []


def _device(value: Value) -> str:
    path = value.text(most=240).partition(":")[0]
    for kind, known in (("nvidia", _NVIDIA), ("amd", _AMD), ("infiniband", _INFINIBAND)):
        if known.fullmatch(path):
            return kind
    raise value.wrong(
        f"{path!r}: a container of a job has GPUs and InfiniBand, and no other device of its node: take it out"
    )


def _check_scalars(value: Value) -> None:
    for one in _listed(value):
        one.text(most=240)
