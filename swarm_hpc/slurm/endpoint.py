"""Where a site's SN is: what the profile says, or what an SN that runs as a job has written down."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Final

from swarm_hpc.config import SiteConfig
from swarm_hpc.errors import ConfigError, NotReachable

log = logging.getLogger(__name__)

_POLL_S: Final = 1.0


def find_sn(site: SiteConfig, *, timeout_s: float) -> str:
    """host:port of the site's SN; waits for it where the SN itself still waits for its start.

    NotReachable after `timeout_s`. ConfigError: the file is not the one that an SN writes.
    """
    if site.sn:
        return site.sn
    file, deadline = Path(site.sn_file), time.monotonic() + timeout_s
    told = False
    while True:
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["address"])
        except (ValueError, TypeError, KeyError) as exc:
            raise ConfigError(f"site.sn_file: {file} is not the endpoint.json of an SN's data_dir") from exc
        except OSError as exc:
            if time.monotonic() >= deadline:
                text = f"no SN of site {site.name} runs: {file} (site.sn_file): {exc.strerror}"
                raise NotReachable(f"{text}; start it with sbatch sbatch/sn.sbatch") from exc
        if not told:
            log.info("waiting for the site's SN to write %s", file)
            told = True
        time.sleep(_POLL_S)
