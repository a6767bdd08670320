"""Each command, done and refused, on the fake SN. Those that wait are in test_waiting.py."""

from __future__ import annotations

import json
import os
import re

import pytest

from swarm_hpc.errors import (
    AlreadyExists,
    ConfigError,
    ContractBusy,
    NotFound,
    NotReachable,
    TaskRefused,
)
from swarm_hpc.records import Progress, TaskState
from swarm_hpc.swci import commands
from swarm_hpc.swci.commands import COMMANDS
from swarm_hpc.swci.session import MAX_CONTEXTS, Session
from tests.swci.conftest import ADDRESS, BUILD_TASK, swci_config
from tests.swci.fake_sn import DEFAULT_RUNNER

RUNNER = DEFAULT_RUNNER


@pytest.fixture
async def staffed(desk):
    """A taskrunner with two SWOP nodes and a task that is ready."""
    (desk.folder / "build.yaml").write_text(BUILD_TASK)
    await desk("create task from build.yaml")
    await desk("finalize task build")
    desk.sn.enrol(RUNNER, "alpha/swop/one", 2)
    desk.sn.enrol(RUNNER, "beta/swop/two", 1)
    return desk


@pytest.fixture
async def trained(desk):
    """A contract that trains, with an SL node that says how far it is and one that has not said it yet."""
    desk.sn.add_node("alpha/sl/one", Progress(contract="digits", epoch=4, total_epochs=9, loss=0.25, metric=0.95))
    desk.sn.add_node("beta/sl/two")
    desk.sn.train("digits", "alpha/sl/one", "beta/sl/two")
    return desk


# contexts


async def test_contexts_are_created_listed_and_switched(desk) -> None:
    made = await desk.lines("Create Context Other with IP 10.0.0.2 30400")
    assert made == ["API Server is UP!", "CONTEXT CREATED : Other"]
    await desk("create context Service with service sn.beta.test:443")
    assert await desk.lines("list contexts") == [
        "Name,APIServer,Current",
        f"default,{ADDRESS},YES",
        "Other,10.0.0.2:30400,NO",
        "Service,sn.beta.test:443,NO",
    ]
    assert await desk.lines("switch context Other") == ["DEFAULT CONTEXT SET TO : Other"]
    info = await desk("get context info")
    assert (info.data.name, info.data.address, info.data.is_current, info.data.site) == (
        "Other",
        "10.0.0.2:30400",
        True,
        "alpha",
    )
    assert await desk.lines("get context info default") == [
        "CONTEXT : default",
        f"API_SERVER : {ADDRESS}",
        "CURRENT : NO",
        "SITE : alpha",
        "NODE : alpha/sn/sn",
    ]
    assert await desk.lines("get context version") == ["API_SERVER_VERSION : 0.1.0"]


async def test_an_address_of_ipv6_gets_its_brackets(desk) -> None:
    assert (await desk("create context six with ip ::1")).data.address == "[::1]:30304"


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        ("switch context nowhere", NotFound, "no context is called 'nowhere'; there are default"),
        ("get context info nowhere", NotFound, "nowhere"),
        ("create context default with ip 10.0.0.3", AlreadyExists, "choose another name"),
        ("create context a with ip 'not an address'", ConfigError, "is no address"),
        ("create context a with ip 10.0.0.1 99999", ConfigError, "not a port number"),
        ("create context a with ip 10.0.0.1 http", ConfigError, "'http' is not a whole number"),
        ("create context '' with ip 10.0.0.1", ConfigError, "1-63 characters"),
        ("create context a with service http://x/", ConfigError, "is no address"),
        ("get context env COLOUR", ConfigError, "is no variable of a context: SWCI_RUN_TASK_MAX_WAIT_TIME is"),
        ("set context env COLOUR red", ConfigError, "is no number of minutes"),
        ("set context env COLOUR 7", ConfigError, "is no variable"),
        ("set context env SWCI_RUN_TASK_MAX_WAIT_TIME nan", ConfigError, "minutes"),
        ("set context env nowhere SWCI_RUN_TASK_MAX_WAIT_TIME 5", NotFound, "nowhere"),
        ("list context env nowhere", NotFound, "nowhere"),
    ],
)
async def test_what_is_no_context_is_refused(desk, command, error, text) -> None:
    with pytest.raises(error, match=text):
        await desk(command)
    assert list(desk.session.contexts) == ["default"]


