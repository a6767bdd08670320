"""How an SN without a network becomes a member of one: through any member, whose answer it can check by its hash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import ConfigError, NotReachable, SwarmError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import SiteApplication, SiteRecord
from swarm_hpc.sn.client import peer_client
from swarm_hpc.sn.epochs import Epoch, check_chain, parse
from swarm_hpc.sn.network import Network

log = logging.getLogger(__name__)

_ASK_AGAIN_S: Final = 1.0
_SAY_AGAIN_S: Final = 60.0
_CONNECT_S: Final = 5.0
_FIRST_ANSWER_S: Final = 600.0
"""How long the members named in ledger.join may all be unreachable."""


async def fetch_network(config: LedgerConfig, identity: Identity) -> tuple[Network, tuple[Epoch, ...]]:
    """The network, and its epochs, of the first member in `ledger.join` that answers.

    NotReachable after 10 minutes; ConfigError where it is not the one that `ledger.network` names.
    """
    deadline = time.monotonic() + _FIRST_ANSWER_S
    while True:
        failures = []
        for address in config.join:
            try:
                async with peer_client(identity, address, _CONNECT_S) as member:
                    text, found = await member.network()
                network, epochs = Network.parse(text), tuple(map(parse, found))
                network.check(config.network, config.chain_id)
                check_chain(network, epochs)
                return network, epochs
            except ConfigError:
                raise
            except SwarmError as exc:
                failures.append(str(exc))
        log.info("no member answers yet: %s", "; ".join(failures))
        if time.monotonic() > deadline:
            raise NotReachable(f"ledger.join: no member answered in {_FIRST_ANSWER_S:g} s: {'; '.join(failures)}")
        await asyncio.sleep(_ASK_AGAIN_S)


async def be_admitted(
    config: LedgerConfig, identity: Identity, asks: SiteApplication, told: Callable[[str], None]
) -> Sequence[SiteRecord]:
    """Ask every member for its vote until this site is one; the members then. Waits for as long as they decide.

    `told` hears what is waited for. NotMember or NotAuthorized where the members refuse.
    """
    said_at = -_SAY_AGAIN_S
    addresses = list(config.join)
    while True:
        sites, failures = await _ask_all(identity, addresses, asks)
        own = next((site for site in sites if site.name == asks.site), None)
        if own is not None and own.active and (own.consensus_key, own.account) == (asks.consensus_key, asks.account):
            return sites
        if sites:
            addresses = [*config.join, *(s.endpoint for s in sites if s.active and s.name != asks.site)]
            addresses = list(dict.fromkeys(addresses))
        waits = f"waiting to be admitted by more than half of {sum(site.active for site in sites)} sites"
        text = "; ".join([waits, *failures])
        told(text)
        if time.monotonic() - said_at > _SAY_AGAIN_S:
            said_at = time.monotonic()
            log.info("%s", text)
        await asyncio.sleep(_ASK_AGAIN_S)


async def _ask_all(
    identity: Identity, addresses: Sequence[str], asks: SiteApplication
) -> tuple[Sequence[SiteRecord], list[str]]:
    newest: Sequence[SiteRecord] = ()
    failures = []
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(peer_client(identity, address, _CONNECT_S)) for address in addresses]
        answers = await asyncio.gather(*(member.apply(asks) for member in members), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, SwarmError):
            failures.append(str(answer))
        elif isinstance(answer, BaseException):
            raise answer
        elif _is_newer(answer.sites, newest, asks.site):
            newest = answer.sites
    return newest, failures


def _is_newer(sites: Sequence[SiteRecord], than: Sequence[SiteRecord], own: str) -> bool:
    """Members may lag behind one another: the list with us in it counts, else the longest."""
    here = any(site.name == own and site.active for site in sites)
    there = any(site.name == own and site.active for site in than)
    return (here, len(sites)) > (there, len(than))
