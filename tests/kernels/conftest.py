"""Starting a job of several MPI ranks on this host."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "ranks.py"
# Where mpiexec sees that a rank has died, it ends all others.
UNSEEN = ("sh", "-c", '"$0" "$@"; true')


@pytest.fixture
def job(tmp_path, mpiexec):
    """Runs `programs/ranks.py` in N ranks to its end, whatever that is; `unseen`: of a killed rank as well."""

    def run(what, num_ranks, *, said=None, timeout_s=60.0, unseen=False):
        words = [
            *mpiexec,
            "-n",
            str(num_ranks),
            *(UNSEEN if unseen else ()),
            sys.executable,
            str(PROGRAM),
            what,
            str(tmp_path),
        ]
        return subprocess.run(
            [*words, str(said or num_ranks), str(timeout_s)], capture_output=True, text=True, timeout=100
        )

    return run