async def test_a_context_whose_sn_does_not_answer_is_not_created(desk) -> None:
    desk.sn.down = 1
    with pytest.raises(NotReachable):
        await desk("create context other with ip 10.0.0.2")
    desk.sn.down = 1
    with pytest.raises(NotReachable):
        await desk("get context version")
    assert list(desk.session.contexts) == ["default"]


async def test_contexts_have_variables_of_their_own(desk) -> None:
    await desk("create context other with ip 10.0.0.2")
    assert await desk.lines("set context env other swci_run_task_max_wait_time 5") == ["SWCI_RUN_TASK_MAX_WAIT_TIME=5"]
    assert await desk.lines("get context env other SWCI_RUN_TASK_MAX_WAIT_TIME") == ["SWCI_RUN_TASK_MAX_WAIT_TIME=5"]
    assert await desk.lines("list context env") == [
        "SWCI_RUN_TASK_MAX_WAIT_TIME=120",
        "SWCI_GENERIC_TASK_MAX_WAIT_TIME=120",
    ]
    await desk("set context env SWCI_TASK_MAX_WAIT_TIME 7")
    assert (await desk("list context env default")).data == {
        "SWCI_RUN_TASK_MAX_WAIT_TIME": "7",
        "SWCI_GENERIC_TASK_MAX_WAIT_TIME": "7",
    }


async def test_a_session_cannot_fill_up_with_contexts(desk) -> None:
    for number in range(MAX_CONTEXTS - 1):
        await desk(f"create context c{number} with ip 10.0.0.2")
    with pytest.raises(ConfigError, match="at most 64"):
        await desk("create context more with ip 10.0.0.2")


# training contracts


async def test_a_contract_that_trains_is_shown(trained) -> None:
    await trained("create contract later")
    assert await trained.lines("list contracts") == [
        "Name,State,Round,Peers,MinPeers",
        "digits,TRAINING,2,2,2",
        "later,UNINITIALIZED,0,0,",
    ]
    assert "MERGE_METHOD : MEAN" in await trained.lines("get contract info digits")
    status = await trained.lines("get contract status digits")
    assert {"STATE : TRAINING", "ACTIVE_PEERS : 2", "ROUND : 2", "CHECK_INS : 0"} <= set(status)


async def test_perfdata_is_what_a_node_says_last_or_checked_in_with(trained) -> None:
    assert await trained.lines("perfdata digits") == [
        "UID,SLAdmin,Loss,Metric,TotalEpochs,CompletedEpochs",
        "alpha/sl/one,YES,0.25,0.95,9,4",
        "beta/sl/two,NO,0.5,0.9,,3",
    ]
    with pytest.raises(NotFound):
        await trained("perfdata nothing")
    await trained("create contract later")
    with pytest.raises(NotFound, match="nobody has trained"):
        await trained("perfdata later")


async def test_perfdata_has_a_node_that_ended_many_rounds_ago(trained) -> None:
    trained.sn.go_on("digits", 200, "alpha/sl/one")
    rows = await trained.lines("perfdata digits")
    assert rows[1:] == ["alpha/sl/one,YES,0.25,0.95,9,200", "beta/sl/two,NO,0.5,0.9,,3"]


async def test_rounds_are_listed_and_shown(trained) -> None:
    assert [one.number for one in (await trained("list rounds digits")).data] == [1, 2]
    assert [one.number for one in (await trained("list rounds digits 2 2")).data] == [2]
    shown = await trained.lines("get round digits 1")
    assert shown[1].startswith("alpha/sl/one,1,1,0.5,0.9,3,2027-01-15T08:00:00Z,cdcd")
    with pytest.raises(NotFound):
        await trained("get round digits 9")


async def test_a_reset_contract_stays_under_the_name_that_is_printed(trained) -> None:
    with pytest.raises(ContractBusy):
        await trained("reset contract digits")
    trained.sn.train("done", "alpha/sl/one", completed=True)
    assert await trained.lines("reset contract done") == ["CONTRACT RESET : done", "ARCHIVED AS : done.1"]
    assert "done,UNINITIALIZED,0,0," in await trained.lines("list contracts")
    assert "done.1,COMPLETED,2,1,2" in await trained.lines("list contracts")


# tasks


