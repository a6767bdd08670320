"""Real Slurm clusters on this host: per site a munge with its own key, a slurmctld and two slurmd. No systemd, no root.

The daemons are our children: they end with the lab, and with the test's process should that be killed. Jobs run as
whoever runs the tests, unless a launcher leads to another user; all nodes of a site share this host's name and /tmp.
Sites share its network, too, unless they are given launchers that lead into others.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import psutil

from swarm_hpc import processes
from swarm_hpc.processes import Process

COMMAND_S: Final = 30.0
START_S: Final = 60.0
END_S: Final = 30.0
STOP_S: Final = 10.0
POLL_S: Final = 0.1
NUM_NODES: Final = 2
CPUS: Final = 4
"""Declared, not detected: more tasks than this host has cores may run."""
SBIN: Final = "/usr/sbin:/sbin"
PROGRAMS: Final = ("munged", "sbatch", "scancel", "scontrol", "sinfo", "slurmctld", "slurmd", "squeue", "srun")

# cred_expire is what a requeued job waits for before it starts again, 120 s by default.
CONF: Final = """\
ClusterName={site}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
KillWait=5
ReturnToService=2
JobRequeue=1
SlurmctldTimeout=30
SlurmdTimeout=30
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
GresTypes=gpu
Licenses=swarm:2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE: Final = """\
NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 \
CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=16000 Gres=gpu:2 State=UNKNOWN"""


@cache
def find_slurm() -> str | None:
    """Why real clusters cannot be started here; None where they can."""
    missing = [name for name in PROGRAMS if which(name) is None]
    return f"no {', '.join(missing)} here: run scripts/install_slurm.sh" if missing else None


