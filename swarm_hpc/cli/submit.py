"""The verb `submit`: a site's part in a training as a Slurm job; and the settings of that job's tasks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, settings_arguments
from swarm_hpc.cli.settings import EXAMPLES, load
from swarm_hpc.errors import ConfigError, JobFailed

if TYPE_CHECKING:
    from swarm_hpc.config import SlConfig, SubmitConfig
    from swarm_hpc.slurm.plan import JobPlan

SITE_VARIABLE: Final = "SWARM_HPC_SITE"
"""Environment variable with the site profile to take where no word says `site=`; a cluster's admin sets it."""


def task_settings(options: argparse.Namespace) -> SlConfig:
    """The SL node of the Slurm task that this process is. NotInJob, ConfigError; NotReachable: no SN came up."""
    from swarm_hpc.slurm.endpoint import find_sn
    from swarm_hpc.slurm.environment import read_task
    from swarm_hpc.slurm.plan import plan_task

    task = read_task(os.environ, Path.cwd())
    settings = _load(options)
    config = plan_task(settings, task, EXAMPLES)
    logs.start(config.name, options.log_level)
    config.sn = find_sn(settings.site, timeout_s=settings.round.max_wait_s)
    Path(config.program.cwd).mkdir(parents=True, exist_ok=True)
    return config


def _arguments(parser: argparse.ArgumentParser) -> None:
    settings_arguments(parser)
    parser.add_argument("--wait", action="store_true", help="follow the job to its end; Ctrl-C leaves it running")
    parser.add_argument("--dry-run", action="store_true", help="show the job's script and the settings, submit nothing")


def _run(options: argparse.Namespace) -> int:
    from swarm_hpc.slurm.executor import submit
    from swarm_hpc.slurm.script import script

    config = _load(options)
    text = script(_plan(config, options))
    if options.dry_run:
        _show(config, text, as_json=options.json)
        return 0
    logs.start("submit", options.log_level)
    run_dir = Path(config.site.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"site.run_dir: {run_dir}: {exc.strerror}") from exc
    job = submit(text, run_dir)
    if options.wait:
        _follow(config, job)
    if options.json:
        print(json.dumps({"job": job, "site": config.site.name, "log": _log(config, job)}))
    else:
        print(job)
    return 0


def _load(options: argparse.Namespace) -> SubmitConfig:
    from swarm_hpc.config import SubmitConfig

    return load(SubmitConfig, "submit", _with_site(options.words), options.config_dir)


def _with_site(words: Sequence[str]) -> list[str]:
    site = os.environ.get(SITE_VARIABLE, "")
    is_named = any(word.startswith("site=") for word in words)
    return [f"site={site}", *words] if site and not is_named else [*words]


def _log(config: SubmitConfig, job: str) -> str:
    """The job's log; %j stands for an ID that is not known yet."""
    return str(Path(config.site.run_dir) / f"slurm-{job}.log")


def _plan(config: SubmitConfig, options: argparse.Namespace) -> JobPlan:
    from swarm_hpc.slurm.plan import job_name, plan_job

    words = _with_site(options.words)
    if options.config_dir:
        words += ["--config-dir", options.config_dir]
    return plan_job(config.site, name=job_name(config), log=_log(config, "%j"), words=words)


def _show(config: SubmitConfig, text: str, *, as_json: bool) -> None:
    """The script and the settings; as text, the settings are comments at its end, so that sbatch takes the whole."""
    import yaml

    from swarm_hpc.records import encode

    if as_json:
        print(json.dumps({"script": text, "settings": encode(config)}))
        return
    settings: Any = yaml.safe_dump(encode(config), sort_keys=False)
    print(f"{text}\n# The settings, all of them:\n" + "\n".join(f"#   {line}" for line in settings.splitlines()))


def _follow(config: SubmitConfig, job: str) -> None:
    """Say on stderr how the job does until it is over. JobFailed where it did not finish its work."""
    from swarm_hpc.local.jobs import describe, fetch_progress
    from swarm_hpc.slurm.watch import follow

    said = ""
    for now in follow(job, poll_s=config.poll_s, timeout_s=config.wait_s):
        progress = fetch_progress(config.site, job) if now.state == "RUNNING" else ""
        if (text := describe(now, progress)) != said:
            print(text, file=sys.stderr, flush=True)
            said = text
    if now.state != "COMPLETED":
        raise JobFailed(f"job {job} ended as {now.state}, exit code {now.exit_code}; its log is {_log(config, job)}")


SUBMIT = Command(
    about="train at this site: submit a Slurm job whose tasks are SL nodes with the training program",
    example="swarm-hpc submit experiment=digits site=alpha merge=geomedian site.time=02:00:00 --config-dir ~/swarm",
    arguments=_arguments,
    run=_run,
    settings="submit",
)
