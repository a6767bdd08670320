"""One log format for every node; lines name the node, never a secret."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO


def start(node: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr by default) as `2026-01-31T12:00:00Z INFO alpha/sn/sn swarm_hpc.sn.node: text`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = logging.Formatter(f"%(asctime)sZ %(levelname)s {node} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("swarm_hpc").setLevel(level)
