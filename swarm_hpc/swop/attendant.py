"""`python -m swarm_hpc.swop.attendant FOLDER`: runs the folder's command once, and writes down how it ended.

It goes into the background at once. SWOP may be killed and started anew meanwhile: attended.py finds it again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from swarm_hpc import processes
from swarm_hpc.errors import ProgramFailed
from swarm_hpc.processes import Process
from swarm_hpc.swop.attended import GRACE_S, LOG, ORDER, claim, started_at, write_end

_CANNOT_START = 127


def main(folder: Path) -> None:
    """Run the command, unless somebody else has claimed the folder. On SIGTERM end it, and all that it has started."""
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        told.set()

    signal.signal(signal.SIGTERM, tell)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not claim(folder, f"{os.getpid()} {started_at(os.getpid())}"):
        return
    order = json.loads((folder / ORDER).read_text(encoding="utf-8"))
    try:
        process = Process.start("command", order["command"], log=folder / LOG, env=order["env"], cwd=Path(order["cwd"]))
    except ProgramFailed as exc:
        print(exc, flush=True)  # noqa: T201 - our output is the log
        write_end(folder, _CANNOT_START)
        return
    while process.code is None and not told.wait(processes.POLL_S):
        pass
    processes.stop([process], GRACE_S)  # also what it has left behind
    write_end(folder, process.popen.wait())  # what the kernel does not let go has not ended


if __name__ == "__main__":
    if os.fork() == 0:  # nobody waits for us: our parent may go at any moment
        main(Path(sys.argv[1]))
