"""A SWOP node's life: reads its profile, registers, follows its taskrunner, leaves (`swarm-hpc swop`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

from swarm_hpc.config import SwopConfig
from swarm_hpc.daemon import until_one_ends
from swarm_hpc.errors import ConfigError, LedgerHalted, TransportError
from swarm_hpc.identity.certs import Identity, load
from swarm_hpc.records import Kind, NodeName
from swarm_hpc.sl.member import Member, load_instance
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swop import run_swarm
from swarm_hpc.swop.doing import Workshop
from swarm_hpc.swop.follower import Follower
from swarm_hpc.swop.journal import alone
from swarm_hpc.swop.profile import Profile, read_profile
from swarm_hpc.swop.workshop import SiteWorkshop

log = logging.getLogger(__name__)

_SN_PORT: Final = 30304
_PAUSE_S: Final = 10.0


async def run(config: SwopConfig) -> None:
    """`live` until SIGTERM or SIGINT, which end it in order: it leaves, and what it has started goes on. For the main
    thread."""
    life = asyncio.ensure_future(live(config))
    with _ended_by_signals(life):
        try:
            await life
        except asyncio.CancelledError:
            log.info("stopped; what was started goes on, and the next SWOP with this state_dir finds it")


async def live(config: SwopConfig) -> None:
    """Be a SWOP node for ever. ConfigError: settings, profile. Fenced, DuplicateNode: another process has the name."""
    profile = read_profile(Path(config.profile))
    workshop = SiteWorkshop(config, profile)
    for note in [*profile.notes, *_unmapped(profile), *_without_identity(profile, workshop.volumes)]:
        log.warning("%s: %s", config.profile, note)
    await follow(config, profile.taskrunner, workshop, config.sn or _address(profile))


async def follow(config: SwopConfig, taskrunner: str, workshop: Workshop, address: str) -> None:
    """Register, and do what the taskrunner is given. Raises as `live`."""
    identity = load(config.identity)
    _check_name(config, identity)
    state_dir = _state_dir(config)
    async with AsyncExitStack() as stack:
        stack.enter_context(alone(state_dir))
        sn = await stack.enter_async_context(SnClient(identity, address, connection=config.connection))
        member = Member(sn, config.name, "", load_instance(state_dir))
        follower = Follower(sn, member, taskrunner, workshop, state_dir, config.follow)
        await _register(member)
        stack.push_async_callback(member.leave)
        await until_one_ends(member.keep_alive(), follower.run())


async def _register(member: Member) -> None:
    while True:
        try:
            await member.register()
            return
        except (TransportError, LedgerHalted) as exc:
            log.warning("not registered yet: %s", exc)
            await asyncio.sleep(_PAUSE_S)


@contextmanager
def _ended_by_signals(life: asyncio.Future[None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, life.cancel)
    try:
        yield
    finally:
        for number in numbers:
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)


def _state_dir(config: SwopConfig) -> Path:
    return Path(config.state_dir).absolute()


def _check_name(config: SwopConfig, identity: Identity) -> None:
    name = NodeName.parse(config.name)
    if name.kind is not Kind.SWOP:
        raise ConfigError(f"name: {config.name} is no SWOP's: {name.site}/{Kind.SWOP}/NAME")
    if name.site != identity.name.site:
        raise ConfigError(f"name: {config.name} is of site {name.site}, its certificate of site {identity.name.site}")


def _address(profile: Profile) -> str:
    if profile.sn.service:
        return profile.sn.service if ":" in profile.sn.service else f"{profile.sn.service}:443"
    if not profile.sn.host:
        raise ConfigError("sn: neither the settings nor the profile (apisrv) say where the SN is; give sn=HOST:PORT")
    return f"{profile.sn.host}:{profile.sn.port or _SN_PORT}"


def _unmapped(profile: Profile) -> list[str]:
    names = {name for node in profile.nodes for name in run_swarm.unmapped(profile.sl_env(node))}
    return [f"slenvvars: {', '.join(sorted(names))}: means nothing here"] if names else []


def _without_identity(profile: Profile, volumes: Path) -> list[str]:
    nodes = [str(node.index) for node in profile.nodes if not run_swarm.has_identity(node, volumes)]
    return [f"identity: no KEY and CERT here for node {', '.join(nodes)}: site.identity is used"] if nodes else []
