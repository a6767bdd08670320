"""The Tab key: words, names, and an SN that does not answer."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from swarm_hpc.swci import completion
from swarm_hpc.swci.completion import Completions, offers
from swarm_hpc.swci.prompt import TabKey
from tests.swci.fake_sn import DEFAULT_RUNNER


async def offered(desk, text: str, completions: Completions | None = None) -> list[str]:
    tab_key = TabKey(completions or Completions(desk.session))
    return [one.text async for one in tab_key.get_completions_async(Document(text), CompleteEvent())]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("assi", ["ASSIGN"]),
        ("ASSIGN ", ["TASK"]),
        ("list ta", ["TASKS", "TASKRUNNERS", "TASKRUNNER"]),
        ("create context x with ", ["IP", "SERVICE"]),
        ("assign task t to r with ", ["ALL"]),
        ("exit on failure ", ["ON", "OFF"]),
        ("create task run", ["RUN_SWARM"]),
        ("nonsense ", []),
    ],
)
def test_the_next_words_are_offered(text, words) -> None:
    assert offers(text)[0] == words
    made = TabKey(Completions(None)).get_completions(Document(text), CompleteEvent())
    assert [one.text for one in made] == words


async def test_names_of_what_there_is_are_offered(desk) -> None:
    desk.sn.train("digits", "alpha/sl/one")
    await desk("create contract dance")
    desk.sn.enrol(DEFAULT_RUNNER, "alpha/swop/one")
    (desk.folder / "a b.yaml").write_text("")
    (desk.folder / "sub").mkdir()
    (desk.folder / "sub" / "c.yaml").write_text("")
    assert await offered(desk, "perfdata d") == ["dance", "digits"]
    assert await offered(desk, "get task info ") == ["ROOTTASK"]
    assert await offered(desk, "assign task ROOTTASK to ") == [DEFAULT_RUNNER]
    assert await offered(desk, f"assign task x to {DEFAULT_RUNNER} target ") == ["alpha/swop/one"]
    assert await offered(desk, "switch context ") == ["default"]
    assert await offered(desk, "admit site b") == ["beta"]
    assert await offered(desk, "get context env SWCI_G") == ["SWCI_GENERIC_TASK_MAX_WAIT_TIME"]
    assert await offered(desk, "create task from ") == ['"a b.yaml"', "sub/"]
    assert await offered(desk, "create task from sub/") == ["sub/c.yaml"]
    assert await offered(desk, "cd /nowhere/") == []


async def test_names_are_kept_for_a_moment(desk) -> None:
    clock = [0.0]
    completions = Completions(desk.session, lambda: clock[0])
    await offered(desk, "get task info ", completions)
    await offered(desk, "delete task R", completions)
    assert desk.sn.calls.count("tasks") == 1
    clock[0] = completion.KEEP_S
    await offered(desk, "get task info ", completions)
    assert desk.sn.calls.count("tasks") == 2


async def test_an_sn_that_is_away_or_slow_offers_nothing(desk, monkeypatch) -> None:
    desk.sn.down = 1
    assert await offered(desk, "get task info ") == []

    async def slow():
        await asyncio.Event().wait()

    monkeypatch.setattr(completion, "DEADLINE_S", 0.01)
    monkeypatch.setattr(desk.sn, "tasks", slow)
    assert await offered(desk, "get task info ") == []


@given(st.text(max_size=40))
def test_any_text_can_be_completed(text: str) -> None:
    offers(text)
