"""The command lines that run something in a container, as lists of words. No other file makes them.

A container has the image as its read-only root, the paths that are bound, at the same places as on the host, and a HOME
and a /tmp of its own. Processes, network, IPC and the environment are the host's, so that signals, exit codes, shared
memory, sockets and MPI work across its border.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from swarm_hpc.config import (
    ContainerConfig,
    ContainerKind,
    ExperimentConfig,
    IdentityConfig,
    ProgramConfig,
    RanksKind,
    SlConfig,
    SnConfig,
)
from swarm_hpc.errors import ConfigError
from swarm_hpc.slurm.apptainer import find_apptainer
from swarm_hpc.slurm.images import Image, check_signature, digest_of, find_image, image_folder

EXAMPLES: Final = Path("/opt/swarm-hpc/examples")
"""Where our images have the examples."""
PYTHON: Final = "python3"
"""The interpreter of our images."""
COMMAND: Final = "swarm-hpc"
SHIELD: Final = Path(__file__).resolve().parents[1] / "apptainer" / "shield"
"""What stands before squashfuse_ll in PATH."""
log = logging.getLogger(__name__)

CHANNEL: Final = "{channel}"
STATE: Final = "{state}"
"""SL knows these folders when it starts the program (ProgramConfig.launcher)."""

OWN: Final = "SWARM_"
"""Variables with such names are SL's to set: where its socket is, which rank this is."""

_HOME: Final = "/home/swarm"
_CACHE: Final = f"{_HOME}/.cache"
# What is the host's and would lead to nowhere, and caches where a read-only root has no room for them.
_ENV: Final = {
    "PYTHONPATH": "",
    "PYTHONHOME": "",
    "PYTHONNOUSERSITE": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "TMPDIR": "/tmp",  # noqa: S108 - the container's own
    "XDG_CACHE_HOME": _CACHE,
    "HF_HOME": f"{_CACHE}/huggingface",
    "TORCH_HOME": f"{_CACHE}/torch",
    "TRITON_CACHE_DIR": f"{_CACHE}/triton",
    "NUMBA_CACHE_DIR": f"{_CACHE}/numba",
    "MPLCONFIGDIR": f"{_CACHE}/matplotlib",
}
_IMAGES: Final = frozenset(("/", "/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"))
"""Folders that the image has itself: /bin/sh and the like are those in there."""
# Each container has a user namespace of its own: MPICH must not reach into the memory of a rank in another one.
_MPI_ENV: Final = {"MPIR_CVAR_CH4_CMA_ENABLE": "0", "UCX_POSIX_USE_PROC_LINK": "n"}
# SIGUSR2, which Slurm gives to all processes of a step, is for SL; Apptainer hands it on, undoing that it was ignored.
_UNTOUCHED: Final = ("/bin/sh", "-c", 'trap "" USR2; exec "$@"', "sh")


class Gpus(StrEnum):
    """Whose GPUs a host has; the value is Apptainer's option."""

    NONE = ""
    NVIDIA = "--nv"
    AMD = "--rocm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """What containers need to know of the host they run on."""

    apptainer: Path
    search_path: str
    """PATH of the host."""
    is_root: bool = False
    gpus: Gpus = Gpus.NONE


def train_command(experiment: ExperimentConfig, config: ContainerConfig, examples: Path) -> list[str]:
    """An experiment's training program, with the examples and the interpreter of the host, or of our images."""
    if config.kind is ContainerKind.NONE:
        return experiment.fill(experiment.train, examples)
    return experiment.fill(experiment.train, EXAMPLES, PYTHON)


def look_at_host(config: ContainerConfig, env: Mapping[str, str]) -> Host:
    """This host. ConfigError: there is no Apptainer."""
    gpus = Gpus.NONE
    if Path("/dev/nvidiactl").exists():
        gpus = Gpus.NVIDIA
    elif Path("/dev/kfd").exists():
        gpus = Gpus.AMD
    return Host(
        apptainer=find_apptainer(config.apptainer, env),
        search_path=env.get("PATH", os.defpath),
        is_root=os.geteuid() == 0,
        gpus=gpus,
    )


