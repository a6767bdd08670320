"""`python -m swarm_hpc.cli`: the same as `swarm-hpc`."""

import sys

from swarm_hpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
