"""The table of heights: what survives a crash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm_hpc.errors import LedgerError
from swarm_hpc.sn.heights import Heights
from swarm_hpc.sn.powers import Standing

ONE = Standing(powers={"aa": 10})
TWO = Standing(powers={"aa": 10, "bb": 10}, missing_since={"bb": 7}, jailed={"gamma": 2})


@pytest.fixture
def heights(tmp_path: Path) -> Iterator[Heights]:
    made = Heights(tmp_path / "heights.sqlite")
    yield made
    made.close()


def test_a_standing_comes_back_as_it_was(heights):
    heights.put(7, "0x1", TWO)
    assert heights.standing(7) == TWO


def test_a_height_that_is_not_there_is_named(heights):
    heights.put(7, "0x1", ONE)
    with pytest.raises(LedgerError, match="height 6 is missing"):
        heights.standing(6)


def test_a_block_that_stayed_the_head_is_at_the_highest_of_its_heights(heights):
    heights.put(1, "0x1", ONE)
    heights.put(2, "0x1", ONE)
    heights.put(3, "0x2", ONE)
    assert (heights.of_block("0x1"), heights.of_block("0x2"), heights.of_block("0x3")) == (2, 3, None)
    assert heights.newest() == "0x2"


def test_a_replayed_height_is_put_again(heights):
    heights.put(1, "0x1", ONE)
    heights.put(1, "0x1", TWO)
    assert heights.standing(1) == TWO


def test_another_process_finds_what_was_put_without_any_close(heights, tmp_path):
    heights.put(1, "0x1", ONE)
    other = Heights(tmp_path / "heights.sqlite")
    assert other.standing(1) == ONE
    other.close()


def test_a_cleared_table_is_empty(heights):
    heights.put(1, "0x1", ONE)
    heights.clear()
    assert heights.of_block("0x1") is None
    assert heights.newest() is None
