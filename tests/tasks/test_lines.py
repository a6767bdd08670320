"""Bodies as lines of the ledger: they come back exactly, fit its limits, and may be written by hand."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.records import TaskType
from swarm_hpc.tasks.file import (
    ContentType,
    MakeUserContainer,
    MakeUserContent,
    Mount,
    Operation,
    PullImage,
    RunSwarm,
    read_task,
    type_of,
)
from swarm_hpc.tasks.lines import MAX_LINE_BYTES, from_lines, to_lines

EXAMPLES = sorted((Path(__file__).parents[1] / "swop" / "data").glob("task-*.yaml"))
CHARS = st.characters(exclude_categories=["Cs", "Cc"])


def some(most=160, least=1):
    return st.text(CHARS, min_size=least, max_size=most)


labels = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
targets = some(40).map(lambda text: "/" + "".join(char for char in text if char not in ':,".'))
uris = st.builds("{}://example.org/{}".format, st.sampled_from(["http", "https"]), labels)
bodies = st.one_of(
    st.builds(
        RunSwarm,
        command=some(),
        entrypoint=some(least=0),
        working_dir=targets,
        env=st.dictionaries(names, some(400, least=0), max_size=4),
        private_content=st.none() | targets,
        shared_content=st.lists(
            st.builds(Mount, source=labels, target=targets, is_volume=st.booleans()), max_size=3
        ).map(tuple),
    ),
    st.builds(
        MakeUserContainer,
        build_context=st.none() | labels,
        build_steps=st.lists(some(least=0), min_size=1, max_size=20).map(tuple),
    ),
    st.builds(
        MakeUserContent,
        content_type=st.sampled_from(ContentType),
        operations=st.lists(
            st.builds(Operation, kind=st.just("DOWNLOAD"), target=uris, out=st.none() | some())
            | st.builds(Operation, kind=st.just("EXTRACT"), target=uris | labels, out=st.none() | some()),
            min_size=1,
            max_size=3,
        ).map(tuple),
    ),
    st.builds(PullImage, tag=some(), repo=some(), registry=some(least=0), auth=st.none() | some()),
)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_each_example_comes_back(file):
    task = read_task(file)
    assert from_lines(task.type, to_lines(task.body)) == task.body


@given(body=bodies)
@example(
    body=MakeUserContainer(build_context=None, build_steps=("a" * 150 + "   b", " ", "\u2028\x85\ufeff", "\\" * 160))
)
@example(body=RunSwarm(command=" ", entrypoint="~", working_dir="/", env={"null": "", "y": "\t\n"}))
def test_any_body_comes_back_from_lines_that_the_ledger_takes(body):
    lines = to_lines(body)
    assert max(len(line.encode()) for line in lines) <= MAX_LINE_BYTES
    assert not any("\n" in line for line in lines)
    assert from_lines(type_of(body), lines) == body


def test_a_body_that_is_too_long_is_refused():
    body = MakeUserContainer(build_context=None, build_steps=tuple("\u2028" * 160 for _ in range(80)))
    with pytest.raises(ConfigError, match="room for 256"):
        to_lines(body)


def test_lines_that_were_written_by_hand_are_read():
    lines = ["Command: train.py", "Entrypoint: python3", "WorkingDir: /work", "Envvars:", "- MAX_EPOCHS: 3"]
    lines += ["PrivateContent: ~", "SharedContent: [{Src: lib, Tgt: /lib2, MType: volume}]"]
    body = from_lines(TaskType.RUN_SWARM, lines)
    assert body.env == {"MAX_EPOCHS": "3"}
    assert body.shared_content == (Mount(source="lib", target="/lib2", is_volume=True),)


def test_a_wrong_line_is_named_by_its_number():
    with pytest.raises(ConfigError, match="body of mine:2: Tagg"):
        from_lines(TaskType.PULL_IMAGE, ["RepoName: r", "Tagg: 1"], "mine")


@given(kind=st.sampled_from(TaskType), lines=st.lists(st.text(max_size=160), max_size=10))
def test_any_lines_are_a_body_or_an_error_of_ours(kind, lines):
    with contextlib.suppress(SwarmError):
        from_lines(kind, lines)
