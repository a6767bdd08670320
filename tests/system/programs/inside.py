"""A training program that says what it sees from within its container, and shares one tensor with the other sites."""

import json
import os
from pathlib import Path

import numpy as np

from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, Platform
from swarm_hpc.sl.channel import MlChannel, OpenRequest


def is_writable(folder: str) -> bool:
    file = Path(folder) / "probe"
    try:
        file.write_text("")
        file.unlink()
    except OSError:
        return False
    return True


def find_keys() -> list[str]:
    """Private keys that can be read anywhere but in the system's own folders."""
    skipped = {"/proc", "/sys", "/dev", "/usr", "/opt"}
    found = []
    for folder, names, files in os.walk("/"):
        names[:] = [name for name in names if str(Path(folder) / name) not in skipped]
        found += [str(Path(folder) / name) for name in files if name.endswith("key.pem")]
    return found


scratch = Path(os.environ["SCRATCH_DIR"])
seen = {
    "uid": os.getuid(),
    "root": is_writable("/"),
    "packages": is_writable("/opt/swarm-hpc"),
    "code": is_writable(str(Path(__file__).parent)),
    "data": is_writable(os.environ["DATA_DIR"]),
    "scratch": is_writable(os.environ["SCRATCH_DIR"]),
    "home": is_writable(os.environ["HOME"]),
    "tmp": sorted(os.listdir("/tmp")),
    "cache": os.environ["XDG_CACHE_HOME"],
    "bound": is_writable("/somewhere/else"),
    "keys": find_keys(),
    "capabilities": int(Path("/proc/self/status").read_text().split("CapEff:\t")[1].split()[0], 16),
    "no_new_privs": int(Path("/proc/self/status").read_text().split("NoNewPrivs:\t")[1].split()[0]),
    "python_path": os.environ.get("PYTHONPATH", ""),
}
with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    session = channel.open(OpenRequest(platform=Platform.PYTORCH, tensors=(TensorSpec("w", "F32", (4,)),)))
    session.arena.array("w")[:] = np.float32(1)
    channel.sync()
    channel.finish(FinishMode.SNAPSHOT)
(scratch / "result.json").write_text(json.dumps({"value": 1.0, "seen": seen}))
