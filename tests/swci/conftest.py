"""SWCI sessions on a fake SN, and on a real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swarm_hpc.config import IdentityConfig, SwciConfig
from swarm_hpc.swci import commands
from swarm_hpc.swci.result import Result
from swarm_hpc.swci.session import Session, connector
from tests.sn.conftest import consortium, sn_config, start_swarm, swarm_of  # noqa: F401 - fixtures
from tests.swci.fake_sn import NOW, FakeSn

NOBODY = IdentityConfig(cert="c.pem", key="k.pem", bundle="b.json")
ADDRESS = "127.0.0.1:30304"

BUILD_TASK = """\
Name: build
TaskType: MAKE_USER_CONTAINER
Author: Ada
Prereq: ROOTTASK
Outcome: user-image
Body:
  BuildContext: null
  BuildType: INLINE
  BuildSteps:
    - FROM sl-pytorch
    - ' '
    - RUN pip install "lib>=1"
"""


@dataclass
class Desk:
    """A session and what it has said."""

    session: Session
    sn: FakeSn
    folder: Path
    told: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def tell(self, text: str, /, *, end: str = "\n") -> None:
        self.told.append(text + end)

    async def __call__(self, text: str) -> Result:
        return await commands.run(self.session, text, self.tell)

    async def lines(self, text: str) -> list[str]:
        return list((await self(text)).lines)


def swci_config(folder: Path, identity: IdentityConfig = NOBODY, **settings) -> SwciConfig:
    return SwciConfig(identity=identity, usr_dir=str(folder), **settings)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A session whose only context is a fake SN. Its clock stands still but for sleeping."""
    sn, slept, clock = FakeSn(), [], [float(NOW)]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    def now() -> float:
        return clock[0]

    session = Session(swci_config(tmp_path, sn=ADDRESS), lambda address, s: sn, sleep=sleep, now=now)
    made = Desk(session, sn, tmp_path, slept=slept)
    made.clock = clock
    return made


@pytest.fixture(params=["fake", "real"])
async def either(request, tmp_path, start_swarm):  # noqa: F811
    """A session on the fake, or on a real SN with its embedded ledger."""
    (tmp_path / "usr").mkdir()
    if request.param == "fake":
        sn = FakeSn()
        yield Desk(Session(swci_config(tmp_path / "usr", sn=ADDRESS), lambda address, s: sn), sn, tmp_path / "usr")
        return
    running = await start_swarm()
    identity = running.consortium.identity("alpha/swci/operator")
    config = swci_config(tmp_path / "usr", sn=running.address)
    async with Session(config, connector(identity, running.connection)) as session:
        yield Desk(session, running, tmp_path / "usr")
