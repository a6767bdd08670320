"""What listeners and those who wait hear of the ledger, on a ledger that is a list of events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from swarm_hpc.errors import LedgerError
from swarm_hpc.records import Event
from swarm_hpc.sn.live import LiveLedger


class Events:
    """Of a ledger what live.py asks for."""

    def __init__(self) -> None:
        self.all: list[Event] = []

    def cursor(self) -> int:
        return len(self.all)

    def events(self, after: int, limit: int = 1000) -> tuple[Event, ...]:
        return tuple(self.all[after : after + limit])

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            number = len(self.all) + 1
            self.all.append(Event(cursor=number, block=number, at=0, name="Joined", contract="demo", facts={}))


class Listener:
    """Fails as often as it is told to, and keeps the cursors of what it heard."""

    def __init__(self, failures: int = 0) -> None:
        self.heard: list[int] = []
        self._failures = failures

    async def __call__(self, events: Sequence[Event]) -> None:
        if self._failures:
            self._failures -= 1
            raise LedgerError("geth does not answer")
        self.heard += [event.cursor for event in events]


@pytest.fixture
async def live():
    live = LiveLedger(Events())
    yield live
    await live.stop()
    live.close()


async def test_a_listener_that_could_not_read_the_ledger_hears_of_the_same_events_again(live):
    before, failing, behind = Listener(), Listener(failures=1), Listener()
    for listener in (before, failing, behind):
        live.listen(listener)
    with pytest.raises(LedgerError, match="geth does not answer"):
        await live.write(Events.add)
    await live.write(Events.add)
    assert before.heard == failing.heard == behind.heard == [1, 2]


async def test_who_follows_tries_again_by_itself_after_a_failure(live, monkeypatch):
    monkeypatch.setattr("swarm_hpc.sn.live._AGAIN_S", 0.01)
    failing = Listener(failures=2)
    live.listen(failing)
    following = asyncio.create_task(live.follow())
    await live.read(Events.add)  # another site's block, and none after it
    live.wake()
    assert await live.wait("demo", 0, 10)
    assert failing.heard == [1]
    following.cancel()
    await asyncio.wait([following])


async def test_more_events_than_a_page_are_heard_at_once(live):
    listener = Listener()
    live.listen(listener)
    await live.write(lambda ledger: ledger.add(2500))
    assert listener.heard == list(range(1, 2501))