def find_checked(config: ContainerConfig, named: str, host: Host, env: Mapping[str, str]) -> Image:
    """The image of that name or path, its signature checked where a public key is given.

    ConfigError, ImageNotFound, ImageRefused.
    """
    if not named:
        raise ConfigError("container.image: name the image that the program runs in, or give its path")
    image = find_image(named, image_folder(config.image_dir, env))
    if config.public_key:
        check_signature(image, Path(config.public_key), host.apptainer)
    return image


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder or file of the host in a container."""

    source: str
    target: str = ""
    """Empty: the same path."""
    writable: bool = False

    def words(self) -> tuple[str, str]:
        """Apptainer's option, in which a path may have commas, too."""
        fields = ["type=bind", f"source={self.source}", f"destination={self.target or self.source}"]
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([*fields, *([] if self.writable else ["ro"])])
        return "--mount", text.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """What a container is made of."""

    image: Path
    home: Path
    """Folder of the host that is its HOME: caches are kept there."""
    tmp: Path
    """Folder of the host that is its /tmp."""
    cwd: Path
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set otherwise than on the host."""
    with_gpus: bool = False


def command_line(host: Host, container: Container, words: Sequence[str] = ()) -> list[str]:
    """What to run on the host so that `words` run in the container."""
    return [
        # Apptainer finds its squashfuse_ll there
        *("/usr/bin/env", f"PATH={SHIELD}{os.pathsep}{host.search_path}"),
        *(str(host.apptainer), "--quiet", "exec", "--no-eval"),
        *(["--userns"] if host.is_root else []),
        *([str(host.gpus)] if container.with_gpus and host.gpus else []),
        *("--no-mount", "cwd,tmp,hostfs", "--home", f"{container.home}:{_HOME}", "--pwd", str(container.cwd)),
        *Bind(str(container.tmp), "/tmp", writable=True).words(),  # noqa: S108
        *(word for bind in container.binds for word in bind.words()),
        *(word for name, value in (_ENV | dict(container.env)).items() for word in ("--env", _variable(name, value))),
        str(container.image),
        *words,
    ]


def sn_container(config: SnConfig, image: Image, settings: Path, tmp: Path) -> Container:
    """An SN's; `settings` is the folder that it reads its settings from. Makes the folders that it writes to."""
    data = _made(Path(config.data_dir).absolute())
    shared = [Bind(str(_made(Path(config.transfer.shared_dir).absolute())), writable=True)]
    return Container(
        image=image.path,
        home=_made(tmp / "home"),
        tmp=_made(tmp / "tmp"),
        cwd=data,
        binds=(
            Bind(str(settings)),
            Bind(str(data), writable=True),
            *_keys(config.identity),
            *(shared if config.transfer.shared_dir else []),
        ),
    )


def sl_container(config: SlConfig, image: Image, settings: Path, tmp: Path) -> Container:
    """An SL node's, without its program: `settings` is the folder that it reads its settings from, and in `tmp` it
    meets who starts the program."""
    state = _made(Path(config.state_dir).absolute())
    binds = [Bind(str(settings)), Bind(str(state), writable=True), Bind(str(tmp), writable=True)]
    binds += _keys(config.identity)
    if config.transfer.shared_dir:
        binds.append(Bind(str(_made(Path(config.transfer.shared_dir).absolute())), writable=True))
    if config.program.log:
        log = Path(config.program.log).absolute()
        log.touch()
        binds.append(Bind(str(log), writable=True))
    return Container(
        image=image.path,
        home=_made(state / "home"),
        tmp=_made(tmp / "sl"),
        cwd=state,
        binds=tuple(binds),
        env=_MPI_ENV if config.ranks.kind is RanksKind.MPI else {},
    )


def with_absolute_paths(config: SlConfig) -> SlConfig:
    """The same files and folders, wherever the node is started: in a container its working directory is another one."""
    keys, shared, log_file = config.identity, config.transfer.shared_dir, config.program.log
    return replace(
        config,
        state_dir=_absolute(config.state_dir),
        identity=replace(keys, cert=_absolute(keys.cert), key=_absolute(keys.key), bundle=_absolute(keys.bundle)),
        transfer=replace(config.transfer, shared_dir=shared and _absolute(shared)),
        program=replace(config.program, cwd=_absolute(config.program.cwd), log=log_file and _absolute(log_file)),
    )


def contain(config: SlConfig, image: Image, host: Host, tmp: Path) -> SlConfig:
    """The settings of an SL node whose program runs in a container."""
    container = program_container(config.program, config.container, image, tmp)
    state = Path(config.state_dir).absolute()
    if "," in str(state) or '"' in str(state):
        raise ConfigError(
            f"state_dir: {state}: its folders are bound into a container, and may have no comma nor quote"
        )
    container = replace(
        container,
        home=_made(state / "program-home"),
        binds=(*container.binds, Bind(CHANNEL), Bind(STATE, writable=True)),
    )
    launcher = [*command_line(host, container), *_UNTOUCHED]
    return replace(
        config,
        program=replace(config.program, launcher=launcher, env=_inside(config.program.env)),
        job=replace(config.job, image=digest_of(image)),
    )


