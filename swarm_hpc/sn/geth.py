"""The geth of an SN: a process without p2p that executes what CometBFT orders, and calls over its Unix socket.

geth gives the socket the Engine API as well, so no port and no token is needed; the folder it lies in is private.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypedDict

from geth.process import BaseGethProcess

from swarm_hpc.errors import LedgerError, NotReachable
from swarm_hpc.processes import Process, stop

SOCKET: Final = "geth.ipc"
START_S: Final = 120.0
"""The longest that geth may take to answer; after a crash it repairs its database first."""
_INIT_S: Final = 60.0
_GRACE_S: Final = 20.0
_CALL_S: Final = 30.0
_FLAGS: Final = (
    # With geth's default path scheme a kill -9 rewinds the state to the genesis; without p2p nothing brings it back.
    "--state.scheme=hash",
    "--syncmode=full",
    "--nat=none",
    "--rpc.txfeecap=0",  # the currency is worth nothing
    "--miner.gasprice=1",
    "--authrpc.addr=127.0.0.1",
    "--authrpc.port=0",
    "--ipcpath={socket}",
    "--log.format=logfmt",
    "--config={settings}",
)
_SETTINGS: Final = '[Node.P2P]\nListenAddr = ""\n'
"""What there is no flag for: without this geth's p2p, which has no peers, listens on a free port of every address."""


