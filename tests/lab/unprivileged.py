"""An ordinary user for tests that run as root: commands without any privilege, and nothing left of them afterwards.

The interpreter, the checkout and the cache may lie below a folder that only root may enter. The user's commands have a
mount namespace in which an overlay opens such a folder; what is outside sees none of that.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import psutil

from swarm_hpc.cache import cache_folder
from tests.lab.slurm import hand_over, until, which

USER: Final = "nobody"
COMMAND_S: Final = 60.0
END_S: Final = 30.0
PROGRAMS: Final = ("cat", "env", "mkdir", "mount", "nsenter", "setpriv", "sh", "unshare")
ROOTS_HOME: Final = Path("/root")
REPOSITORY: Final = Path(__file__).parents[2]
# They name root's own folders.
FOREIGN: Final = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")


@cache
def find_unprivileged() -> str | None:
    """Why nothing can be run as an ordinary user here; None where it can."""
    if os.getuid() != 0:
        return None
    if missing := [name for name in PROGRAMS if which(name) is None]:
        return f"no {', '.join(missing)} here: install util-linux and coreutils"
    try:
        with ordinary_user() as one:
            done = one.run(sys.executable, "-c", f"import os; os.listdir({str(REPOSITORY)!r}); print(os.getuid())")
            seen = one.pids()
    except (AssertionError, KeyError, OSError, subprocess.SubprocessError) as exc:
        return f"no ordinary user here: {exc} {getattr(exc, 'stderr', None) or ''}".strip()
    if done.returncode or done.stdout.strip() == "0":
        return f"no ordinary user here: {done.stdout}{done.stderr}"
    return None if seen else "no ordinary user here: the namespaces of processes cannot be seen"


@dataclass(frozen=True)
class Unprivileged:
    """An ordinary user, and how to run commands as them."""

    user: str
    home: Path
    """A new folder of theirs. Theirs alone: what they write below a folder that had to be opened, only they see."""
    launcher: tuple[str, ...] = ()
    """The first words of a command that runs as the user, where the caller is and with the caller's environment but for
    HOME and the like. The command takes the launcher's place: signals, exit code and death with the parent are its own.
    """
    holder: int = 0
    """The process that holds the namespaces; 0: the tests themselves are an ordinary user's."""

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in the user's home."""
        return subprocess.run(
            [*self.launcher, *map(str, command)],
            env={**os.environ, **(env or {})},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def pids(self) -> set[int]:
        """Every process that the launcher has started, and whatever those started, wherever its parent is by now."""
        # A container has mounts, users, perhaps an environment and a PID namespace of its own, but not a host name.
        if not self.holder:
            return set()
        ours = Path(f"/proc/{self.holder}/ns/uts").readlink()
        return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _uts(pid) == ours}


