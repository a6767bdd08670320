"""What all sites of a network share and never changes: one public file, named by its SHA-256.

The founder makes it; a joining SN takes it from any member and can check that it is the network it was told of.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

import rlp
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from swarm_hpc.config import LedgerConfig, PowerRule
from swarm_hpc.durable import write
from swarm_hpc.errors import ConfigError, LedgerError
from swarm_hpc.sn.comet import public_json
from swarm_hpc.sn.powers import UNIT, Rule, address_of

FORMAT: Final = 1
GAS_LIMIT: Final = 60_000_000
_GRANT: Final = 10**27
_TREASURY: Final = 10**36
"""The Registry gives each account that it admits a GRANT for gas: who was not admitted cannot send a transaction."""
_FORKS: Final = (
    "homesteadBlock",
    "eip150Block",
    "eip155Block",
    "eip158Block",
    "byzantiumBlock",
    "constantinopleBlock",
    "petersburgBlock",
    "istanbulBlock",
    "berlinBlock",
    "londonBlock",
    "mergeNetsplitBlock",
    "terminalTotalDifficulty",
    "shanghaiTime",
    "cancunTime",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network's two genesis documents, and where its Registry is."""

    chain_id: int
    founder: str
    registry: str
    geth_genesis: Mapping[str, Any]
    comet_genesis: Mapping[str, Any]
    format: int = FORMAT

    @classmethod
    def found(cls, config: LedgerConfig, site: str, account: str, consensus_key: str) -> Self:
        """A new network with that site as its only validator."""
        # The address of the first contract that the account creates (Ethereum yellow paper, 7).
        registry = to_checksum_address(keccak(rlp.encode([bytes.fromhex(account[2:]), 0]))[12:])
        rule = {"power": str(config.power), "jail_after_s": config.jail_after_s, "registry": registry}
        return cls(
            chain_id=config.chain_id,
            founder=site,
            registry=registry,
            geth_genesis=_geth_genesis(config.chain_id, account, registry),
            comet_genesis=_comet_genesis(config.chain_id, site, consensus_key, rule),
        )

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """The network in a file or an answer; LedgerError where it is none that this program knows."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise LedgerError(f"the network file has format {values['format']}, this program knows {FORMAT}")
            network = cls(**values)
            network.rule()
        except (ValueError, KeyError, TypeError) as exc:
            raise LedgerError(f"no network file: {type(exc).__name__}: {exc}") from exc
        return network

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The network in that file; None where there is none."""
        try:
            return cls.parse(path.read_bytes())
        except FileNotFoundError:
            return None

    def save(self, path: Path) -> None:
        """Write the file."""
        write(path, self.text().encode())

    def text(self) -> str:
        """The file's content: the same network has the same text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def id(self) -> str:
        """SHA-256 of the text, 64 hex digits: the network's name."""
        return sha256(self.text().encode()).hexdigest()

    def check(self, expected: str, chain_id: int) -> None:
        """ConfigError where this is not the network that was asked for."""
        if expected and expected.lower().removeprefix("sha256:") != self.id():
            raise ConfigError(f"ledger.network: the member answers with network {self.id()}, not {expected}")
        if chain_id != self.chain_id:
            raise ConfigError(f"ledger.chain_id: {chain_id}, but the network has {self.chain_id}")

    def founder_key(self) -> str:
        """The founder's consensus key: the only validator of the genesis."""
        return base64.b64decode(self.comet_genesis["validators"][0]["pub_key"]["value"]).hex()

    def rule(self) -> Rule:
        """How its voting power is shared."""
        state = self.comet_genesis["app_state"]
        return Rule(power=PowerRule(state["power"]), jail_after_s=int(state["jail_after_s"]))


def genesis_validator(site: str, consensus_key: str, power: int) -> dict[str, Any]:
    """A validator in CometBFT's genesis document."""
    return {
        "address": address_of(consensus_key).hex().upper(),
        "pub_key": public_json(consensus_key),
        "power": str(power),
        "name": site,
    }


def _geth_genesis(chain_id: int, account: str, registry: str) -> dict[str, Any]:
    forks = dict.fromkeys(_FORKS, 0)
    schedule = {"cancun": {"target": 3, "max": 6, "baseFeeUpdateFraction": 3338477}}
    return {
        "config": {"chainId": chain_id, **forks, "blobSchedule": schedule},
        "difficulty": "0x0",
        "gasLimit": hex(GAS_LIMIT),
        "timestamp": "0x0",
        "extraData": "0x" + secrets.token_hex(32),  # no two networks have the same genesis
        "baseFeePerGas": hex(10**9),
        "alloc": {account: {"balance": hex(_GRANT)}, registry: {"balance": hex(_TREASURY)}},
    }


def _comet_genesis(chain_id: int, site: str, consensus_key: str, rule: Mapping[str, object]) -> dict[str, Any]:
    return {
        "genesis_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        # What validators sign says for which chain: no two networks have the same.
        "chain_id": f"swarm-{chain_id}-{secrets.token_hex(4)}",
        "initial_height": "1",
        "consensus_params": {
            "block": {"max_bytes": str(8 << 20), "max_gas": "-1"},
            "evidence": {"max_age_num_blocks": "100000", "max_age_duration": "172800000000000", "max_bytes": "1048576"},
            "validator": {"pub_key_types": ["ed25519"]},
            "version": {},
            "abci": {},
        },
        "validators": [genesis_validator(site, consensus_key, UNIT)],
        "app_hash": "",
        "app_state": dict(rule),
    }
