"""The ledger in an SN's folder, read while the SN does not run; of `ledger=geth` only geth is started for that.

Nothing is changed that anybody would miss: geth keeps the head it has, and no block can be made.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from eth_account import Account

from swarm_hpc.errors import LedgerError
from swarm_hpc.sn.comet import CometRpc
from swarm_hpc.sn.geth import Engine, GethProcess, GethRpc
from swarm_hpc.sn.geth_provider import GethProvider
from swarm_hpc.sn.heights import Heights
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.shared import NETWORK_FILE

log = logging.getLogger(__name__)

_GETH: Final = "geth"
_HEIGHTS: Final = "heights*.sqlite"


@contextmanager
def read_ledger(folder: Path, find_geth: Callable[[], Path]) -> Iterator[Ledger]:
    """The ledger in that folder (`ledger` in an SN's data_dir), for reading, as long as the block lasts.

    `find_geth` is asked for the program where the ledger is geth's. LedgerError where it cannot be read: of geth's,
    also while an SN runs on it. An embedded one can be read at any time.
    """
    network = Network.load(folder / NETWORK_FILE)
    if network is None:
        with Ledger.read(folder) as ledger:
            yield ledger
        return
    with _geth(find_geth(), folder, network) as rpc:
        provider = GethProvider(_Still(rpc))
        # Nothing is ever signed: any account will do.
        with Ledger(provider, Account.create(), kind="geth", registry=network.registry) as ledger:
            yield ledger


@contextmanager
def _geth(binary: Path, folder: Path, network: Network) -> Iterator[GethRpc]:
    run_dir = Path(tempfile.mkdtemp(prefix="swarm-read-"))
    geth = GethProcess(binary, folder / _GETH, run_dir, run_dir / "geth.log", network.chain_id)
    try:
        if not geth.has_data:
            raise LedgerError(f"{folder / _GETH}: geth has no data here: start the SN, it builds them from its blocks")
        _start(geth, folder)
        rpc = GethRpc(geth.socket)
        _warn_of_lost_blocks(rpc, folder)
        yield rpc
        rpc.close()
    finally:
        geth.stop()
        shutil.rmtree(run_dir, ignore_errors=True)


def _start(geth: GethProcess, folder: Path) -> None:
    try:
        geth.start()
    except LedgerError as exc:
        if "datadir already used" not in str(exc):
            raise
        raise LedgerError(
            f"{folder} is in use: its SN is running. Ask that one, `swarm-hpc verify CONTRACT sn=HOST:PORT"
            " identity.*=...`, or stop it"
        ) from exc


def _warn_of_lost_blocks(rpc: GethRpc, folder: Path) -> None:
    heights = Heights(max(folder.glob(_HEIGHTS), key=_epoch, default=folder / "heights.sqlite"))
    try:
        newest = heights.newest()
        if newest is not None and newest != Engine(rpc).head()["hash"]:
            log.warning(
                "%s: geth lacks the newest blocks, since the SN was killed: what they hold is not seen here. Start the"
                " SN and stop it once to have them back",
                folder,
            )
    finally:
        heights.close()


def _epoch(heights: Path) -> int:
    return int(heights.stem.partition("-")[2] or 0)


class _Still:
    """Behind the provider: a geth that stands still."""

    def __init__(self, geth: GethRpc) -> None:
        self.geth = geth
        self.comet: CometRpc = _NoMempool()

    def now_ms(self) -> int:
        """Time of the newest block."""
        return int(Engine(self.geth).head()["timestamp"], 16)

    def halted(self) -> str:
        """Nothing is written, so nothing is waited for."""
        return ""

    def await_running(self, timeout_s: float) -> bool:
        """A geth that has died is not started again."""
        return False


class _NoMempool(CometRpc):
    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))

    def call(self, method: str, timeout_s: float = 0.0, **params: object) -> Any:
        """Transactions are refused."""
        raise LedgerError("this ledger was opened for reading only")