@contextmanager
def ordinary_user(*paths: Path) -> Iterator[Unprivileged]:
    """An ordinary user who can read `paths`, the interpreter, the checkout and the cache; their processes end with it.

    Where the tests are an ordinary user's, it is that one; nothing is opened then, and nobody's process ended.
    CalledProcessError: not permitted here.
    """
    folder = Path(tempfile.mkdtemp(prefix="user-"))
    try:
        home = folder / "home"
        home.mkdir(mode=0o700)
        if os.getuid() != 0:
            yield Unprivileged(pwd.getpwuid(os.getuid()).pw_name, home)
            return
        folder.chmod(0o755)
        with ExitStack() as stack:
            holder = stack.enter_context(_namespaces())
            one = Unprivileged(USER, home, _launcher(holder, home), holder)
            stack.callback(_kill_all, one)
            _open(holder, folder, [*paths, Path(sys.executable), Path(sys.base_prefix), REPOSITORY, _cache()])
            _mirror_cache(holder, folder, home)
            hand_over(home, USER)
            yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _namespaces() -> Iterator[int]:
    """The process that holds them open."""
    # It ends when we do, however that is: its standard input ends.
    command = [_program("unshare"), "--mount", "--uts", "--propagation=private", _program("cat")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # not to be ended by a Ctrl-C of ours before what needs it
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        with suppress(BrokenPipeError):
            process.stdin.write(b"\n")
            process.stdin.flush()
        if not process.stdout.readline():  # cat answers: the namespaces are there
            raise subprocess.CalledProcessError(process.wait(END_S), command, stderr=process.stderr.read().decode())
        yield process.pid


def _launcher(holder: int, home: Path) -> tuple[str, ...]:
    ids = pwd.getpwnam(USER)
    into = [_program("nsenter"), f"--mount=/proc/{holder}/ns/mnt", f"--uts=/proc/{holder}/ns/uts"]
    env = [f"HOME={home}", f"USER={USER}", f"LOGNAME={USER}", f"SWARM_HPC_CACHE={_cache()}"]
    unset = [f"--unset={name}" for name in FOREIGN]
    # The kernel forgets the parent-death signal when the user changes.
    drop = [_program("setpriv"), f"--reuid={ids.pw_uid}", f"--regid={ids.pw_gid}", "--clear-groups"]
    drop += ["--no-new-privs", "--pdeathsig=keep"]
    # Entering a mount namespace leads to its root folder.
    words = f'{shlex.join(into)} {_program("env")} --chdir="$PWD" {shlex.join([*unset, *env, *drop])} "$@"'
    return _program("sh"), "-c", f"exec {words}", "as-ordinary-user"


def _open(holder: int, folder: Path, paths: Iterable[Path]) -> None:
    """Let everybody in the namespace enter these paths."""
    layers = folder / "layers"
    layers.mkdir()
    # A file system of its own: not every one can be an overlay's upper layer.
    _run_within(holder, "mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", layers)
    closed = _find_closed(paths)
    outermost = [one for one in closed if not any(other in one.parents for other in closed)]
    for number, outer in enumerate(outermost):
        upper, work = layers / f"upper{number}", layers / f"work{number}"
        # An upper layer of nothing but open folders: theirs are the modes, and below is what was there.
        inner = [upper / one.relative_to(outer) for one in closed if one.is_relative_to(outer)]
        _run_within(holder, "mkdir", "-p", work, *inner)
        options = f"lowerdir={outer},upperdir={upper},workdir={work}"
        _run_within(holder, "mount", "-t", "overlay", "-o", options, "overlay", outer)


def _mirror_cache(holder: int, folder: Path, home: Path) -> None:
    """Apptainer lays the user's home over /root when it builds: a cache that is there must be there then, too."""
    if _cache().is_relative_to(ROOTS_HOME) and _cache().exists():
        elsewhere, link = folder / "cache", home / _cache().relative_to(ROOTS_HOME)
        elsewhere.mkdir()
        _run_within(holder, "mount", "--bind", _cache(), elsewhere)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(elsewhere)


def _run_within(holder: int, name: str, *words: str | Path) -> None:
    command = [_program("nsenter"), f"--mount=/proc/{holder}/ns/mnt", _program(name), *words]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_S, umask=0o022)


def _find_closed(paths: Iterable[Path]) -> list[Path]:
    """The folders on the way to these, links included, that not everybody may enter."""
    steps = {step.resolve() for path in paths for step in (path.absolute(), *path.absolute().parents)}
    folders = {folder for step in steps for folder in (step, *step.parents) if folder.is_dir()}
    return sorted(folder for folder in folders if not folder.stat().st_mode & 0o001)


def has_ended(pid: int) -> bool:
    """Whether there is no such process any more, or only its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _kill_all(one: Unprivileged) -> None:
    def are_gone() -> bool:
        for pid in (left := one.pids() - {one.holder}):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    until(are_gone, f"the processes of {one.user} to end", END_S, lambda: str(one.pids()))


def _uts(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/ns/uts").readlink()
    except OSError:  # it has ended, or is not ours to look at
        return None


def _cache() -> Path:
    return cache_folder(os.environ)


def _program(name: str) -> str:
    found = which(name)
    assert found is not None, f"no {name}"
    return found
