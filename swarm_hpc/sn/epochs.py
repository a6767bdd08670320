"""Restarting a network that has lost more than a third of its voting power for good: a new *epoch*.

CometBFT cannot change its validators without more than 2/3 of them. So the remaining sites agree on the last final
block and start a new CometBFT chain on top of it, with themselves as validators; the Ethereum chain goes on unbroken.
Each signs the epoch with its consensus key: the file is the record of who agreed to go on without whom.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from swarm_hpc.durable import write
from swarm_hpc.errors import ConfigError, LedgerError
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn.comet import ConsensusKeys
from swarm_hpc.sn.contracts import TICKS_PER_S
from swarm_hpc.sn.network import Network, genesis_validator
from swarm_hpc.sn.powers import UNIT, Standing, shares

FILE: Final = "epochs.json"
"""In the ledger's folder: all epochs after the first."""
_CONTEXT: Final = b"swarm-hpc recovery\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A CometBFT chain after the first one."""

    number: int
    """2 for the first recovery of a network, and so on."""
    previous: str
    """ID of the epoch before, or of the network."""
    height: int
    """CometBFT's last height before; the new chain's heights go on from there."""
    head: str
    """Hash of the last Ethereum block before."""
    block: int
    """Its number."""
    timestamp: int
    """Its time (ms)."""
    without: tuple[str, ...]
    """Sites that lose their voting power by this, until they announce themselves again."""
    validators: Mapping[str, str]
    """The sites that go on, in order of admission: name -> consensus key."""
    standing: str
    """The validators' standing that the new chain begins with (powers.py)."""
    approvals: Mapping[str, str] = field(default_factory=dict)
    """Site -> its signature (Ed25519, hex) of the ID."""

    def id(self) -> str:
        """SHA-256 of everything but the approvals, 64 hex digits."""
        values = asdict(self)
        del values["approvals"]
        return sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def genesis_standing(self) -> Standing:
        """The standing that the chain begins with."""
        return Standing.from_json(self.standing)

    def comet_genesis(self, network: Network) -> dict[str, Any]:
        """CometBFT's genesis document of this epoch; the same at every site."""
        first, powers = network.comet_genesis, self.genesis_standing().powers
        return {
            **first,
            "genesis_time": datetime.fromtimestamp(self.timestamp // TICKS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "chain_id": f"{first['chain_id']}-{self.id()[:8]}",
            "initial_height": str(self.height + 1),
            "validators": [genesis_validator(site, key, powers[key]) for site, key in self.validators.items()],
            "app_state": {**first["app_state"], "epoch": self.id()},
        }

    def signed_by(self, site: str, keys: ConsensusKeys) -> Self:
        """The same with the approval of that site."""
        return replace(self, approvals={**self.approvals, site: keys.sign(_CONTEXT + self.id().encode()).hex()})

    def with_approvals(self, others: Mapping[str, str]) -> Self:
        """The same with the approvals of others that hold; the rest is left out."""
        held = {site: signature for site, signature in others.items() if self._holds(site, signature)}
        return replace(self, approvals={**self.approvals, **held})

    def missing(self) -> list[str]:
        """The sites whose approval is missing: all that go on have to agree."""
        return [site for site in self.validators if not self._holds(site, self.approvals.get(site, ""))]

    def _holds(self, site: str, signature: str) -> bool:
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.validators[site]))
            key.verify(bytes.fromhex(signature), _CONTEXT + self.id().encode())
        except (KeyError, ValueError, InvalidSignature):
            return False
        return True


def propose(
    network: Network,
    epochs: Sequence[Epoch],
    sites: Sequence[SiteRecord],
    standing: Standing,
    head: Mapping[str, Any],
    height: int,
    without: Sequence[str],
) -> Epoch:
    """The next epoch, as every remaining site computes it from its own ledger: `head` is geth's newest block.

    ConfigError for sites that have no voting power, and where fewer than half of those with power would go on: then
    another half could do the same.
    """
    powered = [site for site in sites if site.active and site.consensus_key in standing.powers]
    unknown = sorted(set(without) - {site.name for site in powered})
    if unknown or not without:
        raise ConfigError(
            f"without: {', '.join(unknown) or 'nobody'} has no voting power; those that have: "
            f"{', '.join(site.name for site in powered)}"
        )
    staying = [site for site in powered if site.name not in without]
    if 2 * len(staying) < len(powered):
        raise ConfigError(
            f"without {', '.join(sorted(without))} only {len(staying)} of {len(powered)} sites would go on; at least "
            "half of them have to"
        )
    given = shares(len(staying), network.rule().power)
    later = Standing(
        powers={site.consensus_key: share * UNIT for site, share in zip(staying, given, strict=True)},
        jailed={
            **{site.name: site.announced for site in powered if site.name in without},
            **{site: count for site, count in standing.jailed.items() if site not in {one.name for one in staying}},
        },
    )
    return Epoch(
        number=len(epochs) + 2,
        previous=epochs[-1].id() if epochs else network.id(),
        height=height,
        head=str(head["hash"]),
        block=int(head["number"], 16),
        timestamp=int(head["timestamp"], 16),
        without=tuple(sorted(without)),
        validators={site.name: site.consensus_key for site in staying},
        standing=later.as_json(),
    )


def parse(values: object) -> Epoch:
    """An epoch in a file or an answer; LedgerError where it is none."""
    try:
        assert isinstance(values, dict)
        return Epoch(**{**values, "without": tuple(values["without"])})
    except (AssertionError, KeyError, TypeError) as exc:
        raise LedgerError(f"no epoch of a network: {type(exc).__name__}: {exc}") from exc


def check_chain(network: Network, epochs: Sequence[Epoch]) -> None:
    """LedgerError where an epoch does not follow from the one before, or not all that go on have agreed to it."""
    previous = network.id()
    for number, epoch in enumerate(epochs, start=2):
        if epoch.number != number or epoch.previous != previous:
            raise LedgerError(f"epoch {epoch.number} does not follow epoch {number - 1} of this network")
        if missing := epoch.missing():
            raise LedgerError(f"epoch {number}: {', '.join(missing)} has not agreed to it")
        if len(epoch.validators) < len(epoch.without):
            raise LedgerError(f"epoch {number}: fewer than half of the sites have agreed to it")
        previous = epoch.id()


def load(path: Path, network: Network) -> tuple[Epoch, ...]:
    """The epochs in the file, checked; none where there is no file."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as exc:
        raise LedgerError(f"{path}: cannot be read: {exc}") from exc
    epochs = tuple(map(parse, values))
    check_chain(network, epochs)
    return epochs


def save(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write the file."""
    write(path, json.dumps([asdict(epoch) for epoch in epochs]).encode())