class RpcRefused(LedgerError):
    """geth or CometBFT answered with an error."""

    def __init__(self, message: str, *, code: int = -32000, data: object = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


class EngineFault(LedgerError):
    """geth does not know the parent of a block that is final: its database is behind, or lost."""


class GethRpc:
    """JSON-RPC to geth over its Unix socket, a connection per thread. NotReachable while it does not answer."""

    def __init__(self, path: Path, *, call_s: float = _CALL_S) -> None:
        """`call_s` is how long an answer may take."""
        self._path, self._call_s = path, call_s
        self._local = threading.local()

    def call(self, method: str, *params: object) -> Any:
        """The result of one call; RpcRefused."""
        answer = json.loads(self._exchange(_request(method, params)))
        if "error" in answer:
            error = answer["error"]
            raise RpcRefused(error.get("message", "no reason given"), code=error.get("code", 0), data=error.get("data"))
        return answer["result"]

    def answer(self, method: str, params: Sequence[object]) -> dict[str, Any]:
        """The whole answer, error included, as web3 wants it."""
        answer: dict[str, Any] = json.loads(self._exchange(_request(method, params)))
        return answer

    def batch(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        """The results of several calls in one, in their order; None for one that was refused."""
        if not calls:
            return []
        answers = json.loads(
            self._exchange(b"[" + b",".join(_request(method, params) for method, params in calls) + b"]")
        )
        return [answer.get("result") for answer in answers]

    def close(self) -> None:
        """Close this thread's connection."""
        link = getattr(self._local, "link", None)
        if link is not None:
            link.close()
            self._local.link = None

    def _exchange(self, request: bytes) -> bytes:
        for last in (False, True):
            fresh = getattr(self._local, "link", None) is None
            try:
                if fresh:
                    self._local.link = _Link(self._path, self._call_s)
                link: _Link = self._local.link
                return link.exchange(request)
            except OSError as exc:
                self.close()
                # A connection that was open before may have been to a geth that is no more.
                if last or fresh:
                    raise NotReachable(f"geth does not answer on {self._path}: {exc}") from exc
        raise AssertionError("the second attempt has returned or raised")


class _Link:
    def __init__(self, path: Path, call_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(call_s)
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb", buffering=1 << 16)

    def exchange(self, request: bytes) -> bytes:
        self._socket.sendall(request + b"\n")
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("geth closed the connection")
        return line

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __del__(self) -> None:
        # A thread that ended does not say so: its link goes with its local data.
        with suppress(AttributeError, OSError):
            self.close()


def _request(method: str, params: Sequence[object]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()


class Payload(TypedDict, total=False):
    """An execution payload as the Engine API has it (execution-apis, cancun: ExecutionPayloadV3); all values hex."""

    parentHash: str
    blockHash: str
    blockNumber: str
    timestamp: str
    transactions: list[str]


NO_HASH: Final = "0x" + "00" * 32
_NO_ADDRESS: Final = "0x" + "00" * 20


class Engine:
    """The Engine API calls that make blocks: build, check, and make one the final head (execution-apis, cancun)."""

    def __init__(self, rpc: GethRpc) -> None:
        self.rpc = rpc

    def head(self) -> Mapping[str, Any]:
        """The newest block's header."""
        block: Mapping[str, Any] = self.rpc.call("eth_getBlockByNumber", "latest", False)
        return block

    def block_hash(self, number: int) -> str:
        """Hash of the block of that number."""
        return str(self.rpc.call("eth_getBlockByNumber", hex(number), False)["hash"])

    def begin(self, parent: str, timestamp: int, randomness: str) -> str:
        """Start to build on `parent`; the ID to fetch the payload with.

        `randomness` (prevRandao) must be new each time: for equal attributes geth answers the payload it built before.
        """
        attributes = {
            "timestamp": hex(timestamp),
            "prevRandao": randomness,
            "suggestedFeeRecipient": _NO_ADDRESS,
            "withdrawals": [],
            "parentBeaconBlockRoot": NO_HASH,
        }
        return str(self._choose(parent, attributes)["payloadId"])

    def built(self, payload_id: str) -> Payload:
        """What was built so far; this stops the building."""
        payload: Payload = self.rpc.call("engine_getPayloadV3", payload_id)["executionPayload"]
        return payload

    def execute(self, payload: Payload) -> str:
        """Execute a block without making it the head: empty where it is valid, else what is wrong with it.

        EngineFault where geth lacks its parent.
        """
        answer = self.rpc.call("engine_newPayloadV3", payload, [], NO_HASH)
        if answer["status"] in ("SYNCING", "ACCEPTED"):
            raise EngineFault(f"geth lacks the parent of block {payload['blockHash']}")
        return "" if answer["status"] == "VALID" else f"{answer['status']}: {answer.get('validationError')}"

    def finalize(self, head: str) -> None:
        """Make an executed block the head, safe and final."""
        self._choose(head, None)

    def _choose(self, head: str, attributes: Mapping[str, object] | None) -> Mapping[str, Any]:
        state = {"headBlockHash": head, "safeBlockHash": head, "finalizedBlockHash": head}
        answer: Mapping[str, Any] = self.rpc.call("engine_forkchoiceUpdatedV3", state, attributes)
        status = answer["payloadStatus"]["status"]
        if status != "VALID":
            raise EngineFault(f"geth does not take block {head} for its head: {status}")
        return answer


class GethProcess(BaseGethProcess):
    """One geth without p2p on its own data folder. py-geth makes the command; our Process ends it with us."""

    def __init__(self, binary: Path, folder: Path, run_dir: Path, log: Path, chain_id: int) -> None:
        """`run_dir` has a short path: a Unix socket's must not exceed 107 bytes."""
        self._folder, self._log = folder, log
        self.socket, self._settings = run_dir / SOCKET, run_dir / "geth.toml"
        super().__init__(
            {
                "geth_executable": str(binary),
                "data_dir": str(folder),
                "network_id": str(chain_id),
                "max_peers": "0",
                "no_discover": True,
                "nice": False,
                "verbosity": "3",
                "cache": "128",
                "gcmode": "archive",
                "tx_pool_price_limit": "1",
                "suffix_args": [flag.format(socket=self.socket, settings=self._settings) for flag in _FLAGS],
            }
        )
        self._binary = binary
        self._process: Process | None = None

    @property
    def data_dir(self) -> str:
        """geth's data folder."""
        return str(self._folder)

    @property
    def pid(self) -> int | None:
        """Its process ID while it runs."""
        return self._process.popen.pid if self._process is not None and self._process.code is None else None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.pid is not None

    @property
    def has_data(self) -> bool:
        """Whether its data folder was initialised."""
        return (self._folder / "geth" / "chaindata").is_dir()

    def init(self, genesis: Mapping[str, object]) -> None:
        """Make a new data folder with that genesis block; what was there is deleted."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        file = self._folder / "genesis.json"
        file.write_text(json.dumps(genesis))
        words = [str(self._binary), "--datadir", str(self._folder), "--state.scheme=hash", "init", str(file)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_INIT_S, check=False)
        if done.returncode != 0:
            raise LedgerError(f"geth init: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")

    def start(self) -> None:
        """Start it and wait until it answers. LedgerError when it ends instead, or takes longer than START_S."""
        self.socket.unlink(missing_ok=True)
        self._settings.write_text(_SETTINGS)
        self._process = process = Process.start("geth", self.command, log=self._log)
        deadline = time.monotonic() + START_S
        rpc = GethRpc(self.socket)
        while True:
            with suppress(NotReachable):
                rpc.call("eth_chainId")
                rpc.close()
                return
            if process.code is not None:
                raise LedgerError(f"geth ended with exit code {process.code}: {process.tail()} (log: {self._log})")
            if time.monotonic() > deadline:
                self.stop()
                raise LedgerError(f"geth does not answer after {START_S:g} s: {process.tail()} (log: {self._log})")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, gently first; no-op when it does not run."""
        if self._process is not None:
            stop([self._process], _GRACE_S)
            self._process = None
