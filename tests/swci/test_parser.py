"""From typed lines to commands: what is understood, what is not and what is offered instead, and any text at all."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import LABEL
from swarm_hpc.swci.commands import COMMANDS
from swarm_hpc.swci.grammar import Argument, Command, Flag, Label, Rest, quote
from swarm_hpc.swci.parser import is_comment, parse

BY_NAME = {one.name: one for one in COMMANDS}


def understood(text: str) -> tuple[str, dict]:
    call = parse(text, COMMANDS)
    return call.command.name, dict(call.arguments)


@pytest.mark.parametrize(
    ("text", "method", "arguments"),
    [
        ("LIST NODES", "list_nodes", {}),
        ("  list\tNodes  ", "list_nodes", {}),
        ("create contract Digits", "create_contract", {"contract": "Digits"}),
        ("CREATE CONTEXT a WITH IP 10.0.0.1", "create_context", {"context": "a", "ip": "10.0.0.1"}),
        ("CREATE CONTEXT a WITH IP b 3", "create_context", {"context": "a", "ip": "b", "port": 3}),
        ("CREATE CONTEXT a WITH SERVICE b:443", "create_service_context", {"context": "a", "service": "b:443"}),
        ("WAIT FOR IP b 3 5", "wait_for_ip", {"ip": "b", "port": 3, "retries": 5}),
        ("SET CONTEXT ENV X 5", "set_context_env", {"variable": "X", "value": "5"}),
        ("SET CONTEXT ENV a X 5", "set_context_env", {"context": "a", "variable": "X", "value": "5"}),
        ("GET CONTEXT ENV X", "get_context_env", {"variable": "X"}),
        ("CREATE TASK FROM a.yaml", "create_task_from", {"file": "a.yaml"}),
        ("CREATE TASK FROM 'my task.yaml'", "create_task_from", {"file": "my task.yaml"}),
        (
            'create task run_swarm t "Ada \\"L\\"" ROOTTASK ""',
            "create_task",
            {"type": "RUN_SWARM", "task": "t", "author": 'Ada "L"', "prereq": "ROOTTASK", "outcome": ""},
        ),
        ("append task body t 1   - 'x", "append_task_body", {"task": "t", "index": 1, "line": "  - 'x"}),
        ("append task body t 1 ", "append_task_body", {"task": "t", "index": 1, "line": ""}),
        ("ASSIGN TASK t TO r WITH ALL PEERS", "assign_task_to_all", {"task": "t", "taskrunner": "r"}),
        ("ASSIGN TASK t TO r WITH 3 PEERS", "assign_task", {"task": "t", "taskrunner": "r", "num_peers": 3}),
        ("ASSIGN TASK TO TO TO WITH 3 PEERS", "assign_task", {"task": "TO", "taskrunner": "TO", "num_peers": 3}),
        (
            "assign task t to r target a/swop/b",
            "assign_task_to_peer",
            {"task": "t", "taskrunner": "r", "peer": "a/swop/b"},
        ),
        ("EXIT ON FAILURE", "exit_on_failure", {}),
        ("EXIT ON FAILURE off", "exit_on_failure", {"state": Flag.OFF}),
        ("ls -l 'a b'", "ls", {"options": "-l 'a b'"}),
        ("sleep 0.5", "sleep", {"seconds": 0.5}),
    ],
)
def test_a_command_is_understood(text, method, arguments) -> None:
    assert understood(text) == (method, arguments)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no command; HELP lists them"),
        ("LIST NODS", "did you mean LIST NODES?"),
        ("asign task t to r with 3 peers", "did you mean ASSIGN TASK <task : name>"),
        ("dance", "'dance' is not a command; HELP lists the commands"),
        (
            "ASSIGN TASK t TO r",
            "ASSIGN TASK is written as ASSIGN TASK <task : name> TO <taskrunner : name> WITH <num_pe",
        ),
        ("LIST TASKS please", "LIST TASKS is written as LIST TASKS"),
        ("append task body t 1", "APPEND TASK BODY is written as"),
        ("create contract 'a", "the quote ' before 'a' does not end"),
        ("create contract 'a'b", "there has to be a space"),
        ("'LIST' NODES", "is not a command"),
        ("create contract ../x", "contract: '../x': use letters, digits"),
        ("sleep tomorrow", "seconds: 'tomorrow' is not a number: SLEEP <seconds : number>"),
        ("x" * 9000, "at most 8192 characters"),
        ("help \ud800", "half a character"),
    ],
)
def test_what_is_not_understood_says_what_would_be(text, reason) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, COMMANDS)
    assert reason in str(caught.value)


def test_comments_and_empty_lines_say_nothing() -> None:
    assert all(is_comment(line) for line in ("", "  \n", "# list nodes", "   #"))
    assert not is_comment("list nodes # all of them")


WORDS = st.sampled_from(
    sorted({word for one in COMMANDS for word in one.head} | {"TO", "WITH", "'", '"', "\\", "#", "3"})
)


@given(st.one_of(st.text(max_size=60), st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=9).map(" ".join)))
@example("append task body t 1 '")
@example("HELP \x00")
@example("LS \ud800")
def test_any_text_is_a_command_or_a_config_error(text: str) -> None:
    try:
        call = parse(text, COMMANDS)
    except ConfigError as exc:
        assert str(exc)
    else:
        assert {one.name for one in call.command.arguments} >= set(call.arguments)


def values(argument: Argument) -> st.SearchStrategy[object]:
    if argument.choices:
        return st.sampled_from(argument.choices)
    if argument.type is Label:
        return st.from_regex(LABEL, fullmatch=True)
    strategies = {
        int: st.integers(),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=20),
        Rest: st.text(max_size=20),
    }
    return strategies[argument.type]


@st.composite
def calls(draw) -> tuple[Command, dict[str, object]]:
    command = draw(st.sampled_from(COMMANDS))
    return command, {one.name: draw(values(one)) for one in command.arguments}


@given(calls())
def test_arguments_of_any_characters_come_back_from_a_commands_text(drawn) -> None:
    command, arguments = drawn
    call = parse(command.text(**arguments), COMMANDS)
    assert call.command is command
    assert call.arguments == arguments


@given(st.text())
def test_a_quoted_word_is_one_argument(text: str) -> None:
    assert understood(f"create context {quote(text)} with service {quote(text)}")[1] == {
        "context": text,
        "service": text,
    }


def test_a_text_is_not_made_of_too_few_or_too_many_arguments() -> None:
    assert BY_NAME["wait_for_ip"].text(ip="a", port=None, retries=None) == "WAIT FOR IP a"
    with pytest.raises(ConfigError, match="ip is missing"):
        BY_NAME["wait_for_ip"].text(port=3)
    with pytest.raises(ConfigError, match="port is missing"):
        BY_NAME["wait_for_ip"].text(ip="a", retries=3)
    with pytest.raises(ConfigError, match="no argument 'colour'"):
        BY_NAME["wait_for_ip"].text(ip="a", colour="red")
