"""Checks a run after the fact: recomputes each round's merge from the blobs that were kept and asks the ledger.

Offline on a run folder, or against a running SN. The replay of a contract's rounds is sl/verify.py's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swarm_hpc.config import ClientConfig
from swarm_hpc.errors import BlobCorrupt, BlobNotFound, NotFound
from swarm_hpc.identity import certs
from swarm_hpc.kernels.plan import ReadableBuffer
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.records import Round, TrainingContract
from swarm_hpc.sl.verify import Finding, ReadBlob, verify_rounds
from swarm_hpc.sn.client import SnClient
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.transport.blobs import hash_bytes

BLOB: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found in all contracts of a run, or in one contract."""

    rounds_checked: int
    findings: tuple[Finding, ...]
    skipped: tuple[Finding, ...]
    """Rounds with a blob that is no longer kept (transfer.keep_rounds)."""

    @property
    def mismatches(self) -> int:
        """How many rounds are not what the ledger says."""
        return len({(finding.contract, finding.round) for finding in self.findings})

    def as_json(self) -> dict[str, Any]:
        """The object that `swarm-hpc verify --json` prints."""
        return {
            "rounds_checked": self.rounds_checked,
            "mismatches": self.mismatches,
            "rounds_skipped": len(self.skipped),
            "details": [
                {"contract": finding.contract, "round": finding.round, "node": finding.node, "reason": finding.reason}
                for finding in self.findings
            ],
        }


def verify_folder(root: Path) -> Verification:
    """All rounds of all contracts of a local run, offline; every copy of a blob under the folder must be whole.

    ConfigError when it is no run folder, NotFound when there is not one round to check.
    """
    folder = RunFolder.existing(root)
    copies = _copies(folder.root)
    with Ledger.read(folder.ledger) as ledger:
        history = [(contract, ledger.rounds(contract.spec.name)) for contract in ledger.contracts()]
    return _verify(history, lambda blob: _read_copies(blob, copies.get(blob, [])), str(root))


def verify_contract(client: ClientConfig, contract: str) -> Verification:
    """All rounds of a contract, with the ledger and the blobs of a running SN. NotFound when there is none to check."""
    return asyncio.run(_verify_contract(client, contract))


async def _verify_contract(config: ClientConfig, name: str) -> Verification:
    identity = certs.load(config.identity)
    async with SnClient(identity, config.sn, connection=config.connection) as client:
        history = [(await client.contract(name), await client.rounds(name))]
        loop = asyncio.get_running_loop()

        def read(blob: str) -> ReadableBuffer:
            data = asyncio.run_coroutine_threadsafe(client.download(blob), loop).result()
            assert data is not None  # neither a file nor a buffer was given
            return data

        return await asyncio.to_thread(_verify, history, read, f"contract {name}")


def _verify(
    history: Sequence[tuple[TrainingContract, Sequence[Round]]], read_blob: ReadBlob, what: str
) -> Verification:
    reports = [
        verify_rounds(rounds, lambda: read_blob(contract.spec.model), read_blob, contract.spec.merge_method)  # noqa: B023
        for contract, rounds in history
    ]
    result = Verification(
        rounds_checked=sum(report.rounds_checked for report in reports),
        findings=tuple(finding for report in reports for finding in report.mismatches),
        skipped=tuple(finding for report in reports for finding in report.skipped),
    )
    if not result.rounds_checked:
        raise NotFound(f"{what} has no round to check ({len(result.skipped)} whose blobs were not kept)")
    return result


def _copies(root: Path) -> dict[str, list[Path]]:
    """Every file under the folder that is named like a blob."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if BLOB.fullmatch(path.name) and path.is_file():
            found.setdefault(path.name, []).append(path)
    return found


def _read_copies(blob: str, paths: Sequence[Path]) -> ReadableBuffer:
    """The blob's bytes, when all its copies are whole; BlobCorrupt names the one that is not."""
    if not paths:
        raise BlobNotFound(f"blob {blob} was not kept")
    for path in paths:
        data = path.read_bytes()
        if hash_bytes(data) != blob:
            raise BlobCorrupt(f"{path} was changed: its bytes are not those that its name stands for")
    return data
