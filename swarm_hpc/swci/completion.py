"""What the Tab key offers: the next word of a command, then names of what there is, which the SN is asked for.

prompt.py shows it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from swarm_hpc.errors import SwarmError
from swarm_hpc.swci.commands import COMMANDS
from swarm_hpc.swci.contexts import VARIABLES
from swarm_hpc.swci.grammar import Argument, Command, Maybe, Part, Word, quote
from swarm_hpc.swci.parser import Token, tokenize
from swarm_hpc.swci.session import Session

log = logging.getLogger(__name__)

DEADLINE_S: Final = 2.0
"""The Tab key does not wait longer for the SN."""
KEEP_S: Final = 10.0
"""Names are asked for anew after this time."""

Names = Callable[[Session], Awaitable[Iterable[str]]]


def offers(text: str, commands: Sequence[Command] = COMMANDS) -> tuple[list[str], list[Argument], str]:
    """What may come at the end of the text: words, arguments, and what of it is there already."""
    tokens = list(tokenize(text))
    begun = ""
    if tokens and tokens[-1].end == len(text):
        begun = tokens.pop().text
    words: dict[str, None] = {}
    arguments: dict[str, Argument] = {}
    for command in commands:
        for part in _next(command.parts, tokens):
            if isinstance(part, Word):
                words[part.text] = None
            else:
                words.update(dict.fromkeys(part.choices))
                arguments[part.name] = part
    fitting = [word for word in words if word.startswith(begun.upper())]
    return fitting, list(arguments.values()), begun


def _next(parts: tuple[Part, ...], tokens: Sequence[Token]) -> Iterable[Word | Argument]:
    """The parts that can follow these tokens."""
    if not parts:
        return
    part, rest = parts[0], parts[1:]
    if isinstance(part, Maybe):
        yield from _next((*part.parts, *rest), tokens)
        yield from _next(rest, tokens)
    elif not tokens:
        yield part
    elif _can_be(part, tokens[0]):
        yield from _next(rest, tokens[1:])


def _can_be(part: Word | Argument, token: Token) -> bool:
    if isinstance(part, Word):
        return token.text.upper() == part.text and not token.is_quoted
    return not part.choices or token.text.upper() in part.choices


async def _tasks(session: Session) -> Iterable[str]:
    return [one.name for one in await session.sn.tasks()]


async def _taskrunners(session: Session) -> Iterable[str]:
    return [one.name for one in await session.sn.taskrunners()]


async def _contracts(session: Session) -> Iterable[str]:
    trained = [one.spec.name for one in await session.sn.contracts()]
    return trained + [one.name for one in await session.sn.declared_contracts()]


async def _sites(session: Session) -> Iterable[str]:
    found = await session.sn.sites()
    return [one.name for one in found.sites] + [one.site for one in found.applications]


async def _peers(session: Session) -> Iterable[str]:
    return [peer.node for one in await session.sn.taskrunners() for peer in one.peers]


FROM_SN: Final[dict[str, Names]] = {
    "task": _tasks,
    "prereq": _tasks,
    "taskrunner": _taskrunners,
    "contract": _contracts,
    "site": _sites,
    "peer": _peers,
}
"""By the name of an argument."""


class Completions:
    """Finds completions for one session. An SN that is slow or away offers nothing, and is no error here."""

    def __init__(self, session: Session, now: Callable[[], float] = time.monotonic) -> None:
        self._session, self._now = session, now
        self._known: dict[tuple[str, str], tuple[float, list[str]]] = {}

    async def find(self, text: str) -> tuple[list[str], int]:
        """What may come in the place of the last so many characters."""
        words, arguments, begun = offers(text)
        for argument in arguments:
            words += [quote(name) for name in await self._names(argument.name, begun)]
        return words, len(begun)

    async def _names(self, argument: str, begun: str) -> list[str]:
        if argument == "context":
            found: Iterable[str] = self._session.contexts
        elif argument == "variable":
            found = VARIABLES
        elif argument in ("file", "folder"):
            found = self._files(begun)
        else:
            found = await self._from_sn(argument)
        return [name for name in found if name.startswith(begun)]

    async def _from_sn(self, argument: str) -> list[str]:
        if argument not in FROM_SN or not self._session.contexts:
            return []
        key = (self._session.current, argument)
        until, names = self._known.get(key, (0.0, []))
        if self._now() < until:
            return names
        try:
            async with asyncio.timeout(DEADLINE_S):
                names = sorted(set(await FROM_SN[argument](self._session)))
        except (SwarmError, TimeoutError) as exc:
            log.debug("no names of %s: %s", argument, exc)
            names = []
        self._known[key] = (self._now() + KEEP_S, names)
        return names

    def _files(self, begun: str) -> list[str]:
        folder, slash, _ = begun.rpartition("/")
        try:
            found = self._session.folder.find(folder + slash or ".")
            entries = sorted(found.iterdir())[:1000]
        except (SwarmError, OSError):
            return []
        return [f"{folder}{slash}{one.name}{'/' if _is_folder(one) else ''}" for one in entries]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
