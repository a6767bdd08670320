"""What a login node runs needs neither torch nor tensorflow."""

import subprocess
import sys

import pytest

LOGIN_NODE = [
    "swarm_hpc.swci",
    "swarm_hpc.cli",
    "swarm_hpc.identity",
    "swarm_hpc.transport",
    "swarm_hpc.license",
    "swarm_hpc.sn",
    "swarm_hpc.sl",
    "swarm_hpc.local",
    "swarm_hpc.slurm",
]
PROGRAM = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
sys.exit(", ".join({"torch", "tensorflow", "keras"} & set(sys.modules)) or 0)
"""


@pytest.mark.slow
def test_login_node_parts_import_neither_torch_nor_tensorflow():
    done = subprocess.run([sys.executable, "-c", PROGRAM, *LOGIN_NODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_status_help_imports_neither_torch_nor_tensorflow():
    program = (
        "import sys; from swarm_hpc import cli; cli.main(['status', '--help']);"
        "sys.exit(', '.join({'torch', 'tensorflow', 'web3'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
