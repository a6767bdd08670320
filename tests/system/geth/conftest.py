"""Consortia of real SNs under failures: made when a test needs one, and handed on while they are sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LONG
from tests.lab.chains import await_one_chain
from tests.lab.consortium import Consortium
from tests.lab.load import Load


def lasting(seconds: float) -> float:
    """How long a disturbance lasts: as long as the project promises to bear it where SWARM_HPC_LONG_TESTS=1, else a
    third of that, so that CI can wait."""
    return seconds if LONG else seconds / 3


class _Handed:
    """One consortium of four sites after the other; the next is made when the last one is no longer sound."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._current: Consortium | None = None

    def get(self) -> Consortium:
        if self._current is not None and not self._is_sound(self._current):
            self.close()
        if self._current is None:
            self._count += 1
            self._current = Consortium(self._folder / f"c{self._count}", relays=True)
            self._current.start()
        return self._current

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None

    @staticmethod
    def _is_sound(net: Consortium) -> bool:
        if net.relays is not None:
            net.relays.heal()
        try:
            for site in net.sites.values():
                site.wanted = True
            net.await_whole(patience_s=60.0)
        except AssertionError:
            return False
        return not net.surprises


@pytest.fixture(scope="session")
def handed(tmp_path_factory: pytest.TempPathFactory, ledger_programs: object) -> Iterator[_Handed]:
    """The consortium that the tests of test_four_*.py share."""
    keeper = _Handed(tmp_path_factory.mktemp("net"))
    yield keeper
    keeper.close()


@pytest.fixture
def four(handed: _Handed) -> Consortium:
    """Four sites behind relays, all of them up and in step; shared by many tests: use a contract of your own."""
    return handed.get()


@pytest.fixture
def consortium_of(tmp_path: Path, handed: _Handed) -> Iterator[Callable[..., Consortium]]:
    """Makes a consortium that runs; whatever was started is ended."""
    handed.close()  # two at a time would disturb each other
    made: list[Consortium] = []

    def make(names: str = "alpha beta gamma delta", **settings: Any) -> Consortium:
        made.append(Consortium(tmp_path / f"c{len(made)}", names, **settings))
        return made[-1].start()

    yield make
    for one in made:
        one.close()


@contextmanager
def trained(net: Consortium, *sites: str, final: tuple[str, ...] = (), **rules: Any) -> Iterator[Load]:
    """Training of these sites (all) goes on during the block; then nothing is lost, doubled or different.

    `final` are the sites that are up at the end, if not all.
    """
    with Load(net, sites, **rules) as load:
        load.await_part(*(sites or net.names))
        yield load
        load.check()
    await_one_chain(net, *final)
    load.check_promises(*final)
    assert not net.surprises
