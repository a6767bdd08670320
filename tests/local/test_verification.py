"""Verification of a run folder with a real ledger and real blob stores, and of a running SN."""

import asyncio
import hashlib
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from swarm_hpc.config import ClientConfig, ConnectionConfig, LedgerConfig, SnConfig, TransferConfig
from swarm_hpc.errors import BlobNotFound, NotFound
from swarm_hpc.identity import certs
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, model_hash, place
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.verification import BLOB, verify_contract, verify_folder
from swarm_hpc.records import CheckIn, ContractSpec, Merge, Platform
from swarm_hpc.sl.merge import merge_blobs
from swarm_hpc.sn import node
from swarm_hpc.sn.client import SnClient
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.transport.blobs import BlobStore, hash_bytes

LAYOUT = place([TensorSpec("weight", "F32", (6,)), TensorSpec("count", "I64", ())])
SITES = ("alpha", "beta")
NUM_ROUNDS = 2
SPEC = ContractSpec(
    name="tiny",
    platform=Platform.PYTORCH,
    merge=Merge(),
    min_peers=2,
    quorum_wait_s=5,
    leader_timeout_s=5,
    model=model_hash(LAYOUT),
)


def no_geth():
    raise AssertionError("the embedded ledger needs no program")


def blob_of(value):
    with Arena.create(LAYOUT) as arena:
        arena.array("weight")[:] = np.float32(value)
        arena.array("count")[...] = 3
        return bytes(arena.buffer)


def merged_of(check_ins, blobs):
    out = memoryview(bytearray(LAYOUT.size_bytes))
    merge_blobs(LAYOUT, SPEC.merge, check_ins, blobs, out)
    return bytes(out)


class Run:
    """A run folder whose SN and SLs left what real ones leave."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder.create(root)
        self.sn_store = BlobStore(self.folder.sn_data / "blobs")
        self.sl_stores = {site: BlobStore(self.folder.state(site) / "blobs") for site in SITES}
        self.nodes = {site: f"{site}/sl/sl-1" for site in SITES}
        founder = Founder(site="alpha", endpoint="127.0.0.1:1", ca_fingerprint="ab" * 32)
        with Ledger.open(LedgerConfig(), self.folder.ledger, found=founder) as ledger:
            ledger.vote("beta", ledger.account, "127.0.0.1:1", "cd" * 32, True)
            self._train(ledger)

    def _train(self, ledger: Ledger) -> None:
        ledger.create_contract(SPEC)
        self.sn_store.put(LAYOUT.header)
        incarnation = {
            site: ledger.register_node(name, "", "instance").incarnation for site, name in self.nodes.items()
        }
        for site, name in self.nodes.items():
            ledger.join(SPEC.name, name, incarnation[site], SPEC.platform, SPEC.model)
        for number in range(1, NUM_ROUNDS + 1):
            replaced = self._check_in("alpha", blob_of(100 + number))
            ledger.check_in(SPEC.name, number, incarnation["alpha"], replaced)
            check_ins = [self._check_in(site, blob_of(10 * number + at)) for at, site in enumerate(SITES)]
            for site, check_in in zip(SITES, check_ins, strict=True):
                ledger.check_in(SPEC.name, number, incarnation[site], check_in)
            ledger.claim(SPEC.name, number, self.nodes["alpha"], incarnation["alpha"])
            merged = merged_of(check_ins, {c.blob: self.sn_store.path(c.blob).read_bytes() for c in check_ins})
            ledger.publish(SPEC.name, number, self.nodes["alpha"], incarnation["alpha"], self.sn_store.put(merged))
            self.sl_stores["beta"].put(merged)
        ledger.check_in(
            SPEC.name, NUM_ROUNDS + 1, incarnation["beta"], self._check_in("beta", blob_of(77))
        )  # of a round that stayed open

    def _check_in(self, site: str, data: bytes) -> CheckIn:
        self.sl_stores[site].put(data)
        return CheckIn(node=self.nodes[site], blob=self.sn_store.put(data), weight=1)

    def blob_files(self) -> list[Path]:
        return [path for path in sorted(self.folder.root.rglob("*")) if BLOB.fullmatch(path.name)]

    def merged(self, number: int) -> str:
        with Ledger.read(self.folder.ledger) as ledger:
            return ledger.round(SPEC.name, number).merged


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Shared: a test puts back whatever it changes."""
    return Run(tmp_path_factory.mktemp("runs") / "run")