async def test_the_same_file_again_changes_a_task_until_it_is_finalised(desk) -> None:
    file = desk.folder / "build.yaml"
    file.write_text(BUILD_TASK)
    await desk("create task from build.yaml")
    file.write_text(BUILD_TASK.replace("    - ' '\n", ""))
    before = await desk.lines("get task body build")
    await desk("create task from build.yaml")
    assert len(await desk.lines("get task body build")) == len(before) - 1
    await desk("finalize task build")
    await desk("create task from build.yaml")
    file.write_text(BUILD_TASK)
    with pytest.raises(TaskRefused, match="finalised with another body"):
        await desk("create task from build.yaml")
    file.write_text(BUILD_TASK.replace("Ada", "Eve"))
    with pytest.raises(AlreadyExists):
        await desk("create task from build.yaml")


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        ("create task from nothing.yaml", ConfigError, "No such file"),
        ("create task from broken.yaml", ConfigError, "broken.yaml"),
        ("create task from bytes.yaml", ConfigError, "not UTF-8"),
        ("create task from .", ConfigError, r"\.: "),
        ("create task DANCE t Ada ROOTTASK x", ConfigError, "'DANCE' is not one of RUN_SWARM"),
        ("create task ROOT_TASK t Ada ROOTTASK x", ConfigError, "ROOT_TASK"),
        ("create task PULL_IMAGE t Ada nothing x", NotFound, "nothing"),
        ("create task PULL_IMAGE t Ada unfinished x", TaskRefused, "prerequisite"),
        ("append task body nothing 1 x", NotFound, "nothing"),
        ("append task body unfinished one x", ConfigError, "'one' is not a whole number"),
        ("finalize task unfinished", ConfigError, "body of unfinished"),
        ("finalize task nothing", NotFound, "nothing"),
        ("delete task nothing", NotFound, "nothing"),
        ("get task info nothing", NotFound, "nothing"),
        ("get task body nothing", NotFound, "nothing"),
    ],
)
async def test_what_is_no_task_is_refused(desk, command, error, text) -> None:
    (desk.folder / "broken.yaml").write_text("Name: [")
    (desk.folder / "bytes.yaml").write_bytes(b"\xff\xfe")
    await desk("create task PULL_IMAGE unfinished Ada ROOTTASK x")
    with pytest.raises(error, match=text):
        await desk(command)


async def test_a_line_of_a_body_is_what_was_typed(desk) -> None:
    await desk("create task PULL_IMAGE fetch 'Ada L.' ROOTTASK tools")
    for number, line in enumerate(["  - 'it''s", "", " ", '"a" # b', "x\\"], 1):
        await desk(f"append task body fetch {number} {line}")
    assert await desk.lines("get task body fetch") == ["  - 'it''s", "", " ", '"a" # b', "x\\"]


# taskrunners


async def test_a_taskrunner_and_its_peers_are_shown(staffed) -> None:
    assert await staffed.lines(f"get taskrunner info {RUNNER}") == [
        f"TASKRUNNER : {RUNNER}",
        "PEERS : 2",
        "SL_NODES : 3",
        "RUNS : 0",
    ]
    assert await staffed.lines(f"list taskrunner peers {RUNNER}") == [
        "Index,UID,SLNodes",
        "0,alpha/swop/one,2",
        "1,beta/swop/two,1",
    ]


