"""What a site may still sign. Two different votes for one height and round would be double-signing; CometBFT's own
record (priv_validator_state.json) prevents that, unless it is lost or comes from an old backup. Then the others know.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from swarm_hpc.durable import write
from swarm_hpc.errors import SwarmError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import SeenVotes
from swarm_hpc.sn.client import peer_client
from swarm_hpc.sn.comet import CometHome

log = logging.getLogger(__name__)

Signed = tuple[int, int, int]
"""Height, round and step (1 propose, 2 prevote, 3 precommit)."""
LAST_ROUND: Final = 2**31 - 1
_LAST_STEP: Final = 3
_CONNECT_S: Final = 1.0
_ASK_AGAIN_S: Final = 2.0
_SAY_AGAIN_S: Final = 60.0


def floor(site: str, own: Signed, seen: Mapping[str, SeenVotes]) -> Signed | None:
    """Up to where `site` may have signed, by its own record and what others (by name) have seen; None: too few answer.

    When all others with voting power answer, it is the newest vote that any of them has seen: one that nobody has seen
    cannot appear any more. Else, with more than 1/3 of the power: one of those who answer took part in each decision,
    so nothing can have been signed beyond the second height after the newest final one that they know.
    """
    if not seen:
        return None
    newest = max(seen.values(), key=lambda one: one.height)
    others = {name: power for name, power in newest.powers.items() if name != site and power}
    here = sum(power for name, power in others.items() if name in seen)
    if others.keys() <= seen.keys():
        votes = [(one.vote_height, one.vote_round, one.vote_step) for one in seen.values()]
        return max([own, (newest.height, LAST_ROUND, _LAST_STEP), *votes])
    if 3 * here > sum(newest.powers.values()):
        return max(own, (newest.height + 2, LAST_ROUND, _LAST_STEP))
    return None


class SigningGuard:
    """Sets the floor before CometBFT starts."""

    def __init__(self, folder: Path, home: CometHome, identity: Identity, consensus_key: str) -> None:
        """`folder` is the ledger's in data_dir."""
        self._home, self._identity, self._key = home, identity, consensus_key
        self._folder = folder

    async def secure(self, addresses: Sequence[str], *, is_new: bool, told: Callable[[str], None]) -> None:
        """Return when CometBFT may start. `is_new`: this site has never had voting power, so it has signed nothing.

        Where this folder is a copy, or the record of signatures is missing, it waits until enough others have answered;
        else they are asked once, in case somebody put old files back into their place.
        """
        if not is_new:
            await self._raise_floor(addresses, must=not self._is_original(), told=told)
        await asyncio.to_thread(self._home.prepare_data)
        await asyncio.to_thread(leave_mark, self._folder, self._home)

    async def _raise_floor(self, addresses: Sequence[str], *, must: bool, told: Callable[[str], None]) -> None:
        said_at = -_SAY_AGAIN_S
        while True:
            seen = await self._ask(addresses)
            own = self._home.signed()
            limit = floor(self._identity.name.site, own, seen)
            if limit is not None and limit[0] > own[0] and not must:
                # A site that was only away is behind, too: its own votes tell whether its record is old.
                must = max(one.vote_height for one in seen.values()) > own[0] or self._signed_later(own, seen)
            if not must:
                return
            if not addresses:
                log.warning("no other site is known that could say what this one has signed; going on as it is")
                return
            if limit is not None:
                if limit > own:
                    log.warning("this site signs nothing up to height %d: its record of signatures was old", limit[0])
                    await asyncio.to_thread(self._home.set_signed, *limit)
                return
            text = "waiting for other sites to say what this one has signed: its record of that is missing or a copy"
            told(text)
            if time.monotonic() - said_at > _SAY_AGAIN_S:
                said_at = time.monotonic()
                log.warning("%s; asked: %s", text, ", ".join(addresses))
            await asyncio.sleep(_ASK_AGAIN_S)

    @staticmethod
    def _signed_later(own: Signed, seen: Mapping[str, SeenVotes]) -> bool:
        return any(one.last_signed > own[0] for one in seen.values())

    async def _ask(self, addresses: Collection[str]) -> dict[str, SeenVotes]:
        answers = await asyncio.gather(*map(self._ask_one, addresses))
        return {one.site: one for one in answers if one is not None and one.site != self._identity.name.site}

    async def _ask_one(self, address: str) -> SeenVotes | None:
        try:
            async with peer_client(self._identity, address, _CONNECT_S) as client:
                return await client.seen_votes(self._key)
        except SwarmError as exc:
            log.debug("%s does not say what this site has signed: %s", address, exc)
            return None

    def _is_original(self) -> bool:
        """Whether the folder is the one that CometBFT wrote to, not a copy of it."""
        try:
            mark = json.loads(_mark(self._folder, self._home).read_bytes())
            return bool(mark["inode"] == self._home.sign_state.parent.stat().st_ino and self._home.sign_state.exists())
        except (OSError, ValueError, KeyError, TypeError):
            return False


def leave_mark(folder: Path, home: CometHome) -> None:
    """Note which folder CometBFT writes to: a copy of it has another inode."""
    write(_mark(folder, home), json.dumps({"inode": home.sign_state.parent.stat().st_ino}).encode())


def _mark(folder: Path, home: CometHome) -> Path:
    return folder / f"{home.folder.name}.json"
