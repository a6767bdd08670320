"""The verb `submit`: a site's part in a training as a Slurm job; and the settings of that job's tasks."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swarm_hpc import logs
from swarm_hpc.cli import sweep
from swarm_hpc.cli.command import Command, settings_arguments
from swarm_hpc.cli.settings import EXAMPLES, load, split_sweep
from swarm_hpc.errors import ConfigError, JobFailed, SwarmError

if TYPE_CHECKING:
    from swarm_hpc.config import SlConfig, SubmitConfig

log = logging.getLogger(__name__)

SITE_VARIABLE: Final = "SWARM_HPC_SITE"
"""Environment variable with the site profile to take where no word says `site=`; a cluster's admin sets it."""


def task_settings(options: argparse.Namespace) -> SlConfig:
    """The SL node of the Slurm task that this process is. NotInJob, ConfigError; NotReachable: no SN came up."""
    from swarm_hpc.config import SubmitConfig
    from swarm_hpc.slurm.endpoint import find_sn
    from swarm_hpc.slurm.environment import read_task
    from swarm_hpc.slurm.plan import plan_task

    task = read_task(os.environ, Path.cwd())
    settings = load(SubmitConfig, "submit", _with_site(options.words), options.config_dir)
    config = plan_task(settings, task, EXAMPLES)
    logs.start(config.name, options.log_level)
    config.sn = find_sn(settings.site, timeout_s=settings.round.max_wait_s)
    Path(config.program.cwd).mkdir(parents=True, exist_ok=True)
    return config


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    """A job before it is submitted."""

    config: SubmitConfig
    words: tuple[str, ...]
    """The settings that its tasks are given."""
    name: str

    def log(self, job: str = "%j") -> str:
        """The job's log; %j stands for an ID that is not known yet."""
        return str(Path(self.config.site.run_dir) / f"slurm-{job}.log")

    def script(self) -> str:
        """Its text, for sbatch."""
        from swarm_hpc.slurm.plan import plan_job
        from swarm_hpc.slurm.script import script

        return script(plan_job(self.config.site, name=self.name, log=self.log(), words=self.words))

    def as_json(self, job: str) -> dict[str, str]:
        """For machines."""
        contract = self.config.round.contract
        return {"job": job, "site": self.config.site.name, "contract": contract, "log": self.log(job)}


def _arguments(parser: argparse.ArgumentParser) -> None:
    settings_arguments(parser)
    text = "a job with a training contract of its own per combination of values: merge=mean,geomedian seed=range(1,4)"
    parser.add_argument("-m", "--multirun", action="store_true", help=text)
    parser.add_argument("--wait", action="store_true", help="follow the job to its end; Ctrl-C leaves it running")
    parser.add_argument("--dry-run", action="store_true", help="show the job's script and the settings, submit nothing")


def _run(options: argparse.Namespace) -> int:
    jobs = _plan(options)
    if options.dry_run:
        _show(jobs, as_list=options.multirun, as_json=options.json)
        return 0
    logs.start("submit", options.log_level)
    made = _submit(jobs)
    if options.wait:
        _follow(made)
    if options.json:
        told = [job.as_json(id) for id, job in made.items()]
        print(json.dumps(told if options.multirun else told[0]))
    else:
        print("\n".join(made))
    return 0


def _plan(options: argparse.Namespace) -> list[_Planned]:
    """All jobs, with settings that can be; one, unless it is a sweep. ConfigError."""
    from swarm_hpc.config import SubmitConfig
    from swarm_hpc.slurm.plan import job_name

    combinations = split_sweep("submit", _with_site(options.words), options.config_dir)
    if not options.multirun and combinations[0].swept:
        key = combinations[0].swept[0][0]
        raise ConfigError(f"{key}: several values make several jobs; write swarm-hpc submit -m if that is meant")
    folder = ["--config-dir", options.config_dir] if options.config_dir else []
    jobs = []
    for one in combinations:
        words = list(one.words)
        config = load(SubmitConfig, "submit", words, options.config_dir)
        contract = sweep.contract_name(config.round.contract, one)
        if contract != config.round.contract:
            words.append(f"{sweep.CONTRACT}={contract}")
            config = load(SubmitConfig, "submit", words, options.config_dir)
        name = "-".join(part for part in (job_name(config), sweep.suffix(one)) if part)
        jobs.append(_Planned(config=config, words=(*words, *folder), name=name))
    sweep.check_names([job.config.round.contract for job in jobs], combinations)
    return jobs


