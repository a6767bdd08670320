"""A site's Slurm jobs, in words: what Slurm says of a job, and what the SN has heard from its nodes."""

from __future__ import annotations

import logging
import time
from typing import Final

from swarm_hpc.config import ClientConfig, ConnectionConfig, SiteConfig
from swarm_hpc.errors import ProtocolError, SlurmError, SlurmMissing, SwarmError
from swarm_hpc.local.swarm import fetch_status
from swarm_hpc.records import NodeStatus
from swarm_hpc.slurm import query
from swarm_hpc.slurm.endpoint import find_sn
from swarm_hpc.slurm.job import Job
from swarm_hpc.slurm.plan import node_prefix

log = logging.getLogger(__name__)

_ASK_S: Final = 3.0


def fetch_ours() -> tuple[Job, ...] | None:
    """The training jobs of this host's cluster, at the end those that have ended lately; None where there is no Slurm,
    or no answer of it.
    """
    try:
        return query.fetch_ours(now=time.time())
    except SlurmMissing as exc:
        log.debug("no jobs to show: %s", exc)
    except (SlurmError, ProtocolError) as exc:
        log.warning("the jobs cannot be shown: %s", exc)
    return None


def describe(job: Job, progress: str = "") -> str:
    """One line: `job 12: RUNNING on node7: epoch 3/10`, `job 12: PENDING (Resources)`."""
    why = f" ({job.why})" if job.why else ""
    nodes = f" on {job.nodes}" if job.nodes else ""
    return f"job {job.id}: {job.state}{why}{nodes}" + (f": {progress}" if progress else "")


def fetch_progress(site: SiteConfig, job_id: str) -> str:
    """What the SN last heard from the job's node that is furthest behind, or why that is unknown."""
    try:
        sn = find_sn(site, timeout_s=0.0)
        config = ClientConfig(sn=sn, identity=site.identity, connection=ConnectionConfig(connect_timeout_s=_ASK_S))
        nodes = fetch_status(config).nodes
    except SwarmError as exc:  # it is the job that is followed, and that goes on
        return f"(no news of the training: {exc})"
    prefix = node_prefix(site.name, job_id)
    ours = [one for one in nodes if one.node.name.startswith(prefix) and one.node.active]
    return _words(min(ours, key=lambda one: (one.progress.epoch, one.progress.batch))) if ours else ""


def _words(node: NodeStatus) -> str:
    now = node.progress
    parts = [
        f"epoch {now.epoch}/{now.total_epochs}" if now.total_epochs else "",
        "" if now.metric is None else f"{now.metric_name} {now.metric:.4g}".strip(),
        now.waiting,
    ]
    return ", ".join(part for part in parts if part)
