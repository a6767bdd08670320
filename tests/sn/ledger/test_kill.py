"""kill -9 of a process that writes to its embedded ledger: what was confirmed is there, and it goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm_hpc.sn.ledger import Ledger

WRITER = Path(__file__).with_name("writer.py")
NODE = "alpha/sl/sl-1"
NUM_KILLS = 24


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that starts another writing process for each line that it is sent."""
    command = [sys.executable, str(WRITER), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        process.stdin.close()
        process.wait(30)


def run_and_kill(writer: subprocess.Popen[str], after_lines: int, after_s: float) -> list[list[str]]:
    """Start a writer, kill it that long after it has said so many lines, and return all that it said."""
    writer.stdin.write("go\n")
    writer.stdin.flush()
    pid = int(writer.stdout.readline().split()[1])
    said = [writer.stdout.readline().split() for _ in range(after_lines)]
    timer = threading.Timer(after_s, os.kill, (pid, signal.SIGKILL))
    timer.start()
    for line in writer.stdout:
        if line == "dead\n":
            break
        said.append(line.split())
    timer.join()
    return said


@pytest.mark.slow
def test_nothing_confirmed_is_lost_and_nothing_is_corrupt_however_often_it_is_killed(writer, tmp_path):
    chance = random.Random(20)
    account, hashes = "", []
    confirmed = height = 0
    # While it founds the network, then while it replays and writes.
    moments = [(0, chance.uniform(0.0, 0.1)) for _ in range(8)]
    moments += [(chance.randint(1, 8), chance.uniform(0.0, 0.01)) for _ in range(NUM_KILLS)]
    for after_lines, after_s in moments:
        for words in run_and_kill(writer, after_lines, after_s):
            if words[0] == "open":
                assert account in ("", words[1]), "the account stays"
                account = words[1]
            else:
                assert int(words[1]) > confirmed
                confirmed, height = int(words[1]), int(words[2])
        if not account:
            continue
        with Ledger.read(tmp_path) as ledger:
            status = ledger.status()
            have = ledger.node(NODE).incarnation if ledger.nodes() else 0
            assert confirmed <= have <= confirmed + 1, "one may be on disk that was not confirmed yet"
            assert confirmed == 0 or height <= status.height <= height + 1
            found = [ledger._chain.block_hash(number) for number in range(status.height + 1)]
            assert found[: len(hashes)] == hashes, "history does not change"
            confirmed, height, hashes = have, status.height, found
    assert confirmed >= NUM_KILLS // 2