def _submit(jobs: Sequence[_Planned]) -> dict[str, _Planned]:
    """The jobs by their IDs."""
    from swarm_hpc.slurm.executor import submit

    made: dict[str, _Planned] = {}
    try:
        for job in jobs:
            run_dir = Path(job.config.site.run_dir)
            try:
                run_dir.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise ConfigError(f"site.run_dir: {run_dir}: {exc.strerror}") from exc
            made[submit(job.script(), run_dir)] = job
    except SwarmError:
        if made:
            log.warning("submitted before that: %s (to take them back: scancel %s)", ", ".join(made), " ".join(made))
        raise
    return made


def _with_site(words: Sequence[str]) -> list[str]:
    """With the cluster's site, where neither a word nor a file of all settings (a SWOP's) says which."""
    from swarm_hpc.settings_file import GROUP

    site = os.environ.get(SITE_VARIABLE, "")
    is_named = any(word.startswith(("site=", f"+{GROUP}=")) for word in words)
    return [f"site={site}", *words] if site and not is_named else [*words]


def _show(jobs: Sequence[_Planned], *, as_list: bool, as_json: bool) -> None:
    """Scripts and settings; as text, the settings are comments at a script's end, so that sbatch takes the whole."""
    from swarm_hpc.records import encode

    if as_json:
        told = [{"script": job.script(), "settings": encode(job.config)} for job in jobs]
        print(json.dumps(told if as_list else told[0]))
        return
    print("\n".join(_as_text(job) for job in jobs))


def _as_text(job: _Planned) -> str:
    import yaml

    from swarm_hpc.records import encode

    settings: Any = yaml.safe_dump(encode(job.config), sort_keys=False)
    lines = "\n".join(f"#   {line}" for line in settings.splitlines())
    return f"{job.script()}\n# The settings, all of them:\n{lines}"


def _follow(jobs: Mapping[str, _Planned]) -> None:
    """Say on stderr how the jobs do until they are over. JobFailed where one did not finish its work."""
    from swarm_hpc.local.jobs import describe, fetch_progress
    from swarm_hpc.slurm.watch import follow

    config = next(iter(jobs.values())).config
    said: dict[str, str] = {}
    bad: dict[str, str] = {}
    for now in follow(list(jobs), poll_s=config.poll_s, timeout_s=config.wait_s):
        progress = fetch_progress(jobs[now.id].config.site, now.id) if now.state == "RUNNING" else ""
        if (text := describe(now, progress)) != said.get(now.id):
            print(text, file=sys.stderr, flush=True)
            said[now.id] = text
        if now.is_over and now.state != "COMPLETED":
            how = ", ".join(word for word in (now.state, now.why) if word)
            bad[now.id] = f"job {now.id} ended as {how}; its log is {jobs[now.id].log(now.id)}"
    if bad:
        raise JobFailed("; ".join(bad.values()))


SUBMIT = Command(
    about="train at this site: submit a Slurm job whose tasks are SL nodes with the training program",
    example="swarm-hpc submit experiment=digits site=alpha merge=geomedian site.time=02:00:00 --config-dir ~/swarm\n"
    "  swarm-hpc submit -m merge=mean,geomedian experiment=digits site=alpha --config-dir ~/swarm",
    arguments=_arguments,
    run=_run,
    settings="submit",
)
