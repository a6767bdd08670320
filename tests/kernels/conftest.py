"""Starting a job of several MPI ranks on this host; Triton's kernels on a host without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # before triton is imported: a kernel is made for its interpreter, or it is not
    os.environ["TRITON_INTERPRET"] = "1"

PROGRAM = Path(__file__).parent / "programs" / "ranks.py"


@pytest.fixture
def job(tmp_path, mpiexec):
    """Runs `programs/ranks.py` in N ranks to its end, whatever that is."""

    def run(what, num_ranks, *, said=None, timeout_s=60.0):
        words = [*mpiexec, "-n", str(num_ranks), sys.executable, str(PROGRAM), what, str(tmp_path)]
        words += [str(said or num_ranks), str(timeout_s)]
        return subprocess.run(words, capture_output=True, text=True, timeout=100)

    return run
