"""The verb `swop`: a site's node that does the tasks of a taskrunner."""

from __future__ import annotations

import argparse
import asyncio
import os

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, settings_arguments
from swarm_hpc.cli.settings import load


def _run(options: argparse.Namespace) -> int:
    from swarm_hpc.config import SwopConfig

    config = load(SwopConfig, "swop", options.words, options.config_dir)
    logs.start(config.name, options.log_level)
    from swarm_hpc.slurm.images import image_folder
    from swarm_hpc.swop import node

    config.container.image_dir = str(image_folder(config.container.image_dir, os.environ))  # also for jobs elsewhere
    asyncio.run(node.run(config))
    return 0


SWOP = Command(
    about="do the tasks of a taskrunner: start SL nodes with programs, build images, fetch data",
    example="swarm-hpc swop profile=swop1_profile.yaml name=alpha/swop/swop1 sn=login:30304 site=alpha"
    " identity.cert=swop-swop1.pem identity.key=swop-swop1-key.pem identity.bundle=bundle.json --config-dir ~/swarm",
    arguments=settings_arguments,
    run=_run,
    settings="swop",
)
