"""A method per command of SWCI. Made from their definitions by swci/document.py: change those.

The file is there, instead of methods made at run time, for editors and type checkers to know them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Methods(ABC):
    """The commands. Each method returns the command's data, as plain JSON values: records.py has their fields."""

    @abstractmethod
    def _do(self, method: str, **arguments: object) -> Any: ...

    def create_context(self, context: str, ip: str, port: int = 30304) -> Any:
        """Name an SN by its address; it has to answer. The session's first context becomes the current one.

        CREATE CONTEXT <context : string> WITH IP <ip : string> [<port : integer>]
        """
        return self._do("create_context", context=context, ip=ip, port=port)

    def create_service_context(self, context: str, service: str) -> Any:
        """Name an SN by the FQDN[:port] of its service (port 443 if not given); it has to answer.

        CREATE CONTEXT <context : string> WITH SERVICE <service : string>
        """
        return self._do("create_service_context", context=context, service=service)

    def switch_context(self, context: str) -> Any:
        """Make a context the current one: the commands that follow ask its SN.

        SWITCH CONTEXT <context : string>
        """
        return self._do("switch_context", context=context)

    def get_context_info(self, context: str | None = None) -> Any:
        """Show where a context's SN is, and of which site; the current context's if none is named.

        GET CONTEXT INFO [<context : string>]
        """
        return self._do("get_context_info", context=context)

    def get_context_version(self) -> Any:
        """Show the version that the current context's SN runs.

        GET CONTEXT VERSION
        """
        return self._do("get_context_version")

    def list_contexts(self) -> Any:
        """List this session's contexts.

        LIST CONTEXTS
        """
        return self._do("list_contexts")

    def list_context_env(self, context: str | None = None) -> Any:
        """List the variables of a context; the current one's if none is named.

        LIST CONTEXT ENV [<context : string>]
        """
        return self._do("list_context_env", context=context)

    def get_context_env(self, variable: str, context: str | None = None) -> Any:
        """Show a variable of a context; the current one's if none is named.

        GET CONTEXT ENV [<context : string>] <variable : string>
        """
        return self._do("get_context_env", variable=variable, context=context)

    def set_context_env(self, variable: str, value: str, context: str | None = None) -> Any:
        """Set a variable of a context; the current one's if none is named.

        SET CONTEXT ENV [<context : string>] <variable : string> <value : string>
        """
        return self._do("set_context_env", variable=variable, value=value, context=context)

    def create_contract(self, contract: str) -> Any:
        """Set a name aside for a training contract; the first node that trains under it says the rest.

        CREATE CONTRACT <contract : name>
        """
        return self._do("create_contract", contract=contract)

    def list_contracts(self) -> Any:
        """List the training contracts, and the names that were set aside for one.

        LIST CONTRACTS
        """
        return self._do("list_contracts")

    def get_contract_info(self, contract: str) -> Any:
        """Show what a contract's participants have agreed on.

        GET CONTRACT INFO <contract : name>
        """
        return self._do("get_contract_info", contract=contract)

    def get_contract_status(self, contract: str) -> Any:
        """Show how far a contract's training is.

        GET CONTRACT STATUS <contract : name>
        """
        return self._do("get_contract_status", contract=contract)

    def perfdata(self, contract: str) -> Any:
        """Show loss, metric and epochs of each node of a contract, while it trains as well as later.

        PERFDATA <contract : name>
        """
        return self._do("perfdata", contract=contract)

    def reset_contract(self, contract: str) -> Any:
        """Make the name of a completed contract free for a new training; the old one stays under another name.

        RESET CONTRACT <contract : name>
        """
        return self._do("reset_contract", contract=contract)

    def list_rounds(self, contract: str, first: int = 1, last: int | None = None) -> Any:
        """List a contract's rounds, from the first to the current one, or a part of them.

        LIST ROUNDS <contract : name> [<first : integer> [<last : integer>]]
        """
        return self._do("list_rounds", contract=contract, first=first, last=last)

    def get_round(self, contract: str, number: int) -> Any:
        """Show the check-ins of one round.

        GET ROUND <contract : name> <number : integer>
        """
        return self._do("get_round", contract=contract, number=number)

    def create_task_from(self, file: str) -> Any:
        """Create a task, body included, from a YAML file of the session's folder; FINALIZE TASK comes after it. A task
        that the same file made before, and that is not finalised, gets the new body.

        CREATE TASK FROM <file : string>
        """
        return self._do("create_task_from", file=file)

    def create_task(self, type: str, task: str, author: str, prereq: str, outcome: str) -> Any:
        """Create a task without a body; APPEND TASK BODY and FINALIZE TASK come after it. A prerequisite is a finalised
        task, or ROOTTASK where nothing has to come first.

        CREATE TASK <type : one of RUN_SWARM, MAKE_USER_CONTAINER, MAKE_SWARM_USER_CONTENT, PULL_IMAGE> <task : name>
        <author : string> <prereq : name> <outcome : string>
        """
        return self._do("create_task", type=type, task=task, author=author, prereq=prereq, outcome=outcome)

    def append_task_body(self, task: str, index: int, line: str) -> Any:
        """Add a line to a task's body, or overwrite one; they are numbered from 1. What follows the number and one
        space is the line, as it stands.

        APPEND TASK BODY <task : name> <index : integer> <line : rest of the line>
        """
        return self._do("append_task_body", task=task, index=index, line=line)

    def finalize_task(self, task: str) -> Any:
        """Fix a task's body, which has to be one of its type: from now on it can be assigned, and never changes again.

        FINALIZE TASK <task : name>
        """
        return self._do("finalize_task", task=task)

    def delete_task(self, task: str) -> Any:
        """Delete a task that is not finalised.

        DELETE TASK <task : name>
        """
        return self._do("delete_task", task=task)

    def get_task_info(self, task: str) -> Any:
        """Show what a task is, all but its body.

        GET TASK INFO <task : name>
        """
        return self._do("get_task_info", task=task)

    def get_task_body(self, task: str) -> Any:
        """Show the lines of a task's body as they are on the ledger.

        GET TASK BODY <task : name>
        """
        return self._do("get_task_body", task=task)

    def list_tasks(self) -> Any:
        """List all tasks, oldest first.

        LIST TASKS
        """
        return self._do("list_tasks")

    def create_taskrunner(self, taskrunner: str) -> Any:
        """Create a taskrunner, which SWOP nodes then enrol in; nothing happens where it is there.

        CREATE TASKRUNNER <taskrunner : name>
        """
        return self._do("create_taskrunner", taskrunner=taskrunner)

    def list_taskrunners(self) -> Any:
        """List all taskrunners, oldest first.

        LIST TASKRUNNERS
        """
        return self._do("list_taskrunners")

    def get_taskrunner_info(self, taskrunner: str) -> Any:
        """Show how many SWOP nodes a taskrunner has, and how many SL nodes they can start.

        GET TASKRUNNER INFO <taskrunner : name>
        """
        return self._do("get_taskrunner_info", taskrunner=taskrunner)

    def list_taskrunner_peers(self, taskrunner: str) -> Any:
        """List the SWOP nodes that are enrolled in a taskrunner.

        LIST TASKRUNNER PEERS <taskrunner : name>
        """
        return self._do("list_taskrunner_peers", taskrunner=taskrunner)

    def get_taskrunner_status(self, taskrunner: str) -> Any:
        """Show what a taskrunner does, and how far it is.

        GET TASKRUNNER STATUS <taskrunner : name>
        """
        return self._do("get_taskrunner_status", taskrunner=taskrunner)

    def get_taskrunner_peer_status(self, taskrunner: str, peer: str) -> Any:
        """Show what a SWOP node has reported about the task at hand; name it by its index (from 0) or its UID.

        GET TASKRUNNER PEER STATUS <taskrunner : name> <peer : string>
        """
        return self._do("get_taskrunner_peer_status", taskrunner=taskrunner, peer=peer)

    def assign_task(self, task: str, taskrunner: str, num_peers: int) -> Any:
        """Give a taskrunner a task for so many peers: SL nodes where the task is RUN_SWARM (as many or more start),
        SWOP nodes otherwise.

        ASSIGN TASK <task : name> TO <taskrunner : name> WITH <num_peers : integer> PEERS
        """
        return self._do("assign_task", task=task, taskrunner=taskrunner, num_peers=num_peers)

    def assign_task_to_all(self, task: str, taskrunner: str) -> Any:
        """Give a taskrunner a task for all its peers: those that are enrolled at this moment.

        ASSIGN TASK <task : name> TO <taskrunner : name> WITH ALL PEERS
        """
        return self._do("assign_task_to_all", task=task, taskrunner=taskrunner)

    def assign_task_to_peer(self, task: str, taskrunner: str, peer: str) -> Any:
        """Give a task to one SWOP node, named by its UID. It may join a task that is running: a failed peer tries
        again, a late one is added.

        ASSIGN TASK <task : name> TO <taskrunner : name> TARGET <peer : string>
        """
        return self._do("assign_task_to_peer", task=task, taskrunner=taskrunner, peer=peer)

    def reset_taskrunner(self, taskrunner: str) -> Any:
        """Take a taskrunner's task back, whatever its state: its nodes stop what they do, and end what they started.

        RESET TASKRUNNER <taskrunner : name>
        """
        return self._do("reset_taskrunner", taskrunner=taskrunner)

    def list_runs(self, taskrunner: str) -> Any:
        """List all that a taskrunner was ever given to do, and how it ended.

        LIST RUNS <taskrunner : name>
        """
        return self._do("list_runs", taskrunner=taskrunner)

    def get_run(self, taskrunner: str, number: int) -> Any:
        """Show what each node reported in one run of a taskrunner (numbered from 1).

        GET RUN <taskrunner : name> <number : integer>
        """
        return self._do("get_run", taskrunner=taskrunner, number=number)

    def wait_for_taskrunner(self, taskrunner: str) -> Any:
        """Wait until a taskrunner has ended its task; that fails as soon as so many peers have failed that it cannot be
        completed, or where it takes longer than the context's SWCI_RUN_TASK_MAX_WAIT_TIME or
        SWCI_GENERIC_TASK_MAX_WAIT_TIME (minutes).

        WAIT FOR TASKRUNNER <taskrunner : name>
        """
        return self._do("wait_for_taskrunner", taskrunner=taskrunner)

    def wait_for_ip(self, ip: str, port: int = 30304, retries: int = 360) -> Any:
        """Wait until an SN answers at an address: 360 tries, 5 s apart.

        WAIT FOR IP <ip : string> [<port : integer> [<retries : integer>]]
        """
        return self._do("wait_for_ip", ip=ip, port=port, retries=retries)

    def wait_for_service(self, service: str, retries: int = 360) -> Any:
        """Wait until an SN answers at the FQDN[:port] of its service (port 443 if not given): 360 tries, 5 s apart.

        WAIT FOR SERVICE <service : string> [<retries : integer>]
        """
        return self._do("wait_for_service", service=service, retries=retries)

    def list_nodes(self) -> Any:
        """List the network's SN, SWOP and SL nodes.

        LIST NODES
        """
        return self._do("list_nodes")

    def list_sites(self) -> Any:
        """List the member sites, and those that ask to be one.

        LIST SITES
        """
        return self._do("list_sites")

    def admit_site(self, site: str) -> Any:
        """Vote, for the site of the current context's SN, to admit a site that asks.

        ADMIT SITE <site : name>
        """
        return self._do("admit_site", site=site)

    def remove_site(self, site: str) -> Any:
        """Vote, for the site of the current context's SN, to remove a site.

        REMOVE SITE <site : name>
        """
        return self._do("remove_site", site=site)

    def get_network_status(self) -> Any:
        """Show the ledger, and how many sites, nodes and contracts there are.

        GET NETWORK STATUS
        """
        return self._do("get_network_status")

    def exit_on_failure(self, state: str = "ON") -> Any:
        """Let the next command that fails end the session, or, with OFF, go on after it.

        EXIT ON FAILURE [<state : ON or OFF>]
        """
        return self._do("exit_on_failure", state=state)

    def exit(self) -> Any:
        """End the session; its contexts are forgotten.

        EXIT
        """
        return self._do("exit")

    def sleep(self, seconds: float) -> Any:
        """Wait for so many seconds.

        SLEEP <seconds : number>
        """
        return self._do("sleep", seconds=seconds)

    def cd(self, folder: str) -> Any:
        """Go to another folder: where LS looks, and where CREATE TASK FROM finds its file.

        CD <folder : string>
        """
        return self._do("cd", folder=folder)

    def ls(self, options: str = "") -> Any:
        """List files: ls [-a] [-l] [NAME ...].

        LS [<options : rest of the line>]
        """
        return self._do("ls", options=options)

    def pwd(self) -> Any:
        """Show the folder where the session is.

        PWD
        """
        return self._do("pwd")

    def help(self, command: str = "") -> Any:
        """List the commands, or show how one is written and what it does.

        HELP [<command : rest of the line>]
        """
        return self._do("help", command=command)
