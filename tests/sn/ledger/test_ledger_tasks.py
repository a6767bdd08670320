"""Tasks and taskrunners on every kind of chain: their states, and what is refused in each."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import AlreadyExists, ConfigError, Fenced, NotFound, NotMember, TaskRefused
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
    ledger.create_task("build", TaskType.MAKE_USER_CONTAINER, "Ada", "ROOTTASK", "image:1", "alpha")
    ledger.append_task_body("build", 1, ["FROM scratch"])
    ledger.finalize_task("build")
    ledger.create_task("train", TaskType.RUN_SWARM, "Ada", "ROOTTASK", "", "alpha")
    ledger.append_task_body("train", 1, ["python train.py"])
    ledger.finalize_task("train")
    return ledger


def report(ledger, *words, run=None, **fields):
    ledger.report(RUNNER, run or ledger.taskrunner(RUNNER).num_runs, *words, **fields)


def states(ledger):
    return [peer.state for peer in ledger.taskrunner(RUNNER).peers]


# --- tasks ---


def test_the_root_task_is_there_and_finalised(network):
    (root,) = network.ledger.tasks()
    assert (root.name, root.type, root.finalised) == ("ROOTTASK", TaskType.ROOT_TASK, True)


def test_a_task_is_written_line_by_line_and_then_fixed(ledger):
    ledger.create_task("pull", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:2", "alpha")
    ledger.append_task_body("pull", 1, ["Tag: latest"])
    ledger.append_task_body("pull", 2, ["x" * 160])
    ledger.append_task_body("pull", 1, ["Tag: new"])
    with pytest.raises(ConfigError, match="gaps"):
        ledger.append_task_body("pull", 4, [""])
    with pytest.raises(ConfigError, match="gaps"):
        ledger.append_task_body("pull", 0, [""])
    with pytest.raises(ConfigError, match="160"):
        ledger.append_task_body("pull", 3, ["x" * 161])
    ledger.finalize_task("pull")
    ledger.finalize_task("pull")
    task = ledger.task("pull")
    assert (task.body, task.finalised, task.outcome) == (("Tag: new", "x" * 160), True, "image:2")
    with pytest.raises(TaskRefused):
        ledger.append_task_body("pull", 1, ["Tag: other"])
    ledger.append_task_body("pull", 1, ["Tag: new"])


def test_creating_a_task_again_needs_the_same_fields(ledger):
    ledger.create_task("build", TaskType.MAKE_USER_CONTAINER, "Ada", "ROOTTASK", "image:1", "alpha")
    with pytest.raises(AlreadyExists):
        ledger.create_task("build", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:1", "alpha")
    with pytest.raises(ConfigError):
        ledger.create_task("other", TaskType.ROOT_TASK, "Ada", "ROOTTASK", "", "alpha")
    with pytest.raises(ConfigError):
        ledger.create_task("not a name", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:2", "alpha")


def test_a_prerequisite_must_be_there_and_finalised(ledger):
    with pytest.raises(NotFound):
        ledger.create_task("later", TaskType.RUN_SWARM, "Ada", "nothing", "", "alpha")
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:2", "alpha")
    with pytest.raises(TaskRefused, match="prerequisite"):
        ledger.create_task("later", TaskType.RUN_SWARM, "Ada", "draft", "", "alpha")
    with pytest.raises(TaskRefused, match="no body"):
        ledger.finalize_task("draft")


def test_only_a_task_that_is_not_finalised_can_be_deleted(ledger):
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "old", "alpha")
    ledger.append_task_body("draft", 1, ["old"])
    ledger.delete_task("draft")
    ledger.delete_task("draft")
    assert [task.name for task in ledger.tasks()] == ["ROOTTASK", "build", "train"]
    with pytest.raises(NotFound):
        ledger.task("draft")
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "new", "alpha")
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
        report(ledger, node, RUNNING, "building")
        report(ledger, node, RUNNING, "building")
    assert states(ledger) == [RUNNING] * 3
    for node in (A, B):
        report(ledger, node, COMPLETE)
    assert ledger.taskrunner(RUNNER).state is RUNNING
    report(ledger, C, COMPLETE)
    runner = ledger.taskrunner(RUNNER)
    assert runner.state is COMPLETE
    assert runner.ended_at >= runner.assigned_at > 0
    report(ledger, C, COMPLETE)
    with pytest.raises(TaskRefused):
        report(ledger, C, RUNNING)


def test_exactly_as_many_swops_as_were_asked_for_may_begin(ledger):
    ledger.assign(RUNNER, "build", 2)
    report(ledger, C, RUNNING)
    report(ledger, A, RUNNING)
    with pytest.raises(TaskRefused, match="peers enough"):
        report(ledger, B, RUNNING)
    report(ledger, C, COMPLETE)
    report(ledger, A, COMPLETE)
    assert ledger.taskrunner(RUNNER).state is COMPLETE
    assert states(ledger) == [COMPLETE, IDLE, COMPLETE]


def test_a_swarm_counts_sl_nodes(ledger):
    ledger.assign(RUNNER, "train", 3)
    report(ledger, A, RUNNING)
    report(ledger, B, RUNNING)
    with pytest.raises(TaskRefused, match="peers enough"):
        report(ledger, C, RUNNING)
    report(ledger, A, COMPLETE, num_done=2)
    assert ledger.taskrunner(RUNNER).state is RUNNING
    report(ledger, B, COMPLETE, num_done=2)
    assert ledger.taskrunner(RUNNER).state is COMPLETE
    ledger.assign(RUNNER, "train")
    assert ledger.taskrunner(RUNNER).num_peers == 5
    assert states(ledger) == [IDLE] * 3


def test_a_failed_peer_is_made_up_for_by_another_while_there_is_one(ledger):
    ledger.assign(RUNNER, "build", 2)
    report(ledger, A, RUNNING)
    report(ledger, A, ERROR, "disk full")
    assert ledger.taskrunner(RUNNER).state is RUNNING
    report(ledger, B, COMPLETE)
    report(ledger, C, ERROR, "disk full")
    runner = ledger.taskrunner(RUNNER)
    assert runner.state is ERROR
    assert runner.peers[0].text == "disk full"


def test_a_swarm_that_ends_with_too_few_sl_nodes_is_an_error(ledger):
    ledger.assign(RUNNER, "train", 4)
    assert ledger.taskrunner(RUNNER).reachable
    report(ledger, A, COMPLETE, num_done=2)
    report(ledger, B, COMPLETE, num_done=1)
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
        report(ledger, A, RUNNING)
    report(ledger, B, COMPLETE, num_done=2)
    assert ledger.taskrunner(RUNNER).state is COMPLETE


def test_a_target_joins_a_running_assignment(ledger):
    ledger.assign(RUNNER, "build", 2)
    report(ledger, A, RUNNING)
    report(ledger, B, ERROR)
    ledger.assign(RUNNER, "build", target=B)
    assert ledger.taskrunner(RUNNER).num_peers == 2, "a failed peer tries again for its own share"
    report(ledger, B, RUNNING)
    ledger.assign(RUNNER, "build", target=C)
    ledger.assign(RUNNER, "build", target=C)
    assert ledger.taskrunner(RUNNER).num_peers == 3, "a late peer is one more"
    for node in (A, B, C):
        report(ledger, node, COMPLETE)
    assert ledger.taskrunner(RUNNER).state is COMPLETE


def test_reset_makes_a_taskrunner_idle_whatever_it_does(ledger):
    ledger.assign(RUNNER, "build")
    report(ledger, A, RUNNING)
    ledger.reset_taskrunner(RUNNER)
    ledger.reset_taskrunner(RUNNER)
    runner = ledger.taskrunner(RUNNER)
    assert (runner.state, runner.task, runner.num_peers) == (IDLE, "", 0)
    assert states(ledger) == [IDLE] * 3
    with pytest.raises(TaskRefused, match="the run is over"):
        report(ledger, A, COMPLETE)


def test_what_cannot_be_assigned_is_refused(ledger):
    ledger.create_task("draft", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:2", "alpha")
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
        lambda: stranger.create_task("x", TaskType.PULL_IMAGE, "Eve", "ROOTTASK", "image:2", "alpha"),
        lambda: stranger.append_task_body("build", 1, ["evil"]),
        lambda: stranger.finalize_task("build"),
        lambda: stranger.delete_task("build"),
        lambda: stranger.create_taskrunner("x"),
        lambda: stranger.enrol(RUNNER, A),
        lambda: stranger.assign(RUNNER, "build"),
        lambda: stranger.report(RUNNER, 1, A, RUNNING),
        lambda: stranger.reset_taskrunner(RUNNER),
    ):
        with pytest.raises(NotMember):
            call()


def test_a_node_that_is_not_enrolled_has_nothing_to_report(ledger):
    ledger.register_node("alpha/swop/swop-9", "", "i")
    ledger.assign(RUNNER, "build")
    with pytest.raises(NotFound, match="not enrolled"):
        report(ledger, "alpha/swop/swop-9", RUNNING)


def test_events_tell_what_happened_in_words(ledger):
    before = ledger.cursor()
    ledger.assign(RUNNER, "build", 1)
    report(ledger, A, COMPLETE)
    found = [(event.name, event.facts) for event in ledger.events(before)]
    assert found == [
        ("Assigned", {"taskrunner": RUNNER, "task": "build", "num_peers": 1, "target": ""}),
        ("Reported", {"taskrunner": RUNNER, "node": A, "state": "COMPLETE", "num_done": 0}),
        ("TaskrunnerEnded", {"taskrunner": RUNNER, "state": "COMPLETE"}),
    ]
    assert [runner.name for runner in ledger.taskrunners()] == ["defaulttaskbb.taskdb.sml.hpe", RUNNER]


def test_a_task_needs_a_name_for_what_it_makes_and_an_account_that_speaks_for_its_site(ledger, network):
    with pytest.raises(ConfigError, match="outcome"):
        ledger.create_task("pull", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "", "alpha")
    with pytest.raises(NotMember):
        ledger.create_task("pull", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:2", "nowhere")
    assert [task.site for task in ledger.tasks()] == ["", "alpha", "alpha"]


def test_a_body_of_many_lines_goes_up_in_batches_and_may_be_sent_again(ledger):
    ledger.create_task("long", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image:2", "alpha")
    lines = [f"line {i}" for i in range(1, 257)]
    ledger.append_task_body("long", 1, lines)
    ledger.append_task_body("long", 1, lines)
    assert ledger.task("long").body == tuple(lines)
    with pytest.raises(ConfigError, match="256"):
        ledger.append_task_body("long", 257, ["one more"])
    with pytest.raises(ConfigError, match="no line"):
        ledger.append_task_body("long", 1, [])
    ledger.finalize_task("long")
    ledger.append_task_body("long", 1, lines)
    with pytest.raises(TaskRefused, match="finalised"):
        ledger.append_task_body("long", 256, ["other"])


# --- prerequisites ---


@pytest.fixture
def after(ledger):
    """`after`, which comes after `build`."""
    ledger.create_task("after", TaskType.RUN_SWARM, "Ada", "build", "", "alpha")
    ledger.append_task_body("after", 1, "python train.py".splitlines())
    ledger.finalize_task("after")
    return "after"


def test_a_task_is_for_those_who_have_completed_its_prerequisite(ledger, after):
    with pytest.raises(TaskRefused, match="completed the task's prerequisite"):
        ledger.assign(RUNNER, after)
    ledger.assign(RUNNER, "build", 2)
    report(ledger, A, COMPLETE)
    report(ledger, C, COMPLETE)
    with pytest.raises(TaskRefused, match="completed the task's prerequisite"):
        ledger.assign(RUNNER, after)
    with pytest.raises(TaskRefused, match="target has not completed"):
        ledger.assign(RUNNER, after, target=B)
    ledger.assign(RUNNER, after, 3)
    with pytest.raises(TaskRefused, match="node has not completed"):
        report(ledger, B, RUNNING)
    report(ledger, A, COMPLETE, num_done=2)
    report(ledger, C, COMPLETE, num_done=1)
    assert ledger.taskrunner(RUNNER).state is COMPLETE


def test_a_prerequisite_that_failed_is_not_completed(ledger, after):
    ledger.assign(RUNNER, "build", 1)
    for node in (A, B, C):
        report(ledger, node, ERROR, "disk full")
    with pytest.raises(TaskRefused, match="prerequisite"):
        ledger.assign(RUNNER, after, 1)


# --- runs ---


def test_every_run_stays_in_the_history_with_what_its_peers_reported(ledger):
    ledger.assign(RUNNER, "build", 2)
    report(ledger, A, COMPLETE, "image:1 is made")
    report(ledger, B, ERROR, "disk full")
    ledger.reset_taskrunner(RUNNER)
    ledger.assign(RUNNER, "train", target=C)
    report(ledger, C, COMPLETE, "", 1)
    ledger.reset_taskrunner(RUNNER)
    ledger.assign(RUNNER, "train", 5)
    first, second, third = ledger.task_runs(RUNNER)
    assert (first.number, first.task, first.state, first.num_peers) == (1, "build", TaskState.RESET, 2)
    assert [(peer.state, peer.text) for peer in first.peers] == [
        (COMPLETE, "image:1 is made"),
        (ERROR, "disk full"),
        (IDLE, ""),
    ]
    assert (second.state, second.target, second.ended_at >= second.assigned_at > 0) == (COMPLETE, C, True)
    assert (third.state, third.ended_at) == (RUNNING, 0)
    assert ledger.task_runs(RUNNER, 2, 2) == (second,)
    assert (ledger.taskrunner(RUNNER).run, ledger.taskrunner(RUNNER).num_runs) == (3, 3)


def test_a_report_for_a_run_that_is_over_does_not_count_for_the_next_one(ledger):
    ledger.assign(RUNNER, "build", 3)
    report(ledger, A, RUNNING)
    ledger.reset_taskrunner(RUNNER)
    ledger.assign(RUNNER, "build", 3)
    with pytest.raises(TaskRefused, match="the run is over"):
        report(ledger, A, COMPLETE, run=1)
    with pytest.raises(NotFound, match="no such run"):
        report(ledger, A, COMPLETE, run=3)
    assert states(ledger) == [IDLE] * 3


def test_a_report_of_an_earlier_incarnation_is_refused(ledger):
    ledger.assign(RUNNER, "build", 3)
    ledger.register_node(A, "", "other")
    with pytest.raises(Fenced):
        ledger.report(RUNNER, 1, A, RUNNING, incarnation=1)
    ledger.report(RUNNER, 1, A, RUNNING, incarnation=2)
    assert states(ledger) == [RUNNING, IDLE, IDLE]


def test_who_enrols_while_a_task_is_running_can_make_up_for_who_failed(ledger):
    ledger.assign(RUNNER, "train", 4)
    report(ledger, A, RUNNING)
    late = "alpha/swop/swop-4"
    ledger.register_node(late, "", "i")
    ledger.enrol(RUNNER, late, 2)
    report(ledger, B, ERROR, "no GPU")
    report(ledger, late, COMPLETE, num_done=2)
    report(ledger, A, COMPLETE, num_done=2)
    assert ledger.taskrunner(RUNNER).state is COMPLETE


def test_the_version_of_a_taskrunner_grows_with_every_change(ledger):
    seen = [ledger.taskrunner_version(RUNNER)]
    for change in (
        lambda: ledger.enrol(RUNNER, C, 3),
        lambda: ledger.assign(RUNNER, "train"),
        lambda: report(ledger, A, RUNNING),
        lambda: report(ledger, A, RUNNING, "epoch 1"),
        lambda: ledger.reset_taskrunner(RUNNER),
    ):
        change()
        seen.append(ledger.taskrunner_version(RUNNER))
    assert seen == sorted(set(seen))
    ledger.enrol(RUNNER, C, 3)
    ledger.reset_taskrunner(RUNNER)
    assert ledger.taskrunner_version(RUNNER) == ledger.taskrunner(RUNNER).version == seen[-1]


def test_that_a_task_cannot_be_completed_any_more_is_known_while_others_are_at_work(ledger):
    assert ledger.taskrunner(RUNNER).reachable
    ledger.assign(RUNNER, "train", 4)
    report(ledger, A, RUNNING)
    report(ledger, C, ERROR, "no GPU")
    assert ledger.taskrunner(RUNNER).reachable, "A and B are enough"
    report(ledger, B, ERROR, "disk full")
    runner = ledger.taskrunner(RUNNER)
    assert (runner.state, runner.reachable) == (RUNNING, False)
    ledger.assign(RUNNER, "train", target=B)
    assert ledger.taskrunner(RUNNER).reachable, "B tries again"
