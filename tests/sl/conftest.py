"""A real SN and real SL nodes in the test's event loop; the ML programs are threads with a MlChannel."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from swarm_hpc.config import (
    IdentityConfig,
    JobConfig,
    MergeConfig,
    ProgramConfig,
    RoundConfig,
    SlConfig,
    SnConfig,
    TransferConfig,
    TransferMode,
)
from swarm_hpc.identity import ca, certs
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import Kind, MergeMethod, NodeName, Platform, RoundState, Wire
from swarm_hpc.sl.channel import MlChannel, OpenRequest
from swarm_hpc.sl.node import live
from swarm_hpc.sl.verify import verify_rounds
from swarm_hpc.sn import node as sn_node
from swarm_hpc.sn.client import SnClient

SITES = ("alpha", "beta", "gamma")
TENSORS = (TensorSpec("weight", "F32", (5,)), TensorSpec("steps", "I64", ()))


class Swarm:
    """One SN that serves all sites, and what is needed to start SL nodes of any of them."""

    def __init__(self, folder: Path, sn: str, identities: dict[str, IdentityConfig], transfer: TransferMode) -> None:
        self.folder = folder
        self.sn = sn
        self.identities = identities
        self.transfer = transfer
        self.programs: list[Program] = []
        self.tweak = lambda config: config

    def config(self, site: str, *, command=(), job=None, **rules) -> SlConfig:
        """SL node `site/sl/sl`."""
        config = SlConfig(
            name=f"{site}/sl/sl",
            sn=self.sn,
            state_dir=str(self.folder / site),
            identity=self.identities[site],
            transfer=TransferConfig(mode=self.transfer, port=0, min_free_mib=0),
            round=RoundConfig(**{"contract": "digits", "min_peers": 2, "quorum_wait_s": 60} | rules),
            job=job or JobConfig(),
            program=ProgramConfig(command=list(command)),
        )
        return self.tweak(config)

    @asynccontextmanager
    async def node(self, site: str, **rules):
        """A running SL node; yields the task of its life, which is cancelled at the end where it still runs."""
        task = asyncio.create_task(live(self.config(site, **rules)))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    def program(self, site: str) -> "Program":
        """The ML program beside that node; closed at the end of the test at the latest."""
        self.programs.append(Program(self.folder / site / "channel" / "ml.sock"))
        return self.programs[-1]

    @asynccontextmanager
    async def client(self, site: str = "alpha"):
        """The SN's API as an SL of the site sees it."""
        config = self.config(site)
        async with SnClient(certs.load(config.identity), self.sn, connection=config.connection) as client:
            yield client

    async def open_all(self, tensors) -> "list[Program]":
        """A program beside the node of each site, with random parameters of its own."""
        programs = [self.program(site) for site in SITES]
        for number, program in enumerate(programs):
            await program.open(tensors=tensors)
            program.weight[:] = np.random.default_rng(number).standard_normal(program.weight.size, np.float32)
        return programs

    async def open_two(self, tensors) -> "list[Program]":
        """The programs of alpha and beta; all their parameters are 0."""
        programs = [self.program(site) for site in SITES[:2]]
        for program in programs:
            await program.open(tensors=tensors)
        return programs

    async def sync_all(self, programs: "list[Program]", number: int, num_peers: int) -> None:
        """A round of them all: each ends with the same parameters, and is part of it."""
        answers = await asyncio.gather(*(program.sync() for program in programs))
        assert [(answer.round, answer.num_peers, answer.late) for answer in answers] == [
            (number, num_peers, False) for _ in programs
        ]
        assert len({bytes(program.session.arena.buffer) for program in programs}) == 1

    async def history(self):
        """The contract's settings, its published rounds and their blobs by hash; with transfer=gateway."""
        async with self.client() as client:
            spec = (await client.contract("digits")).spec
            rounds = [round_ for round_ in await client.rounds("digits") if round_.state is RoundState.PUBLISHED]
            names = {c.blob for r in rounds for c in r.check_ins} | {r.merged for r in rounds} | {spec.model}
            return spec, rounds, {name: await client.download(name) for name in names}

    async def verify(self, num_rounds: int) -> None:
        """All rounds are what their check-ins merge to; with transfer=gateway."""
        spec, rounds, blobs = await self.history()
        report = verify_rounds(spec, rounds, blobs.__getitem__)
        assert (report.rounds_checked, report.mismatches, report.skipped) == (num_rounds, (), ())


class Program:
    """An ML program whose model is one float vector; each call runs in a thread."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.reasons: list[str] = []
        self.channel: MlChannel | None = None

    async def open(self, value: float = 0.0, **fields):
        self.channel = await asyncio.to_thread(MlChannel.connect, str(self.socket))
        self.channel.on_waiting = self.reasons.append
        request = OpenRequest(**{"platform": Platform.PYTORCH, "tensors": TENSORS} | fields)
        self.session = await asyncio.to_thread(self.channel.open, request)
        if not self.session.resume:
            self.weight[:] = value
        return self.session

    @property
    def weight(self) -> np.ndarray:
        return self.session.arena.array("weight")

    async def sync(self, add: float = 0.0, **figures):
        self.weight[:] += add
        return await asyncio.to_thread(self.channel.sync, **figures)

    async def finish(self, mode):
        return await asyncio.to_thread(self.channel.finish, mode)

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()


@pytest.fixture(scope="session")
def identities(tmp_path_factory) -> dict[str, IdentityConfig]:
    """A CA, an SN and an SL certificate per site, in one trust bundle; key `sn` is the SN's."""
    folder = tmp_path_factory.mktemp("certs")
    cas = {site: ca.create_ca(site, "swarm.test", folder / site / "ca") for site in SITES}
    bundle = folder / "bundle.json"
    ca.write_bundle(cas, "swarm.test", bundle)

    def issue(site: str, kind: Kind, name: str) -> IdentityConfig:
        cert, key = ca.issue(folder / site / "ca", NodeName(site, kind, name), folder / site)
        return IdentityConfig(cert=str(cert), key=str(key), bundle=str(bundle))

    return {site: issue(site, Kind.SL, "sl") for site in SITES} | {"sn": issue("alpha", Kind.SN, "sn")}


@pytest.fixture(params=[TransferMode.GATEWAY, pytest.param(TransferMode.DIRECT, marks=pytest.mark.slow)])
def transfer(request) -> TransferMode:
    """Both ways; among the fast tests, those that are about one of them name it."""
    return request.param


@pytest.fixture
def lease_s() -> float:
    return 3.0


@pytest.fixture
async def swarm(tmp_path, identities, transfer, lease_s):
    """An SN that serves; SL nodes are started by the test."""
    config = SnConfig(
        port=0,
        data_dir=str(tmp_path / "sn"),
        lease_s=lease_s,
        identity=identities["sn"],
        transfer=TransferConfig(min_free_mib=0, keep_rounds=0),
    )
    async with sn_node.start(config, certs.load(config.identity)) as address:
        swarm = Swarm(tmp_path, address, identities, transfer)
        yield swarm
        for program in swarm.programs:
            program.close()


@pytest.fixture
def rounded(swarm):
    """The swarm, whose nodes ask for differences."""

    def ask(wire=Wire.INT8, method=MergeMethod.MEAN, **fields):
        def tweak(config):
            config.merge = MergeConfig(method=method, wire=wire, **fields)
            return config

        swarm.tweak = tweak
        return swarm

    return ask