@dataclass(frozen=True)
class Cluster:
    """One site's Slurm, up. `env` makes every Slurm command in a process speak to it."""

    site: str
    folder: Path
    ports: Sequence[int]
    """Of slurmctld, and of the nodes in their order."""
    launcher: Sequence[str] = ()
    """The first words of whatever runs at the site: its daemons, and commands on its login node."""
    user: str = field(default_factory=getpass.getuser)
    """Whom the launcher leads to: the daemons' user, and the only one who can have jobs."""
    daemons: dict[str, Process] = field(default_factory=dict, repr=False)

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}

    @property
    def nodes(self) -> list[str]:
        return [f"{self.site}{number}" for number in range(1, NUM_NODES + 1)]

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """What the command says; AssertionError where it fails."""
        done = self.attempt(*command, env=env, cwd=cwd)
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def attempt(
        self,
        *command: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = COMMAND_S,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.launcher, *map(str, command)],
            env={**os.environ, **self.env, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def state(self, job: str) -> str:
        """PENDING, RUNNING and so on; empty when Slurm has forgotten the job."""
        found = self.attempt("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        return found.stdout.strip()

    def await_state(self, job: str, *states: str, patience_s: float = END_S) -> str:
        """Until the job is in one of these states; which."""
        text = f"job {job} of {self.site} to be {' or '.join(states)}"
        return until(lambda: (now := self.state(job)) in states and now, text, patience_s, lambda: self.describe(job))

    def describe(self, job: str) -> str:
        return self.attempt("scontrol", "show", "job", job).stdout

    def processes_of(self, job: str = "") -> list[psutil.Process]:
        """Every live process on this host that belongs to the job, or to any: its environment says so."""
        return [one for one in psutil.process_iter() if self._belongs(one, job)]

    def _belongs(self, process: psutil.Process, job: str) -> bool:
        its_job = self._env_of(process).get("SLURM_JOB_ID")
        return its_job is not None and its_job == (job or its_job)

    def _env_of(self, process: psutil.Process) -> dict[str, str]:
        """The environment of a live process that speaks to this cluster; empty for any other."""
        try:
            env, status = process.environ(), process.status()
        except psutil.Error:
            return {}
        return env if env.get("SLURM_CONF") == self.env["SLURM_CONF"] and status != psutil.STATUS_ZOMBIE else {}

    def start(self, name: str, program: str, *words: str | Path) -> Process:
        """Start one of its daemons."""
        command = [*self.launcher, str(which(program)), *map(str, words)]
        log = self.folder / f"{name}.log"
        self.daemons[name] = Process.start(f"{self.site}-{name}", command, log=log, env=self.env)
        return self.daemons[name]

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-N", node, "-f", self.folder / "slurm.conf")

    def lose_node(self, node: str) -> None:
        """The node's slurmd is killed, what runs there is not; Slurm notices at once instead of after its timeout."""
        self.daemons[node].signal(signal.SIGKILL)
        self.daemons[node].popen.wait()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def find_node(self, node: str) -> None:
        """The node is back."""
        self.start_node(node)
        sinfo = ("sinfo", "--noheader", f"--nodes={node}", "--partition=main", "--format=%T")
        until(lambda: "down" not in self.run(*sinfo), f"{node} to be up", START_S, lambda: self.run(*sinfo))

    def await_idle(self) -> None:
        """Until all nodes are up and nothing runs. ProgramFailed where a daemon has ended."""
        command = ("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
        wanted = [word for node in self.nodes for word in (node, "idle")]

        def is_idle() -> bool:
            for daemon in self.daemons.values():
                daemon.check()
            return self.attempt(*command).stdout.split() == wanted

        def report() -> str:
            logs = "\n".join(f"--- {log}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))
            return f"{self.attempt(*command)}\n{logs}"

        until(is_idle, f"the nodes of {self.site} to be idle", START_S, report)

    def cancel_all(self) -> None:
        """End every job; returns when nothing of any is left."""
        self.run("scancel", f"--user={self.user}")
        squeue = ("squeue", "--noheader", "--format=%A %T %R")
        until(lambda: not self.run(*squeue), f"the jobs of {self.site} to end", END_S, lambda: self.run(*squeue))
        until(lambda: not self.processes_of(), "their processes to end", END_S, lambda: str(self.processes_of()))

    def kill_jobs(self) -> None:
        """Every process of its jobs, as where a node is lost."""
        _kill(self.processes_of())

    def kill_all(self) -> None:
        """Every process that speaks to it, daemons included: what a failed `cancel_all` or daemon leaves behind.

        A slurmstepd, which is no process of its job, would try for an hour to tell a slurmctld that is gone.
        """
        _kill(one for one in psutil.process_iter() if self._env_of(one))


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def clusters(
    *sites: str, launchers: Mapping[str, Sequence[str]] | None = None, user: str = ""
) -> Iterator[dict[str, Cluster]]:
    """A cluster per site, all nodes idle; at the end every job is cancelled and every daemon stopped.

    `user`: whom the launchers lead to, if that is another one than the tests'.
    """
    # Short: slurmd makes Unix sockets there.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    ports = iter(_free_ports(len(sites) * (1 + NUM_NODES)))
    try:
        with ExitStack() as stack:
            up = {}
            for site in sites:
                its_ports = [next(ports) for _ in range(1 + NUM_NODES)]
                launcher = (launchers or {}).get(site, ())
                cluster = Cluster(site, folder / site, its_ports, launcher, user or getpass.getuser())
                up[site] = stack.enter_context(_running(cluster))
            yield up
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(cluster: Cluster) -> Iterator[Cluster]:
    _write_conf(cluster)
    hand_over(cluster.folder, cluster.user)  # munged insists on that
    try:
        _start_munge(cluster)
        cluster.start("slurmctld", "slurmctld", "-D", "-f", cluster.folder / "slurm.conf")
        for node in cluster.nodes:
            cluster.start_node(node)
        cluster.await_idle()
        yield cluster
        cluster.cancel_all()
    finally:
        processes.stop(list(cluster.daemons.values())[::-1], STOP_S)
        cluster.kill_all()


def _write_conf(cluster: Cluster) -> None:
    folder, host = cluster.folder, socket.gethostname().partition(".")[0]
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    # munged refuses folders that others may write to, and clients must reach its socket.
    folder.parent.chmod(0o755)
    pairs = zip(cluster.nodes, cluster.ports[1:], strict=True)
    nodes = [NODE.format(name=name, host=host, port=port, cpus=CPUS) for name, port in pairs]
    (folder / "slurm.conf").write_text(
        CONF.format(
            site=cluster.site,
            host=host,
            port=cluster.ports[0],
            folder=folder,
            user=cluster.user,
            nodes="\n".join(nodes),
        )
    )
    # Character devices without hardware behind them: enough for CUDA_VISIBLE_DEVICES to be set.
    gres = f"NodeName={cluster.site}[1-{NUM_NODES}] Name=gpu File=/dev/{{}} Flags=nvidia_gpu_env\n"
    (folder / "gres.conf").write_text("".join(gres.format(device) for device in ("null", "zero")))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def hand_over(folder: Path, user: str) -> None:
    """Everything there belongs to the user from now on; nothing changes where that is who runs the tests."""
    if user != getpass.getuser():
        ids = pwd.getpwnam(user)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, ids.pw_uid, ids.pw_gid, follow_symlinks=False)


def _start_munge(cluster: Cluster) -> None:
    folder = cluster.folder / "munge"
    files = [f"--{name}-file={folder / name}" for name in ("key", "log", "pid", "seed")]
    process = cluster.start("munged", "munged", "--foreground", f"--socket={folder / 'socket'}", *files)

    def is_up() -> bool:
        process.check()
        return (folder / "socket").exists()

    until(is_up, "munged to be up", START_S, process.tail)


def until(condition: Callable[[], Any], what: str, patience_s: float, report: Callable[[], str] = str) -> Any:
    """The condition's first true value. AssertionError, with the report, when it does not come."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}\n{report()}"
        time.sleep(POLL_S)
    return value


def which(name: str) -> str | None:
    """Where a program is, also one of the administrator's."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
