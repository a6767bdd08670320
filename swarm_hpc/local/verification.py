"""Checks a run after the fact: recomputes each round's merge from the blobs that were kept and asks the ledger.

Offline on a run folder, or against a running SN. The replay of a contract's rounds is sl/verify.py's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from swarm_hpc.config import ClientConfig
from swarm_hpc.errors import BlobCorrupt, BlobNotFound, NotFound
from swarm_hpc.identity import certs
from swarm_hpc.kernels.plan import ReadableBuffer
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.records import Round, TrainingContract
from swarm_hpc.sl.verify import Finding, ReadBlob, verify_rounds
from swarm_hpc.sn.client import SnClient
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.offline import read_ledger
from swarm_hpc.transport.blobs import hash_bytes

BLOB: Final = re.compile(r"[0-9a-f]{64}")
History: TypeAlias = Sequence[tuple[TrainingContract, Sequence[Round]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found in all contracts of a run, or in one contract."""

    rounds_checked: int
    findings: tuple[Finding, ...]
    skipped: tuple[Finding, ...]
    """Rounds with a blob that is no longer kept (transfer.keep_rounds): not checked, or not in full."""

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
            "details": [asdict(finding) for finding in self.findings],
            "skipped": [asdict(finding) for finding in self.skipped],
        }


def verify_folder(root: Path, find_geth: Callable[[], Path]) -> Verification:
    """All rounds of all contracts of a local run, offline; every copy of a blob under the folder must be whole.

    `find_geth` is asked for the program where the ledger is geth's. ConfigError when it is no run folder, NotFound when
    there is not one round to check, LedgerError where an SN still runs on geth's ledger.
    """
    folder = RunFolder.existing(root)
    copies = _copies(folder)
    with read_ledger(folder.ledger, find_geth) as ledger:
        history = [(contract, ledger.rounds(contract.spec.name)) for contract in ledger.contracts()]
        strays = _damaged_strays(copies, history, ledger)
    return _verify(history, lambda blob: _read_copies(blob, copies.get(blob, [])), str(root), strays)


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


def _verify(history: History, read_blob: ReadBlob, what: str, strays: Sequence[Finding] = ()) -> Verification:
    reports = [verify_rounds(contract.spec, rounds, read_blob) for contract, rounds in history]
    result = Verification(
        rounds_checked=sum(report.rounds_checked for report in reports),
        findings=(*(finding for report in reports for finding in report.mismatches), *strays),
        skipped=tuple(finding for report in reports for finding in report.skipped),
    )
    if not result.rounds_checked and not result.findings:
        raise NotFound(f"{what} has no round to check ({len(result.skipped)} whose blobs were not kept)")
    return result


def _damaged_strays(copies: Mapping[str, Sequence[Path]], history: History, ledger: Ledger) -> list[Finding]:
    """Damaged blobs that no round has at its end: check-ins that were replaced, or that came too late to be recorded.

    The latter are reported as round 0 of no contract.
    """
    known = {blob for contract, rounds in history for blob in _blobs_of(contract, rounds)}
    damaged: dict[str, str] = {}
    for blob in copies.keys() - known:
        try:
            _read_copies(blob, copies[blob])
        except BlobCorrupt as exc:
            damaged[blob] = str(exc)
    if not damaged:
        return []
    recorded = {one.facts["blob"]: one for one in ledger.all_events() if one.name == "CheckedIn"}
    found = []
    for blob, reason in sorted(damaged.items()):
        event = recorded.get(blob)
        if event is None:
            found.append(Finding(contract="", round=0, node="", reason=f"{reason}; no round names it"))
            continue
        number, node = int(event.facts["round"]), str(event.facts["node"])
        reason = f"{reason}; a check-in that another one replaced"
        found.append(Finding(contract=event.contract, round=number, node=node, reason=reason))
    return found


def _blobs_of(contract: TrainingContract, rounds: Sequence[Round]) -> set[str]:
    check_ins = {check_in.blob for round_ in rounds for check_in in round_.check_ins}
    return {contract.spec.model, *check_ins, *(round_.merged for round_ in rounds)}


def _copies(folder: RunFolder) -> dict[str, list[Path]]:
    """Every blob that an SN or an SL has kept. What programs leave may be named like one: by its SHA-256."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for blobs in folder.blobs for path in blobs.iterdir()):
        if BLOB.fullmatch(path.name) and path.is_file():
            found.setdefault(path.name, []).append(path)
    return found


def _read_copies(blob: str, paths: Sequence[Path]) -> ReadableBuffer:
    """The blob's bytes, when all its copies are whole; BlobCorrupt names the one that is not."""
    if not paths:
        raise BlobNotFound(f"blob {blob} was not kept")
    data = b""
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise BlobCorrupt(f"{path} cannot be read: {exc.strerror}") from exc
        if hash_bytes(data) != blob:
            raise BlobCorrupt(f"{path} was changed: its bytes are not those that its name stands for")
    return data
