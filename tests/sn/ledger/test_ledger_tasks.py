"""Tasks and taskrunners on every kind of chain: their states, and what is refused in each."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import AlreadyExists, ConfigError, NotFound, NotMember, TaskRefused
from swarm_hpc.records import TaskState, TaskType

RUNNER = "swarm"
A, B, C = (f"alpha/swop/swop-{i}" for i in (1, 2, 3))
IDLE, RUNNING, COMPLETE, ERROR = TaskState.IDLE, TaskState.RUNNING, TaskState.COMPLETE, TaskState.ERROR


@pytest.fixture
def ledger(network):
    """Three SWOP nodes in one taskrunner, able to start 2, 2 and 1 SL nodes; tasks `build` and `train`."""
    ledger = network.ledger
    ledger.create_taskrunner(RUNNER)
    for node, num_sl in ((A, 2), (B, 2), (C, 1)):
        ledger.register_node(node, "", "i")
        ledger.enrol(RUNNER, node, num_sl)
    ledger.create_task("build", TaskType.MAKE_USER_CONTAINER, "Ada", "ROOTTASK", "image:1")
    ledger.append_task_body("build", 1, "FROM scratch")
    ledger.finalize_task("build")
    ledger.create_task("train", TaskType.RUN_SWARM, "Ada", "build", "")
    ledger.append_task_body("train", 1, "python train.py")
    ledger.finalize_task("train")
    return ledger


def states(ledger):
    return [peer.state for peer in ledger.taskrunner(RUNNER).peers]


# --- tasks ---


def test_the_root_task_is_there_and_finalised(network):
    (root,) = network.ledger.tasks()
    assert (root.name, root.type, root.finalised) == ("ROOTTASK", TaskType.ROOT_TASK, True)


def test_a_task_is_written_line_by_line_and_then_fixed(ledger):
    ledger.create_task("pull", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:2")
    ledger.append_task_body("pull", 1, "Tag: latest")
    ledger.append_task_body("pull", 2, "x" * 160)
    ledger.append_task_body("pull", 1, "Tag: new")
    with pytest.raises(ConfigError, match="gaps"):
        ledger.append_task_body("pull", 4, "")
    with pytest.raises(ConfigError, match="gaps"):
        ledger.append_task_body("pull", 0, "")
    with pytest.raises(ConfigError, match="160"):
        ledger.append_task_body("pull", 3, "x" * 161)
    ledger.finalize_task("pull")
    ledger.finalize_task("pull")
    task = ledger.task("pull")
    assert (task.body, task.finalised, task.outcome) == (("Tag: new", "x" * 160), True, "image:2")
    with pytest.raises(TaskRefused):
        ledger.append_task_body("pull", 1, "Tag: other")
    ledger.append_task_body("pull", 1, "Tag: new")


def test_creating_a_task_again_needs_the_same_fields(ledger):
    ledger.create_task("build", TaskType.MAKE_USER_CONTAINER, "Ada", "ROOTTASK", "image:1")
    with pytest.raises(AlreadyExists):
        ledger.create_task("build", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:1")
    with pytest.raises(ConfigError):
        ledger.create_task("other", TaskType.ROOT_TASK, "Ada", "ROOTTASK", "")
    with pytest.raises(ConfigError):
        ledger.create_task("not a name", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "")


def test_a_prerequisite_must_be_there_and_finalised(ledger):
    with pytest.raises(NotFound):
        ledger.create_task("later", TaskType.RUN_SWARM, "Ada", "nothing", "")
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "")
    with pytest.raises(TaskRefused, match="prerequisite"):
        ledger.create_task("later", TaskType.RUN_SWARM, "Ada", "draft", "")
    with pytest.raises(TaskRefused, match="no body"):
        ledger.finalize_task("draft")


def test_only_a_task_that_is_not_finalised_can_be_deleted(ledger):
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "old")
    ledger.append_task_body("draft", 1, "old")
    ledger.delete_task("draft")
    ledger.delete_task("draft")
    assert [task.name for task in ledger.tasks()] == ["ROOTTASK", "build", "train"]
    with pytest.raises(NotFound):
        ledger.task("draft")
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "new")
    assert ledger.task("draft").body == ()
    with pytest.raises(TaskRefused):
        ledger.delete_task("build")


# --- taskrunners ---


def test_a_task_for_all_ends_when_all_are_complete(ledger):
    assert ledger.taskrunner(RUNNER).state is IDLE
    ledger.assign(RUNNER, "build")
    runner = ledger.taskrunner(RUNNER)
    assert (runner.state, runner.task, runner.num_peers, runner.counts_sl) == (RUNNING, "build", 3, False)
    for node in (A, B, C):
        ledger.report(RUNNER, node, RUNNING, "building")
        ledger.report(RUNNER, node, RUNNING, "building")
    assert states(ledger) == [RUNNING] * 3
    for node in (A, B):
        ledger.report(RUNNER, node, COMPLETE)
    assert ledger.taskrunner(RUNNER).state is RUNNING
    ledger.report(RUNNER, C, COMPLETE)
    runner = ledger.taskrunner(RUNNER)
    assert runner.state is COMPLETE
    assert runner.ended_at >= runner.assigned_at > 0
    ledger.report(RUNNER, C, COMPLETE)
    with pytest.raises(TaskRefused):
        ledger.report(RUNNER, C, RUNNING)


def test_exactly_as_many_swops_as_were_asked_for_may_begin(ledger):
    ledger.assign(RUNNER, "build", 2)
    ledger.report(RUNNER, C, RUNNING)
    ledger.report(RUNNER, A, RUNNING)
    with pytest.raises(TaskRefused, match="peers enough"):
        ledger.report(RUNNER, B, RUNNING)
    ledger.report(RUNNER, C, COMPLETE)
    ledger.report(RUNNER, A, COMPLETE)
    assert ledger.taskrunner(RUNNER).state is COMPLETE
    assert states(ledger) == [COMPLETE, IDLE, COMPLETE]


def test_a_swarm_counts_sl_nodes(ledger):
    ledger.assign(RUNNER, "train", 3)
    ledger.report(RUNNER, A, RUNNING)
    ledger.report(RUNNER, B, RUNNING)
    with pytest.raises(TaskRefused, match="peers enough"):
        ledger.report(RUNNER, C, RUNNING)
    ledger.report(RUNNER, A, COMPLETE, num_done=2)
    assert ledger.taskrunner(RUNNER).state is RUNNING
    ledger.report(RUNNER, B, COMPLETE, num_done=2)
    assert ledger.taskrunner(RUNNER).state is COMPLETE
    ledger.assign(RUNNER, "train")
    assert ledger.taskrunner(RUNNER).num_peers == 5
    assert states(ledger) == [IDLE] * 3


def test_a_failed_peer_is_made_up_for_by_another_while_there_is_one(ledger):
    ledger.assign(RUNNER, "build", 2)
    ledger.report(RUNNER, A, RUNNING)
    ledger.report(RUNNER, A, ERROR, "disk full")
    assert ledger.taskrunner(RUNNER).state is RUNNING
    ledger.report(RUNNER, B, COMPLETE)
    ledger.report(RUNNER, C, ERROR, "disk full")
    runner = ledger.taskrunner(RUNNER)
    assert runner.state is ERROR
    assert runner.peers[0].text == "disk full"


def test_a_swarm_that_ends_with_too_few_sl_nodes_is_an_error(ledger):
    ledger.assign(RUNNER, "train", 4)
    ledger.report(RUNNER, A, COMPLETE, num_done=2)
    ledger.report(RUNNER, B, COMPLETE, num_done=1)
    assert ledger.taskrunner(RUNNER).state is ERROR


def test_a_running_taskrunner_takes_no_other_task(ledger):
    ledger.assign(RUNNER, "build", 2)
    ledger.assign(RUNNER, "build", 2)
    with pytest.raises(TaskRefused, match="running"):
        ledger.assign(RUNNER, "build", 1)
    with pytest.raises(TaskRefused, match="running"):
        ledger.assign(RUNNER, "train", 2)
    with pytest.raises(TaskRefused, match="running"):
        ledger.assign(RUNNER, "train", target=A)


def test_a_task_for_one_target_is_refused_to_others(ledger):
    ledger.assign(RUNNER, "train", target=B)
    runner = ledger.taskrunner(RUNNER)
    assert (runner.target, runner.num_peers) == (B, 2)
    with pytest.raises(TaskRefused, match="another node"):
        ledger.report(RUNNER, A, RUNNING)
    ledger.report(RUNNER, B, COMPLETE, num_done=2)
    assert ledger.taskrunner(RUNNER).state is COMPLETE


def test_a_target_joins_a_running_assignment(ledger):
    ledger.assign(RUNNER, "build", 2)
    ledger.report(RUNNER, A, RUNNING)
    ledger.report(RUNNER, B, ERROR)
    ledger.assign(RUNNER, "build", target=B)
    assert ledger.taskrunner(RUNNER).num_peers == 2, "a failed peer tries again for its own share"
    ledger.report(RUNNER, B, RUNNING)
    ledger.assign(RUNNER, "build", target=C)
    ledger.assign(RUNNER, "build", target=C)
    assert ledger.taskrunner(RUNNER).num_peers == 3, "a late peer is one more"
    for node in (A, B, C):
        ledger.report(RUNNER, node, COMPLETE)
    assert ledger.taskrunner(RUNNER).state is COMPLETE


def test_reset_makes_a_taskrunner_idle_whatever_it_does(ledger):
    ledger.assign(RUNNER, "build")
    ledger.report(RUNNER, A, RUNNING)
    ledger.reset_taskrunner(RUNNER)
    ledger.reset_taskrunner(RUNNER)
    runner = ledger.taskrunner(RUNNER)
    assert (runner.state, runner.task, runner.num_peers) == (IDLE, "", 0)
    assert states(ledger) == [IDLE] * 3
    with pytest.raises(TaskRefused, match="nothing to do"):
        ledger.report(RUNNER, A, COMPLETE)


def test_what_cannot_be_assigned_is_refused(ledger):
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "")
    with pytest.raises(TaskRefused, match="not finalised"):
        ledger.assign(RUNNER, "draft")
    with pytest.raises(TaskRefused, match="ROOTTASK"):
        ledger.assign(RUNNER, "ROOTTASK")
    with pytest.raises(TaskRefused, match="fewer peers"):
        ledger.assign(RUNNER, "build", 4)
    with pytest.raises(NotFound):
        ledger.assign(RUNNER, "nothing")
    with pytest.raises(NotFound):
        ledger.assign("nothing", "build")
    with pytest.raises(NotFound):
        ledger.assign(RUNNER, "build", target="alpha/swop/none")


def test_only_members_write_and_only_a_nodes_own_site_reports(ledger, network):
    stranger = network.ledger_of(1)
    for call in (
        lambda: stranger.create_task("x", TaskType.PULL_IMAGE, "Eve", "ROOTTASK", ""),
        lambda: stranger.append_task_body("build", 1, "evil"),
        lambda: stranger.finalize_task("build"),
        lambda: stranger.delete_task("build"),
        lambda: stranger.create_taskrunner("x"),
        lambda: stranger.enrol(RUNNER, A),
        lambda: stranger.assign(RUNNER, "build"),
        lambda: stranger.report(RUNNER, A, RUNNING),
        lambda: stranger.reset_taskrunner(RUNNER),
    ):
        with pytest.raises(NotMember):
            call()


def test_a_node_that_is_not_enrolled_has_nothing_to_report(ledger):
    ledger.register_node("alpha/swop/swop-9", "", "i")
    ledger.assign(RUNNER, "build")
    with pytest.raises(NotFound, match="not enrolled"):
        ledger.report(RUNNER, "alpha/swop/swop-9", RUNNING)


def test_events_tell_what_happened_in_words(ledger):
    before = ledger.cursor()
    ledger.assign(RUNNER, "build", 1)
    ledger.report(RUNNER, A, COMPLETE)
    found = [(event.name, event.facts) for event in ledger.events(before)]
    assert found == [
        ("Assigned", {"taskrunner": RUNNER, "task": "build", "num_peers": 1, "target": ""}),
        ("Reported", {"taskrunner": RUNNER, "node": A, "state": "COMPLETE", "num_done": 0}),
        ("TaskrunnerEnded", {"taskrunner": RUNNER, "state": "COMPLETE"}),
    ]
    assert [runner.name for runner in ledger.taskrunners()] == [RUNNER]
