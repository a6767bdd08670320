"""The long-polls: a round or the events, as soon as there is something new to say, at the latest after `wait_s`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from swarm_hpc.records import Round, RoundState
from swarm_hpc.sn.client import EventPage, RoundView, SharedView
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.live import LiveLedger

_REPEAT_S: Final = 1.0
"""How long a round is held back whose deadline passed before the question: its asker may know, or have missed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What is asked for of the statements about a round (records.Statement)."""

    of: str
    step: int
    place: int


async def wait_for_round(live: LiveLedger, contract: str, number: int, *, after: int, wait_s: float) -> RoundView:
    """The round when the contract has an event beyond `after`, when the round became closable or its leader replaceable
    by the passing of time, or after `wait_s`. Reads the ledger only then."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    view = await _view(live, contract, number)
    while not (live.stopped or live.has_news(contract, after)):
        left_s = until - loop.time()
        if left_s <= 0:
            break
        await live.wait(contract, after, min(left_s, _due_in_s(view.round)))
        view = await _view(live, contract, number)
        if _is_due(view.round):
            break
    return view


async def wait_for_shares(
    live: LiveLedger, contract: str, number: int, shares: Shares, *, count: int, wait_s: float
) -> SharedView:
    """The shares of a step when `count` nodes of the round have stated it, when that is not claimed, or after `wait_s`.

    Others may state what they like: it is none of the round's.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s

    def ask(ledger: Ledger) -> dict[str, str]:
        return ledger.shared(contract, number, shares.of, shares.step, shares.place)

    while True:
        view = await _view(live, contract, number)
        # after the round: whatever was stated while it was claimed is there
        stated, nodes = await live.read(ask), {check_in.node for check_in in view.round.check_ins}
        blobs = {node: blob for node, blob in stated.items() if node in nodes}
        left_s = until - loop.time()
        if len(blobs) >= count or view.round.state is not RoundState.CLAIMED or left_s <= 0 or live.stopped:
            return SharedView(blobs=blobs, view=view)
        await live.wait(contract, view.cursor, left_s)


async def wait_for_events(live: LiveLedger, contract: str | None, *, after: int, wait_s: float) -> EventPage:
    """Up to 1000 events beyond `after`, oldest first; waits for one if there is none."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while True:
        newest = live.cursor
        events = await live.read(lambda ledger: ledger.events(after, contract=contract)) if newest > after else ()
        left_s = until - loop.time()
        if events:
            return EventPage(cursor=events[-1].cursor, events=events)
        if left_s <= 0 or live.stopped:
            return EventPage(cursor=after, events=())
        # From here on only what the read cannot have seen is new; `after` itself may lie before the last restart.
        await live.wait(contract, max(after, newest), left_s)


async def _view(live: LiveLedger, contract: str, number: int) -> RoundView:
    cursor = live.cursor

    def ask(ledger: Ledger) -> RoundView:
        return RoundView(
            cursor=cursor,
            round=ledger.round(contract, number),
            contract=ledger.contract(contract),
            halted=ledger.halted(),
        )

    return await live.read(ask)


def _is_due(round_: Round) -> bool:
    return round_.closable or round_.replaceable


def _due_in_s(round_: Round) -> float:
    """When time alone will next change what the round allows; at least a moment: the ledger has whole seconds."""
    if _is_due(round_):
        return _REPEAT_S
    times = [seconds for seconds in (round_.closes_in_s, round_.leader_due_in_s) if seconds is not None]
    return max(min(times, default=3600), 0.25)
