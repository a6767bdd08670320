"""One experiment from data to result: prepare the data, train every site alone, in the swarm, and on pooled data."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from swarm_hpc import processes
from swarm_hpc.config import ExperimentConfig, LocalConfig, ProgramConfig
from swarm_hpc.errors import ConfigError, NotReachable, ProgramFailed, TimedOut
from swarm_hpc.local.containers import Containers
from swarm_hpc.local.folder import POOLED, RunFolder
from swarm_hpc.local.progress import ProgressView, Watched
from swarm_hpc.local.results import Outcome, Summary
from swarm_hpc.local.swarm import ONE_THREAD, Swarm, fetch_rounds, fetch_status, fetch_whole_status
from swarm_hpc.processes import Process
from swarm_hpc.records import RoundState
from swarm_hpc.slurm.container import train_command

# fmt: off
SITE_NAMES: Final = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
)
# fmt: on
NUM_BASELINES_AT_ONCE: Final = 2
PREPARE_S: Final = 300.0


def run(config: LocalConfig, examples: Path) -> Summary:
    """Run the experiment and return what came of it; the run folder has all that it left behind.

    ConfigError: more sites than there are names for. ProgramFailed as soon as any process ends with an error, TimedOut
    after config.timeout_s. KeyboardInterrupt, also from SIGTERM, ends every process first.
    """
    started = time.monotonic()
    if config.sites > len(SITE_NAMES):
        raise ConfigError(f"sites: {config.sites} is more than there are names for: {len(SITE_NAMES)}")
    sites = SITE_NAMES[: config.sites]
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    root = Path(config.run_dir or f"runs/{config.experiment.name}-{stamp}")
    containers = Containers.find(config, RunFolder(root.absolute()), os.environ)  # handed on, not read
    folder = RunFolder.create(root)
    programs = Programs(config, folder, examples, containers)
    view = ProgressView(sites, folder.root, metric=config.experiment.metric)
    with processes.interruptible(), Swarm(config, folder, sites, containers) as swarm, view:
        view.say("preparing data and certificates")
        with programs.preparing(sites):
            swarm.make_certificates()
            swarm.launch_sns()
        with Baselines(programs, [*sites, POOLED] if config.baselines else []) as baselines:
            num_sns = len(swarm.sn_of)
            if num_sns > 1:
                view.say("starting the ledger of the first site, which founds the network")
            swarm.await_sns(told=lambda ready: view.say(f"{ready} of {num_sns} sites' SNs are in the network"))
            view.say("training")
            for site in sites:
                swarm.start_sl(site, programs.swarm(site))
            watch = _Watch(swarm, baselines, view)
            deadline = started + config.timeout_s
            try:
                swarm.wait(sites, max(0.0, deadline - time.monotonic()), watch)
                baselines.wait(max(0.0, deadline - time.monotonic()), watch)
            except TimedOut as exc:
                raise TimedOut(f"the run takes longer than timeout_s={config.timeout_s:g}: {exc}") from exc
        client = swarm.client()
        rounds = [r for r in fetch_rounds(client, config.round.contract) if r.state is RoundState.PUBLISHED]
        status = fetch_status(client)
    outcomes = tuple(
        Outcome(site=site, alone=programs.alone_result(site), swarm=programs.result(site, "swarm")) for site in sites
    )
    return Summary(
        experiment=config.experiment.name,
        title=config.experiment.title,
        merge=config.merge.agreed(),
        transfer=config.transfer.mode,
        metric=config.experiment.metric,
        sites=outcomes,
        pooled=programs.alone_result(POOLED),
        seconds=round(time.monotonic() - started, 1),
        ledger=status.ledger,
        rounds=tuple(rounds),
        run_dir=folder.root,
    )


class Programs:
    """The experiment's programs: how each is called, and where it leaves its result."""

    def __init__(
        self, config: LocalConfig, folder: RunFolder, examples: Path, containers: Containers | None = None
    ) -> None:
        self._config = config
        self._containers = containers
        self._experiment: ExperimentConfig = config.experiment
        self._folder = folder
        self._examples = examples

    @contextlib.contextmanager
    def preparing(self, sites: Sequence[str]) -> Iterator[None]:
        """Deal the data out to the sites beside what the block does; it is done at the end of the block.

        ProgramFailed, TimedOut.
        """
        words = [str(self._folder.data), "--sites", str(len(sites)), "--names", ",".join(sites)]
        process = Process.start(
            "prepare",
            [
                *self._experiment.fill(self._experiment.prepare, self._examples),
                *words,
                "--seed",
                str(self._config.seed),
            ],
            log=self._folder.log("prepare"),
            env={**ONE_THREAD, **self._experiment.env},
        )
        try:
            yield
            processes.wait([process], PREPARE_S)
        finally:
            processes.stop([process], grace_s=1.0)

    def swarm(self, site: str) -> ProgramConfig:
        """The training program as the site's SL starts it."""
        return self._training(site, "swarm", log=str(self._folder.log(f"{site}-ml")), stop_timeout_s=5.0)

    def alone(self, site: str) -> Process:
        """Start the same program without any swarm."""
        program = self._training(site, "alone")
        name = f"{site}-alone"
        return Process.start(
            name,
            program.command if self._containers is None else self._containers.program(program, name),
            log=self._folder.log(name),
            env={**program.env, "SWARM_LOOPBACK": "TRUE"},
            cwd=Path(program.cwd),
        )

    def alone_result(self, site: str) -> float | None:
        """The metric of the site's baseline; None where none was asked for."""
        return self.result(site, "alone") if self._config.baselines else None

    def result(self, site: str, run: str) -> float:
        """The metric that a finished program left. ProgramFailed when it left none."""
        file = self._folder.scratch(site, run) / "result.json"
        try:
            return float(json.loads(file.read_text(encoding="utf-8"))["value"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ProgramFailed(f"the program of {site} ended without a metric in {file}") from exc

    def _site_env(self, site: str, run: str) -> dict[str, str]:
        scratch = self._folder.scratch(site, run)
        scratch.mkdir(parents=True, exist_ok=True)
        return {
            **ONE_THREAD,
            **self._experiment.env,
            "SITE": site,
            "SEED": str(self._config.seed),
            "DATA_DIR": str(self._folder.data / site),
            "SCRATCH_DIR": str(scratch),
        }

    def _training(self, site: str, run: str, **changes: Any) -> ProgramConfig:
        return ProgramConfig(
            command=train_command(self._experiment, self._config.container, self._examples),
            cwd=str(self._folder.scratch(site, run)),
            env=self._site_env(site, run),
            **changes,
        )


@dataclass(slots=True)
class Baselines:
    """The programs without a swarm, a few at a time. At the end of `with` none is left running."""

    programs: Programs
    waiting: list[str]
    running: list[Process] = field(default_factory=list)
    done: int = 0

    def __enter__(self) -> Baselines:
        self.advance()
        return self

    def __exit__(self, *_: object) -> None:
        processes.stop(self.running, grace_s=1.0)

    def advance(self) -> None:
        """Start the next ones where there is room. ProgramFailed when one has ended with an error."""
        for process in self.running:
            process.check()
        self.done += sum(process.code == 0 for process in self.running)
        self.running = [process for process in self.running if process.code is None]
        while self.waiting and len(self.running) < NUM_BASELINES_AT_ONCE:
            self.running.append(self.programs.alone(self.waiting.pop(0)))

    def wait(self, timeout_s: float, every: _Watch) -> None:
        """Until all have ended well. ProgramFailed, TimedOut."""
        deadline = time.monotonic() + timeout_s
        while self.running or self.waiting:
            if time.monotonic() > deadline:
                raise TimedOut(f"{', '.join(process.name for process in self.running)} did not end in time")
            with contextlib.suppress(TimedOut):
                processes.wait(self.running[:1], 1.0, every=every)
            self.advance()


@dataclass(slots=True)
class _Watch:
    """Between two looks at the processes: move the baselines on, and show how far the swarm is."""

    swarm: Swarm
    baselines: Baselines
    view: ProgressView
    next_look: float = 0.0

    def __call__(self) -> None:
        self.baselines.advance()
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + self.view.period_s
        try:
            status = fetch_whole_status(self.swarm)
        except (NotReachable, TimedOut):
            status = None  # it shows itself as a dead process, or comes back
        ended = [name for name, process in self.swarm.processes.items() if process.code is not None]
        baselines = self.baselines
        self.view.show(
            Watched(
                status=status,
                ended=frozenset(ended),
                num_alone_done=baselines.done,
                num_alone=baselines.done + len(baselines.running) + len(baselines.waiting),
            )
        )
