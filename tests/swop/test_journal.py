"""The journal: what was written is there after any crash, and nothing half of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc.errors import ConfigError, DuplicateNode
from swarm_hpc.records import TaskType
from swarm_hpc.swop.journal import Journal, alone
from swarm_hpc.swop.part import Part, SlotState, with_slots

PART = with_slots(Part(taskrunner="r", run=1, task="t", kind=TaskType.RUN_SWARM, token="aa"), "me", [0, 1])


class Killed(Exception):
    """Stands for the end of the process."""


def test_what_was_written_comes_back_until_it_is_cleared(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() is None
    journal.write(PART)
    assert Journal(tmp_path).read() == PART
    journal.clear()
    journal.clear()
    assert Journal(tmp_path).read() is None


@pytest.mark.parametrize("call", ["json.dumps", "os.open", "os.fsync", "pathlib.Path.replace"])
def test_a_crash_in_the_middle_of_a_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    journal = Journal(tmp_path)
    journal.write(PART)

    def crash(*_: object) -> None:
        raise Killed

    later = PART.with_slot(replace(PART.slots[0], state=SlotState.STARTED, handle="7"))
    with monkeypatch.context() as patch:
        patch.setattr(call, crash)
        with pytest.raises(Killed):
            journal.write(later)
    assert Journal(tmp_path).read() == PART
    Journal(tmp_path).write(later)
    assert Journal(tmp_path).read() == later


def test_every_beginning_of_a_file_is_refused_by_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(PART)
    file = tmp_path / "part.json"
    text = file.read_text()
    for end in range(len(text)):
        file.write_text(text[:end])
        with pytest.raises(ConfigError, match=r"part\.json"):
            journal.read()


def test_two_swops_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(DuplicateNode, match="another SWOP"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
