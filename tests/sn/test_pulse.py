"""When a program counts as hanging, with a clock that the test turns."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import LedgerError, NotReachable
from swarm_hpc.sn.pulse import EVERY_S, MISSES, Pulse


class Program:
    """Answers while `answers`; knows how often it was asked and whether it was ended."""

    def __init__(self) -> None:
        self.now, self.answers, self.asked, self.ended = 0.0, True, 0, False
        self.pulse = Pulse("geth", self.ask, self.end, clock=lambda: self.now)

    def ask(self) -> None:
        self.asked += 1
        if not self.answers:
            raise NotReachable("no answer")

    def end(self) -> None:
        self.ended = True

    def check_after(self, seconds: float) -> None:
        self.now += seconds
        self.pulse.check()


def test_a_program_is_asked_now_and_then():
    program = Program()
    for _ in range(10):
        program.check_after(EVERY_S / 2)
    assert program.asked == 5
    assert not program.ended


def test_one_that_leaves_all_questions_without_an_answer_is_ended():
    program = Program()
    program.answers = False
    for _ in range(MISSES - 1):
        program.check_after(EVERY_S)
    assert not program.ended
    with pytest.raises(LedgerError, match="geth hangs"):
        program.check_after(EVERY_S)
    assert program.ended


def test_one_that_was_only_busy_is_left_alone():
    program = Program()
    for _ in range(3):
        program.answers = False
        for _ in range(MISSES - 1):
            program.check_after(EVERY_S)
        program.answers = True
        program.check_after(EVERY_S)
    assert not program.ended


def test_time_alone_as_when_the_whole_host_stood_still_is_no_reason():
    program = Program()
    program.check_after(3600.0)
    assert (program.asked, program.ended) == (1, False)
