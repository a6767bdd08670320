"""The CometBFT of an SN: its keys and files, the process, and calls over its Unix socket.

Its p2p listens on loopback only; the SN carries it to the other sites inside its own mutual TLS (transport/tunnel.py),
and says whom it connects to: CometBFT's own reconnecting pauses for hours after a long outage.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from swarm_hpc.durable import write
from swarm_hpc.errors import LedgerError, NotReachable
from swarm_hpc.processes import Process, stop
from swarm_hpc.sn.geth import RpcRefused
from swarm_hpc.sn.powers import address_of

RPC_SOCKET: Final = "comet.sock"
ABCI_SOCKET: Final = "abci.sock"
SIGN_STATE: Final = "priv_validator_state.json"
_NODE_KEY: Final = "node_key.json"
_VALIDATOR_KEY: Final = "priv_validator_key.json"
_CALL_S: Final = 30.0
_GRACE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ConsensusKeys:
    """The two key files of a site's CometBFT. They never leave their folder; back it up."""

    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The keys in the folder; what is missing is made."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys = cls(folder)
        if not keys.node_key.exists():
            write(keys.node_key, json.dumps({"priv_key": _private_json(Ed25519PrivateKey.generate())}).encode(), 0o600)
        if not keys.validator_key.exists():
            key = Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes_raw()
            values = {
                "address": address_of(public.hex()).hex().upper(),
                "pub_key": public_json(public.hex()),
                "priv_key": _private_json(key),
            }
            write(keys.validator_key, json.dumps(values).encode(), 0o600)
        return keys

    @property
    def node_key(self) -> Path:
        """File of the key that authenticates p2p connections."""
        return self.folder / _NODE_KEY

    @property
    def validator_key(self) -> Path:
        """File of the key that signs votes."""
        return self.folder / _VALIDATOR_KEY

    def p2p_id(self) -> str:
        """The site's ID in the p2p network: 40 hex digits."""
        private = base64.b64decode(_field(self.node_key, "priv_key")["value"])
        return sha256(private[32:]).digest()[:20].hex()

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature with the key of the votes. A message of ours never looks like a vote of CometBFT."""
        private = base64.b64decode(_field(self.validator_key, "priv_key")["value"])
        return Ed25519PrivateKey.from_private_bytes(private[:32]).sign(message)

    def consensus_key(self) -> str:
        """The public key that others check its votes with: 64 hex digits."""
        return base64.b64decode(_field(self.validator_key, "pub_key")["value"]).hex()


def public_json(key: str) -> dict[str, str]:
    """A validator's public key (64 hex digits) as CometBFT's files have it."""
    return {"type": "tendermint/PubKeyEd25519", "value": base64.b64encode(bytes.fromhex(key)).decode()}


def _private_json(key: Ed25519PrivateKey) -> dict[str, str]:
    raw = key.private_bytes_raw() + key.public_key().public_bytes_raw()
    return {"type": "tendermint/PrivKeyEd25519", "value": base64.b64encode(raw).decode()}


def _field(path: Path, name: str) -> Mapping[str, str]:
    try:
        value: Mapping[str, str] = json.loads(path.read_bytes())[name]
    except (OSError, ValueError, KeyError) as exc:
        # `from None`: the cause might quote the key.
        raise LedgerError(f"{path}: no usable key ({type(exc).__name__}); restore it from a backup") from None
    return value


class CometRpc:
    """JSON-RPC to CometBFT over its Unix socket, a connection per call. NotReachable while it does not answer."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(self, method: str, timeout_s: float = _CALL_S, **params: object) -> Any:
        """The result of one call; RpcRefused."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        answer = self._answer("POST", "/", body, timeout_s)
        return answer["result"]

    def dial(self, peers: Sequence[str], timeout_s: float = _CALL_S) -> None:
        """Try once to connect to these `id@host:port`, in the background."""
        # By GET: the list is refused in a JSON body.
        words = ",".join(f'"{peer}"' for peer in peers)
        self._answer("GET", "/dial_peers?" + urlencode({"peers": f"[{words}]", "persistent": "false"}), None, timeout_s)

    def _answer(self, verb: str, path: str, body: str | None, timeout_s: float) -> Mapping[str, Any]:
        link = _UnixHttp(str(self._path), timeout_s)
        try:
            link.request(verb, path, body, {"Content-Type": "application/json"})
            answer: Mapping[str, Any] = json.loads(link.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise NotReachable(f"CometBFT does not answer on {self._path}: {exc}") from exc
        finally:
            link.close()
        if "error" in answer:
            error = answer["error"]
            raise RpcRefused(f"{error.get('message', '')}: {error.get('data', '')}", code=error.get("code", 0))
        return answer


class _UnixHttp(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class CometHome:
    """CometBFT's home folder: the configuration and genesis written anew at each start, its data kept."""

    def __init__(self, folder: Path, keys: ConsensusKeys, run_dir: Path) -> None:
        self.folder, self.keys = folder, keys
        self.rpc_socket, self.abci_socket = run_dir / RPC_SOCKET, run_dir / ABCI_SOCKET

    @property
    def sign_state(self) -> Path:
        """File with the last height, round and step that this site has signed."""
        return self.folder / "data" / SIGN_STATE

    def prepare_data(self) -> None:
        """Make the data folder, and in it the record of signatures of a site that has signed nothing yet."""
        self.sign_state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.sign_state.exists():
            self.set_signed(0, 0, 0)

    def prepare(self, genesis: Mapping[str, object], p2p_port: int, commit_wait_ms: int) -> None:
        """Write what CometBFT reads when it starts."""
        self.prepare_data()
        (self.folder / "config").mkdir(parents=True, exist_ok=True)
        write(self.folder / "config" / "genesis.json", json.dumps(genesis).encode())
        write(self.folder / "config" / "config.toml", self._settings(p2p_port, commit_wait_ms).encode())

    def signed(self) -> tuple[int, int, int]:
        """Height, round and step (1 propose, 2 prevote, 3 precommit) that this site has signed last."""
        try:
            values = json.loads(self.sign_state.read_bytes())
            return int(values["height"]), int(values["round"]), int(values["step"])
        except FileNotFoundError:
            return 0, 0, 0
        except (ValueError, KeyError, TypeError) as exc:
            raise LedgerError(f"{self.sign_state}: cannot be read ({exc}); delete data_dir's ledger/comet") from exc

    def set_signed(self, height: int, round_: int, step: int) -> None:
        """Let CometBFT sign only what comes after this. Only while it does not run."""
        self.sign_state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = {"height": str(height), "round": round_, "step": step}
        write(self.sign_state, json.dumps(state).encode(), 0o600)

    def _settings(self, p2p_port: int, commit_wait_ms: int) -> str:
        tables: dict[str, dict[str, object]] = {
            "": {
                "proxy_app": f"unix://{self.abci_socket}",
                "abci": "socket",
                "moniker": "sn",
                "db_backend": "goleveldb",
                "log_level": "p2p:none,mempool:none,consensus:error,*:info",
                "genesis_file": "config/genesis.json",
                "priv_validator_key_file": os.path.relpath(self.keys.validator_key, self.folder),
                "priv_validator_state_file": f"data/{SIGN_STATE}",
                "node_key_file": os.path.relpath(self.keys.node_key, self.folder),
                "filter_peers": True,
            },
            # The socket lies in a private folder: whoever reaches it is this site's user.
            "rpc": {"laddr": f"unix://{self.rpc_socket}", "unsafe": True, "cors_allowed_origins": []},
            "p2p": {
                "laddr": f"tcp://127.0.0.1:{p2p_port}",
                "pex": False,
                "addr_book_strict": False,
                "allow_duplicate_ip": True,
                "max_num_inbound_peers": 512,
                "max_num_outbound_peers": 512,
                "flush_throttle_timeout": "5ms",
            },
            "mempool": {"size": 5000, "recheck": True, "broadcast": True},
            "consensus": {
                "create_empty_blocks": False,
                "timeout_propose": "1s",
                "timeout_propose_delta": "200ms",
                "timeout_prevote": "300ms",
                "timeout_prevote_delta": "200ms",
                "timeout_precommit": "300ms",
                "timeout_precommit_delta": "200ms",
                "timeout_commit": f"{commit_wait_ms}ms",
                # That long only where a vote is missing.
                "skip_timeout_commit": True,
                "peer_gossip_sleep_duration": "10ms",
            },
            "tx_index": {"indexer": "null"},
            "instrumentation": {"prometheus": False},
        }
        lines = []
        for table, values in tables.items():
            lines += [f"[{table}]"] if table else []
            # JSON's strings, numbers, booleans and lists of them are TOML's.
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        return "\n".join(lines) + "\n"


class CometProcess:
    """One running CometBFT."""

    def __init__(self, binary: Path, home: CometHome, log: Path) -> None:
        self._binary, self._home, self._log = binary, home, log
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process ID while it runs."""
        return self._process.popen.pid if self._process is not None and self._process.code is None else None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.pid is not None

    def start(self) -> None:
        """Start it. Its ABCI application has to listen already: CometBFT would wait 3 s before it asks again."""
        self._home.rpc_socket.unlink(missing_ok=True)
        words = [str(self._binary), "start", "--home", str(self._home.folder)]
        self._process = Process.start("cometbft", words, log=self._log)

    def tail(self) -> str:
        """The end of its log."""
        return self._process.tail() if self._process is not None else "it was not started"

    def stop(self) -> None:
        """End it, gently first; no-op when it does not run."""
        if self._process is not None:
            stop([self._process], _GRACE_S)
            self._process = None
