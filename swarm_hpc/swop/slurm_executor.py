"""SL nodes as Slurm jobs: per node of the profile one, as `swarm-hpc submit` makes it, and never two under a tag."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from swarm_hpc import settings_file
from swarm_hpc.config import ExperimentConfig, SiteConfig, SubmitConfig, SwopConfig
from swarm_hpc.errors import SlurmError, TimedOut
from swarm_hpc.processes import last_lines
from swarm_hpc.records import Platform
from swarm_hpc.slurm.command import run
from swarm_hpc.slurm.executor import submit
from swarm_hpc.slurm.job import Job
from swarm_hpc.slurm.plan import node_prefix, plan_job
from swarm_hpc.slurm.query import fetch_jobs, find_job
from swarm_hpc.slurm.script import script
from swarm_hpc.swop import attended
from swarm_hpc.swop.executor import Executor, Failure, Order, Standing
from swarm_hpc.swop.part import SlotState

_STARTED: Final = "started"
_ENDED: Final = "ended"
_CANCELLED: Final = "cancelled"
_END_S: Final = 120.0
"""How long a cancelled job may take to end: its programs save their state, within Slurm's KillWait."""
_POLL_S: Final = 0.5
# A second job of the slot ends at once; a requeued one has the same ID and goes on. `ln` makes the file with its
# content or not at all, on NFS, too. The end is written for a SWOP that comes back after Slurm has forgotten the job.
_FENCE: Final = (
    'echo "$SLURM_JOB_ID" > {folder}/started."$SLURM_JOB_ID"',
    'ln {folder}/started."$SLURM_JOB_ID" {folder}/started 2>/dev/null'
    ' || [ "$(cat {folder}/started)" = "$SLURM_JOB_ID" ]'
    ' || {{ echo "this is for job $(cat {folder}/started)"; exit 0; }}',
    "rm -f {folder}/ended",
    'trap \'echo $? > "$SWARM_SLOT/ended.new" && mv "$SWARM_SLOT/ended.new" "$SWARM_SLOT/ended"\' EXIT',
    "SWARM_SLOT={folder}",
)


class SlurmExecutor(Executor):
    """A handle is a job's ID."""

    def __init__(self, config: SwopConfig) -> None:
        self._config = config

    def start(self, order: Order) -> str:
        """An `Executor`'s: at most once per slot."""
        folder = order.folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if found := _read(folder / _STARTED):
            return found
        if (job := find_job(order.tag, now=time.time())) is not None:
            return job.id
        return submit(self.script(order), folder)

    def script(self, order: Order) -> str:
        """The job's text. Writes the settings of its tasks."""
        folder = order.folder.absolute()
        site = self._site(order)
        settings = SubmitConfig(
            experiment=ExperimentConfig(
                name="task",
                metric="metric",
                platform=Platform.PYTORCH,
                prepare=[],
                train=order.program.command,
                env=order.program.env,
            ),
            site=site,
            data_dir="",
            connection=self._config.connection,
            merge=self._config.merge,
            transfer=self._config.transfer,
            round=order.round,
            license=self._config.license,
            container=order.container,
        )
        words = settings_file.write(folder / "settings", "submit", "node", settings)[1:]
        fenced = replace(site, setup=[*(line.format(folder=shlex.quote(str(folder))) for line in _FENCE), *site.setup])
        return script(plan_job(fenced, name=order.tag, log=str(folder / "slurm-%j.log"), words=words))

    def _site(self, order: Order) -> SiteConfig:
        site = self._config.site
        gpus = order.num_gpus if order.num_gpus > 0 else site.gpus_per_task
        return replace(site, run_dir=str(order.folder.absolute()), identity=order.identity, gpus_per_task=gpus)

    def poll(self, folder: Path, handle: str) -> Standing:
        """How it stands."""
        id = _read(folder / _STARTED) or handle
        found = fetch_jobs([id], now=time.time())
        if found:
            return _standing(found[0])
        code = _read(folder / _ENDED)
        if not code:
            return Standing(SlotState.FAILED, f"job {id}: Slurm knows it no more, and it left no word of its end")
        return Standing(SlotState.DONE if code == "0" else SlotState.FAILED, f"job {id}: exit code {code}")

    def cancel(self, folder: Path, tag: str, handle: str) -> None:
        """End it, or keep it from starting."""
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{_STARTED}.{_CANCELLED}"
        beside.write_text(f"{_CANCELLED}\n", encoding="ascii")
        with suppress(FileExistsError):  # keeps a job of that tag that we do not know of from starting its program
            (folder / _STARTED).hardlink_to(beside)
        ids = {_read(folder / _STARTED), handle} - {"", _CANCELLED}
        if (job := find_job(tag, now=time.time())) is not None:
            ids.add(job.id)
        for id in sorted(ids):
            try:
                run("scancel", id)
            except SlurmError as exc:
                if "Invalid job id" not in str(exc):
                    raise
        _await_end(ids)

    def tail(self, folder: Path, handle: str, num_lines: int) -> list[str]:
        """The program's last lines; else those of what has started it."""
        id = _read(folder / _STARTED) or handle
        logs = sorted((folder / f"job-{id}").glob("task-*/ml.log*"))
        found = [last_lines(file, num_lines) for file in [*logs, folder / f"slurm-{id}.log"]]
        return next((lines for lines in found if lines), [])

    def failure(self, folder: Path, handle: str) -> Failure:
        """Why it has failed."""
        return attended.failure(folder / f"slurm-{_read(folder / _STARTED) or handle}.log")

    def node_prefix(self, name: str, handle: str) -> str:
        """How the names of its SL nodes begin."""
        return node_prefix(self._config.site.name, handle) if handle else ""


def _await_end(ids: Collection[str]) -> None:
    """Until what was cancelled has ended: the next task may want its data and its GPUs. TimedOut."""
    deadline = time.monotonic() + _END_S
    while ids and (left := [job.id for job in fetch_jobs(sorted(ids), now=time.time()) if not job.is_over]):
        if time.monotonic() > deadline:
            raise TimedOut(f"cancelled, but not over after {_END_S:g} s: job {', '.join(left)}")
        time.sleep(_POLL_S)


def _standing(job: Job) -> Standing:
    why = f"job {job.id} {job.state.lower()}{f': {job.why}' if job.why else ''}"
    where = f" on {job.nodes}" if job.nodes and not job.is_over else ""
    if not job.is_over:
        return Standing(SlotState.STARTED, why + where)
    return Standing(SlotState.DONE if job.state == "COMPLETED" else SlotState.FAILED, why)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
