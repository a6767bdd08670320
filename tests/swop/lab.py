"""A site with a profile of two nodes, and a task that trains on their data."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from swarm_hpc import settings_file
from swarm_hpc.config import SwopConfig

PROGRAM = Path(__file__).parent / "programs" / "train.py"
VALUES = (1.0, 3.0)


class Project:
    """Folder `data-0` and `data-1`, each the private data of a node, and `model`, shared content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.profile = folder / "profile.yaml"
        (folder / "model").mkdir(parents=True)
        shutil.copy(PROGRAM, folder / "model" / "train.py")
        nodes = [{"slnodedef": self._node(index)} for index in range(len(VALUES))]
        self.profile.write_text(
            yaml.safe_dump(
                {
                    "groupname": "group",
                    "taskrunner": "runner",
                    "policyuri": None,
                    "network": "none",
                    "resourcemgr": {"mgrtype": "SLURM", "accessinfo": {"accesstype": "FROMENV"}},
                    "apls": {"locator": {"host": "license", "port": None}},
                    "apisrv": {"locator": {"host": None, "port": None, "service": None}},
                    "envvars": [{"SL_WAIT_FOR_FULL_QUORUM_SECONDS": 60}],
                    "nodes": nodes,
                }
            )
        )

    def _node(self, index: int) -> dict[str, object]:
        data = self.data(index)
        data.mkdir()
        (data / "value").write_text(str(VALUES[index]))
        attributes = [{"aType": kind, "mType": "BIND", "src": "/no/such/file"} for kind in ("KEY", "CERT", "CAPATH")]
        return {
            "idx": index,
            "identity": [{"attribute": one} for one in attributes],
            "slhostname": None,
            "privatedata": {"src": str(data), "mType": "BIND"},
            "slenvvars": None,
            "usrenvvars": None,
            "usrhostname": None,
        }

    def data(self, index: int) -> Path:
        return self.folder / f"data-{index}"

    def body(self, data: str = "value") -> list[str]:
        """A RUN_SWARM in HPE's manner: private data at /tmp/test, the program below it."""
        return [
            "Command: model/train.py",
            "Entrypoint: python3",
            "WorkingDir: /tmp/test",
            f"Envvars: ['DATA_DIR': {data}]",
            "PrivateContent: /tmp/test/",
            "SharedContent:",
            f"- Src: {self.folder}/model",
            "  Tgt: /tmp/test/model",
            "  MType: BIND",
        ]

    def runs(self, index: int) -> int:
        file = self.data(index) / "runs"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def hold(self) -> None:
        """Programs wait in the middle of their training."""
        for index in range(len(VALUES)):
            (self.data(index) / "wait").touch()

    def let_go(self) -> None:
        for index in range(len(VALUES)):
            (self.data(index) / "wait").unlink()

    def merged(self) -> list[float]:
        return [float((self.data(index) / "merged").read_text()) for index in range(len(VALUES))]


@contextmanager
def swop_process(config: SwopConfig, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`swarm-hpc swop`; it is killed at the end of the block."""
    words = settings_file.write(Path(config.state_dir) / "settings", "swop", "swop", config)
    with (Path(config.state_dir) / "swop.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "swarm_hpc.cli", *words], stderr=log, env={**os.environ, **(env or {})}
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def log_of(config: SwopConfig) -> str:
    files = [Path(config.state_dir) / "swop.log", *Path(config.state_dir).glob("runs/*/slot-*/*log")]
    return "\n".join(f"--- {file}\n{file.read_text()}" for file in files)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)
