"""Task files: the examples of every type as they are, and what is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.records import TaskType
from swarm_hpc.tasks.file import Mount, parse_task, read_body, read_task
from swarm_hpc.tasks.yaml import Value

DATA = Path(__file__).parents[1] / "swop" / "data"


def task(kind="PULL_IMAGE", body="{Tag: 1, RepoName: r, OrgAndReg: o, Auth: ~}", **changes):
    fields = {"Name": "t", "TaskType": kind, "Author": "jane", "Prereq": "ROOTTASK", "Outcome": "o", "Body": body}
    return parse_task("\n".join(f"{key}: {value}" for key, value in (fields | changes).items()), "t.yaml")


def test_a_run_task_has_text_for_numbers_and_truth_values():
    found = read_task(DATA / "task-run.yaml")
    assert (found.type, found.prereq) == (TaskType.RUN_SWARM, "user_env_task")
    assert found.body.env["MAX_EPOCHS"] == "16"
    assert found.body.env["SWARM_LOOPBACK"] == "False"
    assert found.body.private_content == "/tmp/test/"
    assert found.body.shared_content[1] == Mount(source="lib-volume", target="/tmp/test/lib", is_volume=True)


def test_shared_content_may_lie_on_the_working_directory():
    found = read_task(DATA / "task-run-shared.yaml").body
    assert found.shared_content[0].target == found.working_dir
    assert found.private_content is None


def test_the_lines_of_a_dockerfile_stay_as_they_are():
    steps = read_task(DATA / "task-container.yaml").body.build_steps
    assert steps[1] == " "
    assert steps[2].endswith("\\")
    assert steps[3].startswith("   keras")


def test_content_and_pull_tasks_load():
    content = read_task(DATA / "task-content.yaml").body
    assert [(one.kind, one.out) for one in content.operations] == [
        ("DOWNLOAD", "app-data/mnist.zip"),
        ("EXTRACT", "app-data"),
    ]
    assert read_task(DATA / "task-pull.yaml").body.tag == "2.3.0"


def test_a_password_never_gets_into_a_task():
    with pytest.raises(ConfigError, match="every site of the network could read it") as caught:
        task(body="{Tag: 1, RepoName: r, OrgAndReg: o, Auth: {Username: jane, Password: s3cret}}")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("MAKE_USER_CONTAINER", "{BuildContext: ~, BuildType: REMOTE, BuildSteps: [FROM x]}", "INLINE"),
        ("MAKE_USER_CONTAINER", "{BuildContext: ~, BuildType: INLINE, BuildSteps: []}", "1 to 80"),
        ("MAKE_USER_CONTAINER", "{BuildContext: ~, BuildType: INLINE, BuildSteps: [RUN echo a: b]}", "quote a text"),
        ("MAKE_USER_CONTAINER", "{BuildContext: ../x, BuildType: INLINE, BuildSteps: [FROM x]}", "name of a volume"),
        (
            "MAKE_SWARM_USER_CONTENT",
            "{ContentType: BUILDCONTENTS, OpsList: [{Operation: EXTRACT, Target: x}]}",
            "did you mean BUILDCONTENT",
        ),
        ("RUN_SWARM", "{Command: x}", "Entrypoint is missing"),
        ("ROOT_TASK", "{}", "none of RUN_SWARM"),
        ("MAKE_SWARM_USER", "{}", "did you mean MAKE_SWARM_USER_CONTENT"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(kind, body, reason):
    with pytest.raises(ConfigError, match=reason):
        task(kind, body)


def test_a_task_has_exactly_the_six_keys():
    with pytest.raises(ConfigError, match="did you mean Name"):
        task(Names="x")


KEYS = (
    *("Command", "Entrypoint", "WorkingDir", "Envvars", "PrivateContent", "SharedContent", "Src", "Tgt", "MType"),
    *("BuildContext", "BuildType", "BuildSteps", "ContentType", "OpsList", "Operation", "Target", "Options", "Out"),
    *("Tag", "RepoName", "OrgAndReg", "Auth", "Username", "Password"),
)
values = st.recursive(
    st.none() | st.text(max_size=20) | st.sampled_from(["BIND", "VOLUME", "/a", "INLINE", "FROM x", "DOWNLOAD"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "Command",
                    "Entrypoint",
                    "WorkingDir",
                    "Envvars",
                    "PrivateContent",
                    "SharedContent",
                    "Src",
                    "Tgt",
                    "MType",
                    "BuildContext",
                    "BuildType",
                    "BuildSteps",
                    "ContentType",
                    "OpsList",
                    "Operation",
                    "Target",
                    "Options",
                    "Out",
                    "Tag",
                    "RepoName",
                    "OrgAndReg",
                    "Auth",
                    "Username",
                    "Password",
                ]
            ),
            inner,
        )
    ),
    max_leaves=15,
)


def as_value(data):
    if isinstance(data, list):
        return Value([as_value(one) for one in data], "seq", "f", "", 1)
    if isinstance(data, dict):
        return Value({key: as_value(one) for key, one in data.items()}, "map", "f", "", 1)
    return Value(data, "null" if data is None else "str", "f", "", 1)


@given(kind=st.sampled_from(TaskType), data=values)
def test_any_structure_is_a_body_or_an_error_of_ours(kind, data):
    with contextlib.suppress(SwarmError):
        read_body(kind, as_value(data))
