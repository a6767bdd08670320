"""Where geth and CometBFT are on this host, for the verbs that start an SN."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm_hpc.config import LedgerConfig


def find_programs(ledger: LedgerConfig) -> None:
    """Fill in the paths of both programs; ConfigError where one cannot be had."""
    from swarm_hpc.sn.programs import LedgerProgram, find_program

    ledger.geth = str(find_program(LedgerProgram.GETH, ledger.geth, os.environ))
    ledger.cometbft = str(find_program(LedgerProgram.COMETBFT, ledger.cometbft, os.environ))
