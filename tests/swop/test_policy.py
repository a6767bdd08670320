"""What a site's policy lets tasks do."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, TaskRefused
from swarm_hpc.records import Task, TaskType
from swarm_hpc.swop.policy import Policy, parse_policy
from swarm_hpc.tasks import yaml
from swarm_hpc.tasks.file import ContentType, MakeUserContent, Mount, Operation, PullImage, RunSwarm

RUN = RunSwarm(command="x", entrypoint="", working_dir="/w")
PULL = PullImage(tag="1", repo="env", registry="hub.example.org/team")


def task(kind=TaskType.RUN_SWARM, **changes):
    fields = {"author": "jane", "prereq": "ROOTTASK", "outcome": "env", "site": "alpha"} | changes
    return Task(name="t", type=kind, finalised=True, created_at=1, body=(), **fields)


def policy(text):
    return parse_policy(yaml.parse(text, "policy.yaml"))


def bind(path):
    return RunSwarm(
        command="x", entrypoint="", working_dir="/w", shared_content=(Mount(source=path, target="/s", is_volume=False),)
    )


def fetch(uri):
    operation = Operation(kind="DOWNLOAD", target=uri)
    return MakeUserContent(content_type=ContentType.BUILDCONTENT, operations=(operation,))


def test_without_a_policy_every_task_is_taken():
    Policy().check(task(), bind("/etc"))
    assert Policy().nodes(7) == 7


@pytest.mark.parametrize(
    ("text", "one", "body", "reason"),
    [
        ("types: [PULL_IMAGE]", task(), RUN, "takes PULL_IMAGE, and not RUN_SWARM"),
        ("types: []", task(), RUN, "no tasks"),
        ("sites: [beta]", task(), RUN, "'alpha', is not among beta"),
        ("sites: []", task(), RUN, "nothing at all"),
        ("authors: ['j?']", task(), RUN, "author"),
        ("outcomes: [user-*]", task(TaskType.PULL_IMAGE), PULL, "what it makes"),
        ("registries: [docker.io/*]", task(TaskType.PULL_IMAGE), PULL, "hub.example.org/team/env:1"),
        ("downloads: ['https://d.org/*']", task(), fetch("https://e.org/x"), "downloads"),
        ("paths: [/projects]", task(), bind("/projects/../etc"), "not below"),
        ("paths: []", task(), bind("/projects"), "nothing"),
        ("paths: [/projects]", task(), fetch("file:///etc/passwd"), "not below"),
        ("paths: [/projects]", task(), fetch("file:/etc/passwd"), "begins with http"),
        ("paths: [/projects]", task(), fetch("FILE://localhost/projects/%2e%2e/etc/passwd"), "not below"),
        ("types: ~", task(), fetch("http://[x"), "is no URI"),
        ("types: ~", task(), bind("/a\0b"), "is no path"),
    ],
)
def test_what_the_policy_does_not_name_is_refused(text, one, body, reason):
    with pytest.raises(TaskRefused, match=reason):
        policy(text).check(one, body)


def test_what_it_names_is_taken():
    rules = "types: [RUN_SWARM, PULL_IMAGE]\nsites: [al*]\nauthors: [jane]\npaths: [/projects]\nmax_nodes: 2"
    policy(rules).check(task(), bind("/projects/mnist"))
    policy("registries: [hub.example.org/*]\noutcomes: [env]").check(task(TaskType.PULL_IMAGE), PULL)


def test_a_link_out_of_an_allowed_folder_is_followed(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to("/etc")
    with pytest.raises(TaskRefused):
        policy(f"paths: [{tmp_path}/open]").check(task(), bind(str(tmp_path / "open" / "link")))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("type: [RUN_SWARM]", r"did you mean types\?"),
        ("types: [ROOT_TASK]", "none of"),
        ("paths: [projects]", "begin with /"),
        ("sites: [a]\nsites: [b]", "must be there once"),
        ("max_nodes: many", "no whole number"),
    ],
)
def test_a_policy_with_a_mistake_is_refused(text, reason):
    with pytest.raises(ConfigError, match=reason):
        policy(text)


@given(st.text(max_size=40) | st.text("file:/[]%0.@?#", max_size=20))
def test_any_target_is_taken_or_refused(text):
    for body in (fetch(text), fetch(f"http://{text}"), fetch(f"file:///{text}"), bind(text)):
        with contextlib.suppress(TaskRefused):
            policy("paths: [/projects]").check(task(), body)


def test_null_is_no_rule():
    assert policy("types: ~\nmax_nodes: ~") == Policy()