async def test_a_task_is_assigned_to_so_many_to_all_or_to_one(staffed) -> None:
    assert await staffed.lines(f"assign task build to {RUNNER} with 1 peers") == [f"TASK ASSIGNED : build TO {RUNNER}"]
    with pytest.raises(TaskRefused, match="running"):
        await staffed(f"assign task build to {RUNNER} with all peers")
    await staffed(f"reset taskrunner {RUNNER}")
    assert (await staffed(f"assign task build to {RUNNER} with all peers")).data.num_peers == 2
    await staffed(f"reset taskrunner {RUNNER}")
    two = next(one.node for one in await staffed.sn.nodes() if one.node.name == "beta/swop/two")
    for uid in (two.name, two.instance):
        assigned = await staffed(f"assign task build to {RUNNER} target {uid}")
        assert assigned.data.target == "beta/swop/two"
        await staffed(f"reset taskrunner {RUNNER}")
    assert len((await staffed(f"list runs {RUNNER}")).data) == 4


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        (f"assign task build to {RUNNER} with 0 peers", ConfigError, "WITH ALL PEERS"),
        (f"assign task build to {RUNNER} with three peers", ConfigError, "'three' is not a whole number"),
        (f"assign task build to {RUNNER} with 9 peers", TaskRefused, "fewer peers"),
        (f"assign task nothing to {RUNNER} with all peers", NotFound, "nothing"),
        ("assign task build to nobody with all peers", NotFound, "nobody"),
        (f"assign task build to {RUNNER} target alpha/swop/none", NotFound, "not enrolled"),
        (f"assign task build to {RUNNER} target none", NotFound, "no node has the UID none"),
        (f"get taskrunner peer status {RUNNER} 7", NotFound, "it has 2, from index 0"),
        (f"get taskrunner peer status {RUNNER} alpha/swop/none", NotFound, "LIST TASKRUNNER PEERS"),
        ("get taskrunner status nobody", NotFound, "nobody"),
        ("get taskrunner info nobody", NotFound, "nobody"),
        ("list taskrunner peers nobody", NotFound, "nobody"),
        ("create taskrunner a/b", ConfigError, "'a/b': use letters"),
        ("reset taskrunner nobody", NotFound, "nobody"),
        (f"get run {RUNNER} 5", NotFound, "no run 5"),
        (f"get run {RUNNER} 0", ConfigError, "from 1"),
        ("list runs nobody", NotFound, "nobody"),
    ],
)
async def test_what_a_taskrunner_cannot_do_is_refused(staffed, command, error, text) -> None:
    with pytest.raises(error, match=text):
        await staffed(command)


async def test_a_taskrunner_says_how_far_it_is(staffed) -> None:
    await staffed(f"assign task build to {RUNNER} with 2 peers")
    staffed.sn.report(RUNNER, "alpha/swop/one", TaskState.RUNNING, "step 1\nof 3")
    status = await staffed.lines(f"get taskrunner status {RUNNER}")
    assert {"TASK : build", "PEER_TYPE : SWOP", "TASK_STATE : RUNNING", "ACTIVE_PEERS : 1"} <= set(status)
    peer = [
        "SWOP_UID : alpha/swop/one",
        "STATUS : RUNNING",
        "DESCRIPTION : step 1 of 3",
        "REPORTED : 2027-01-15T08:00:00Z",
    ]
    for name in ("0", "alpha/swop/one"):
        assert await staffed.lines(f"get taskrunner peer status {RUNNER} {name}") == peer
    run = await staffed.lines(f"get run {RUNNER} 1")
    assert run[:2] == ["TASK : build", "TASK_STATE : RUNNING"]
    assert "0,alpha/swop/one,2,RUNNING,0,2027-01-15T08:00:00Z,step 1 of 3" in run


# the network


async def test_nodes_have_their_columns(trained) -> None:
    trained.sn.enrol(RUNNER, "beta/swop/two")
    assert await trained.lines("list nodes") == [
        "Type,HostIP,Port,ContainerName,UUID,ParentUUID,i-am-alive",
        f"SENTINEL,sn.alpha.test,30304,alpha/sn/sn,0x{1:040x},,2027-01-15T08:00:00Z",
        f"SN,sn.beta.test,30304,beta/sn,0x{2:040x},,",
        f"SL,10.0.0.1,30305,alpha/sl/one,id-of-alpha-sl-one,0x{1:040x},2027-01-15T07:59:57Z",
        f"SL,10.0.0.1,30305,beta/sl/two,id-of-beta-sl-two,0x{2:040x},2027-01-15T07:59:57Z",
        f"SWOP,10.0.0.1,30305,beta/swop/two,id-of-beta-swop-two,0x{2:040x},2027-01-15T07:59:57Z",
    ]


async def test_sites_are_voted_on(desk) -> None:
    await desk("admit site beta")
    assert any(line.startswith("beta,REMOVED,") for line in await desk.lines("remove site beta"))
    for vote in ("admit", "remove"):
        with pytest.raises(NotFound):
            await desk(f"{vote} site nowhere")


WITHOUT_SN = {"cd", "create_context", "create_service_context", "exit", "exit_on_failure", "get_context_env", "help"}
WITHOUT_SN |= {"list_context_env", "list_contexts", "ls", "pwd", "set_context_env", "sleep", "switch_context"}
WITHOUT_SN |= {"wait_for_ip", "wait_for_service"}  # they have their own tests
ARGUMENTS = {
    "file": "build.yaml",
    "type": "RUN_SWARM",
    "index": "1",
    "first": "1",
    "last": "2",
    "number": "1",
    "num_peers": "1",
    "peer": "alpha/swop/one",
}