def program_container(program: ProgramConfig, config: ContainerConfig, image: Image, tmp: Path) -> Container:
    """An ML program's: it sees its working directory, DATA_DIR and SCRATCH_DIR, the folders of the files that its
    command line names (container.bind_named), and container.binds. ConfigError: one of those is not there."""
    cwd = Path(program.cwd).absolute()
    wanted = [Bind(str(cwd), writable=True)]
    for name, writable in (("SCRATCH_DIR", True), ("DATA_DIR", False)):
        if path := program.env.get(name):
            found = Path(path).absolute()
            if found.exists():
                wanted.append(Bind(str(found), writable=writable))
            else:
                log.warning("%s: there is no %s; the program will not find it in its container", name, found)
    named = (Path(word) for word in program.command if config.bind_named and word.startswith("/"))
    wanted += [Bind(str(path.parent)) for path in named if path.is_file() and str(path.parent) not in _IMAGES]
    wanted += [parse_bind(text) for text in config.binds]
    own = {name: value for name, value in program.env.items() if name in _ENV}
    _make_mount_points(tmp / "tmp", wanted)
    return Container(
        image=image.path,
        home=_made(tmp / "home"),
        tmp=_made(tmp / "tmp"),
        cwd=cwd,
        binds=tuple(_needed(wanted)),
        env=own,
        with_gpus=True,
    )


def parse_bind(text: str) -> Bind:
    """SOURCE, SOURCE:TARGET or SOURCE:TARGET:rw. ConfigError."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or mode not in ("", "ro", "rw") or (target and not target.startswith("/")):
        raise ConfigError(f"container.binds: {text!r}: write SOURCE, SOURCE:TARGET or SOURCE:TARGET:rw")
    return Bind(_there(source, "container.binds"), target, writable=mode == "rw")


def warn_of_signals(host: Host, image: Image) -> None:
    """Say so where signals for a whole step take the image away: the shield is not in the way of Apptainer's own
    squashfuse_ll."""
    own = shutil.which("squashfuse_ll", path=f"{host.apptainer.resolve().parents[1]}/libexec/apptainer/bin")
    if own is not None and not image.is_sandbox:
        log.warning(
            "this Apptainer uses its own %s, which scancel and preemption end before a program has saved its state: "
            "better give the image as a sandbox (container.image=FOLDER, from apptainer build --sandbox FOLDER %s)",
            own,
            image.path,
        )


def _needed(binds: Iterable[Bind]) -> Iterator[Bind]:
    """Without those that lie in another one anyway."""
    kept: list[Bind] = []
    for bind in binds:
        inside = (
            not bind.target and not other.target and Path(bind.source).is_relative_to(other.source)
            for other in kept
            if other.writable or not bind.writable
        )
        if not any(inside):
            kept.append(bind)
    return iter(kept)


def _make_mount_points(tmp: Path, binds: Iterable[Bind]) -> None:
    """What is bound below /tmp needs a place in the folder that is the container's /tmp: Apptainer makes none there."""
    for bind in binds:
        target = Path(bind.target or bind.source)
        if target.is_relative_to("/tmp") and target != Path("/tmp"):  # noqa: S108 - the container's own
            place = tmp / target.relative_to("/tmp")  # noqa: S108
            if Path(bind.source).is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()


def _keys(identity: IdentityConfig) -> list[Bind]:
    """Each file by itself: what else lies beside it is none of the node's business."""
    return [Bind(_absolute(file)) for file in (identity.cert, identity.key, identity.bundle)]


def _inside(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that are set in a container, and mean nothing to Apptainer and what else runs before the program:
    APPTAINER_BIND and LD_PRELOAD would lead out of it."""
    return {name if name.startswith(OWN) else f"APPTAINERENV_{name}": value for name, value in env.items()}


def _variable(name: str, value: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([f"{name}={value}"])
    return text.getvalue()


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _there(path: str, what: str) -> str:
    found = Path(path).absolute()
    if not found.exists():
        raise ConfigError(f"{what}: there is no {found}")
    return str(found)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