@contextmanager
def changed(path, place_of_change):
    """The file with one byte changed, as long as the block lasts."""
    before = path.read_bytes()
    data = bytearray(before)
    data[place_of_change] ^= 1
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_an_untouched_run_has_no_mismatch(run):
    report = verify_folder(run.folder.root, no_geth)
    assert report.as_json() == {
        "rounds_checked": NUM_ROUNDS,
        "mismatches": 0,
        "rounds_skipped": 0,
        "details": [],
        "skipped": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize("place_of_change", [0, 40, -1])
def test_one_changed_byte_of_any_kept_blob_names_a_round(run, place_of_change):
    files = run.blob_files()
    assert {path.parent.parent.name for path in files} == {"sn", "sl"}
    assert len(files) == 1 + 2 * (4 * NUM_ROUNDS + 1)  # layout; check-ins, one replaced, merged: at the SN and at an SL
    for path in files:
        with changed(path, place_of_change):
            found = verify_folder(run.folder.root, no_geth).as_json()
        assert found["mismatches"] == 1, path
        [detail] = found["details"]
        assert (detail["contract"], detail["round"] in range(1, NUM_ROUNDS + 2)) == ("tiny", True), detail
        assert str(path) in detail["reason"]


def test_a_damaged_layout_is_named_as_such(run):
    with changed(run.sn_store.path(SPEC.model), -1):
        [detail] = verify_folder(run.folder.root, no_geth).as_json()["details"]
    assert detail["round"] == 1
    assert "the model layout" in detail["reason"]


def test_a_blob_that_no_round_names_must_be_whole_too(run):
    stray = run.sn_store.path(run.sn_store.put(blob_of(5)))
    try:
        assert verify_folder(run.folder.root, no_geth).mismatches == 0
        with changed(stray, -1):
            [detail] = verify_folder(run.folder.root, no_geth).as_json()["details"]
        assert "no round names it" in detail["reason"]
    finally:
        stray.unlink()


@pytest.mark.parametrize("place", ["data/alpha", "alpha/swarm", "alpha/sl/program", "tmp/sl-alpha/.cache/hub/blobs"])
def test_a_file_of_a_program_that_is_named_by_its_sha_256_is_no_damaged_blob(run, place):
    file = run.folder.root / place / hashlib.sha256(b"").hexdigest()
    file.parent.mkdir(parents=True)
    file.touch()
    try:
        assert verify_folder(run.folder.root, no_geth).findings == ()
    finally:
        file.unlink()


@pytest.mark.slow
def test_a_round_whose_result_was_removed_is_skipped_with_the_reason(run):
    paths = [path for path in run.blob_files() if path.name == run.merged(2)]
    kept = {path: path.read_bytes() for path in paths}
    try:
        for path in paths:
            path.unlink()
        found = verify_folder(run.folder.root, no_geth).as_json()
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert (found["rounds_checked"], found["mismatches"], found["rounds_skipped"]) == (NUM_ROUNDS - 1, 0, 1)
    assert found["skipped"][0]["round"] == 2
    assert "the merged parameters" in found["skipped"][0]["reason"]


@contextmanager
def running_sn(sites, data_dir):
    """A real SN in a thread; yields its address."""
    config = SnConfig(
        port=0,
        data_dir=str(data_dir),
        identity=sites.config("alpha/sn/sn"),
        transfer=TransferConfig(keep_rounds=0, min_free_mib=0),
    )
    ready, over = threading.Event(), asyncio.Event()
    found = {}

    async def live():
        found["loop"] = asyncio.get_running_loop()
        async with node.start(config, certs.load(config.identity)) as found["address"]:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=partial(asyncio.run, live()))
    thread.start()
    try:
        assert ready.wait(30), "the SN did not start"
        yield found["address"]
    finally:
        found["loop"].call_soon_threadsafe(over.set)
        thread.join()


async def train_one_round(sites, address):
    """A round of alpha and beta by way of the SN; the hash of the merged blob."""
    connection = ConnectionConfig(connect_timeout_s=20)
    blobs, check_ins = {}, []
    for at, site in enumerate(SITES):
        name, data = f"{site}/sl/sl-1", blob_of(at)
        async with SnClient(sites.identity(name), address, connection=connection) as client:
            record, _ = await client.register(name, "", site)
            await client.create_contract(SPEC)
            await client.upload(SPEC.model, memoryview(LAYOUT.header), SPEC.name)
            await client.join(SPEC.name, name, record.incarnation, SPEC.platform, SPEC.model)
            check_in = CheckIn(node=name, blob=hash_bytes(data), weight=1)
            await client.upload(check_in.blob, memoryview(data), SPEC.name)
            blobs[check_in.blob] = data
            check_ins.append(check_in)
            await client.check_in(SPEC.name, 1, record.incarnation, check_in)
            if site == SITES[-1]:
                await client.claim(SPEC.name, 1, name, record.incarnation)
                merged = merged_of(check_ins, blobs)
                await client.upload(hash_bytes(merged), memoryview(merged), SPEC.name)
                await client.publish(SPEC.name, 1, name, record.incarnation, hash_bytes(merged))
    return hash_bytes(merged)


@pytest.mark.slow
def test_a_contract_of_a_running_sn_is_checked_with_its_blobs(sites, tmp_path):
    config = sites.config("alpha/swci/auditor")
    with running_sn(sites, tmp_path / "sn") as address:
        merged = asyncio.run(train_one_round(sites, address))
        client = ClientConfig(sn=address, identity=config, connection=ConnectionConfig(connect_timeout_s=20))
        found = verify_contract(client, "tiny")
        assert (found.rounds_checked, found.mismatches, found.skipped) == (1, 0, ())

        store = BlobStore(tmp_path / "sn" / "blobs")
        with changed(store.path(merged), -1):
            [finding] = verify_contract(client, "tiny").findings
            assert (finding.round, finding.node) == (1, "beta/sl/sl-1")

        store.delete(merged)
        with pytest.raises(BlobNotFound):
            store.path(merged)
        with pytest.raises(NotFound, match="no round to check"):
            verify_contract(client, "tiny")
        with pytest.raises(NotFound, match="nope"):
            verify_contract(client, "nope")