class AwaySn:
    """No call of it is answered."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    def __getattr__(self, name):
        async def call(*words, **fields):
            raise NotReachable("127.0.0.1:1: nobody")

        return call


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.name not in WITHOUT_SN], ids=lambda one: one.name)
async def test_an_sn_that_is_away_is_an_error_of_every_command_that_asks_it(tmp_path, command) -> None:
    (tmp_path / "build.yaml").write_text(BUILD_TASK)
    text = re.sub(r"<(\w+) : [^>]+>", lambda found: ARGUMENTS.get(found[1], found[1]), command.usage)
    async with Session(swci_config(tmp_path, sn=ADDRESS), lambda address, connection: AwaySn()) as session:
        with pytest.raises(NotReachable):
            await commands.run(session, re.sub(r"\s*\[.*\]", "", text), print)


# the session


async def test_the_folder_is_the_sessions_own(desk) -> None:
    (desk.folder / "usr" / "deep").mkdir(parents=True)
    (desk.folder / "usr" / "a b.yaml").write_text("x")
    (desk.folder / "usr" / ".hidden").write_text("x")
    await desk("cd usr")
    assert await desk.lines("pwd") == [str(desk.folder / "usr")]
    assert await desk.lines("ls") == ["a b.yaml", "deep"]
    assert await desk.lines("LS -a") == [".hidden", "a b.yaml", "deep"]
    assert await desk.lines("ls 'a b.yaml'") == ["a b.yaml"]
    assert [line.split()[0] for line in await desk.lines("ls -l")] == ["-", "d"]
    (desk.folder / "usr" / os.fsdecode(b"\xff.yaml")).write_text("x")
    assert "\\xff.yaml" in await desk.lines("ls")
    await desk("cd /platform/swarm/usr")
    assert await desk.lines("pwd") == [str(desk.folder)]
    for command in ("cd nowhere", "cd 'usr/a b.yaml'", "ls nowhere", "ls -R", "ls 'x", "cd ~nobody-is-called-so"):
        with pytest.raises(ConfigError):
            await desk(command)


async def test_sleep_exit_and_exit_on_failure(desk) -> None:
    await desk("sleep 1.5")
    assert desk.slept == [1.5]
    for seconds in ("-1", "nan", "inf", "1e9"):
        with pytest.raises(ConfigError):
            await desk(f"sleep {seconds}")
    await desk("exit on failure")
    assert desk.session.exit_on_failure
    await desk("Exit On Failure Off")
    assert not desk.session.exit_on_failure
    with pytest.raises(ConfigError, match="'perhaps' is not one of ON, OFF"):
        await desk("exit on failure perhaps")
    with pytest.raises(ConfigError, match="EXIT is written as EXIT"):
        await desk("exit now")
    await desk("exit")
    assert desk.session.is_over


async def test_help_lists_the_commands_and_shows_one(desk) -> None:
    lines = await desk.lines("help")
    assert "    ASSIGN TASK" in lines
    assert await desk.lines("help create contract") == [
        "CREATE CONTRACT <contract : name>",
        "    Set a name aside for a training contract; the first node that trains under it says the rest.",
    ]
    assert len(await desk.lines("help assign task")) == 6
    with pytest.raises(ConfigError, match="did you mean LIST NODES"):
        await desk("help list nods")


async def test_every_result_is_json(staffed) -> None:
    for command in ("list nodes", "list tasks", f"get taskrunner status {RUNNER}", "list contexts", "pwd", "help"):
        result = (await staffed(command)).as_json()
        assert json.loads(json.dumps(result)) == result


async def test_without_a_context_commands_say_how_to_make_one(desk) -> None:
    desk.session.contexts.clear()
    for command in ("list nodes", "list tasks", "get context version", "list context env"):
        with pytest.raises(ConfigError, match="CREATE CONTEXT name WITH IP"):
            await desk(command)
    assert await desk.lines("list contexts") == ["Name,APIServer,Current"]


def test_every_command_says_what_it_does() -> None:
    assert len({one.name for one in COMMANDS}) == len(COMMANDS)
    for command in COMMANDS:
        assert command.help.endswith("."), command.usage
