"""Writes to an embedded ledger until it is killed. Run by test_kill.py; forks a writer for each line that it reads.

Forking saves importing everything for each kill. This process never opens a ledger itself and has one thread.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from swarm_hpc.config import LedgerConfig
from swarm_hpc.sn.ledger import Founder, Ledger

NODE = "alpha/sl/sl-1"


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def write(folder: Path) -> None:
    say("pid", os.getpid())
    ledger = Ledger.open(LedgerConfig(), folder, found=Founder(site="alpha", endpoint="a:1", ca_fingerprint="aa"))
    say("open", ledger.account)
    while True:
        say("confirmed", ledger.register_node(NODE, "", "i").incarnation, ledger.status().height)


def main() -> None:
    folder = Path(sys.argv[1])
    for _line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write(folder)
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main()
