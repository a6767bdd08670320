# pragma version 0.4.3
# pragma evm-version london
"""
@title Tasks
@notice Tasks (what SWOP nodes can be told to do) and taskrunners (groups of them that do one task at a time).
        A revert reason is the name of an exception of errors.py, then what to say after it.
"""

MAX_LINES: constant(uint256) = 256
MAX_PEERS: constant(uint256) = 256

# States of a taskrunner and of each of its peers.
IDLE: constant(uint256) = 0
RUNNING: constant(uint256) = 1
COMPLETE: constant(uint256) = 2
ERROR: constant(uint256) = 3

interface Registry:
    def authorize(node: String[135], incarnation: uint256, account: address) -> uint256: view
    def is_member(account: address) -> bool: view

struct Task:
    name: String[63]
    type: String[32]
    author: String[160]
    prereq: String[63]
    outcome: String[160]
    finalised: bool
    created_at: uint256
    num_lines: uint256

struct TaskView:
    task: Task
    body: DynArray[String[160], MAX_LINES]

struct Taskrunner:
    name: String[63]
    state: uint256
    task: String[63]
    counts_sl: bool
    num_peers: uint256
    target: String[135]
    assignment: uint256
    assigned_at: uint256
    ended_at: uint256

struct Peer:
    node: String[135]
    num_sl: uint256
    invited: uint256
    assignment: uint256
    state: uint256
    text: String[160]
    num_done: uint256
    at: uint256

struct PeerView:
    node: String[135]
    num_sl: uint256
    state: uint256
    text: String[160]
    num_done: uint256
    at: uint256

struct TaskrunnerView:
    runner: Taskrunner
    peers: DynArray[PeerView, MAX_PEERS]

event TaskCreated:
    task: String[63]
    type: String[32]

event TaskFinalized:
    task: String[63]

event TaskDeleted:
    task: String[63]

event TaskrunnerCreated:
    taskrunner: String[63]

event Enrolled:
    taskrunner: String[63]
    node: String[135]

event Assigned:
    taskrunner: String[63]
    task: String[63]
    num_peers: uint256
    target: String[135]

event Reported:
    taskrunner: String[63]
    node: String[135]
    state: uint256
    num_done: uint256

event TaskrunnerEnded:
    taskrunner: String[63]
    state: uint256

event TaskrunnerReset:
    taskrunner: String[63]

registry: public(immutable(Registry))

# Numbers start at 1, so that 0 means "none". A deleted task leaves its number empty.
num_tasks: public(uint256)
tasks: HashMap[uint256, Task]
task_number: HashMap[String[63], uint256]
lines: HashMap[uint256, HashMap[uint256, String[160]]]

num_taskrunners: public(uint256)
runners: HashMap[uint256, Taskrunner]
runner_number: HashMap[String[63], uint256]
num_enrolled: HashMap[uint256, uint256]
peers: HashMap[uint256, HashMap[uint256, Peer]]
peer_number: HashMap[uint256, HashMap[String[135], uint256]]


@deploy
def __init__(at: address):
    registry = Registry(at)
    self._add_task("ROOTTASK", "ROOT_TASK", "swarm-hpc", "", "")
    self.tasks[1].finalised = True


@internal
@view
def _now() -> uint256:
    # Seconds since 1970; the ledger's blocks are stamped in milliseconds, so that many fit into a second.
    return block.timestamp // 1000


@internal
@view
def _check_member(account: address):
    assert staticcall registry.is_member(account), "NotMember: the account speaks for no active site"


# --- tasks ---


@internal
@view
def _task(name: String[63]) -> uint256:
    number: uint256 = self.task_number[name]
    assert number != 0, "NotFound: no such task"
    return number


@internal
def _add_task(name: String[63], type: String[32], author: String[160], prereq: String[63], outcome: String[160]):
    number: uint256 = self.num_tasks + 1
    self.num_tasks = number
    self.task_number[name] = number
    self.tasks[number] = Task(
        name=name, type=type, author=author, prereq=prereq, outcome=outcome, finalised=False, created_at=self._now(), num_lines=0
    )
    log TaskCreated(task=name, type=type)


@external
def create_task(name: String[63], type: String[32], author: String[160], prereq: String[63], outcome: String[160]):
    """
    @notice Create a task; its body is appended line by line, then finalised. The same again has no effect.
    """
    self._check_member(msg.sender)
    assert type == "RUN_SWARM" or type == "MAKE_USER_CONTAINER" or type == "MAKE_SWARM_USER_CONTENT" or type == "PULL_IMAGE", "ConfigError: no such type of task"
    before: uint256 = self._task(prereq)
    number: uint256 = self.task_number[name]
    if number != 0:
        known: Task = self.tasks[number]
        assert known.type == type and known.author == author and known.prereq == prereq and known.outcome == outcome, "AlreadyExists: another task has that name"
        return
    assert len(name) > 0, "ConfigError: a task needs a name"
    assert self.tasks[before].finalised, "TaskRefused: the prerequisite is not finalised"
    self._add_task(name, type, author, prereq, outcome)


@external
def append_task_body(name: String[63], index: uint256, line: String[160]):
    """
    @notice Add or overwrite line `index` (from 1) of a task that is not finalised.
    """
    self._check_member(msg.sender)
    number: uint256 = self._task(name)
    num_lines: uint256 = self.tasks[number].num_lines
    if index >= 1 and index <= num_lines and self.lines[number][index] == line:
        return
    assert not self.tasks[number].finalised, "TaskRefused: the task is finalised"
    assert index >= 1 and index <= num_lines + 1, "ConfigError: lines are numbered from 1, without gaps"
    assert index <= MAX_LINES, "ConfigError: a task's body has at most 256 lines"
    if index > num_lines:
        self.tasks[number].num_lines = index
    self.lines[number][index] = line


@external
def finalize_task(name: String[63]):
    """
    @notice Fix the body: from now on the task can be assigned, and not be changed.
    """
    self._check_member(msg.sender)
    number: uint256 = self._task(name)
    if self.tasks[number].finalised:
        return
    assert self.tasks[number].num_lines > 0, "TaskRefused: the task has no body"
    # The prerequisite may have been deleted, if it was created anew and not finalised.
    assert self.tasks[self._task(self.tasks[number].prereq)].finalised, "TaskRefused: the prerequisite is not finalised"
    self.tasks[number].finalised = True
    log TaskFinalized(task=name)


@external
def delete_task(name: String[63]):
    """
    @notice Delete a task that is not finalised. A name that is not there needs no deleting.
    """
    self._check_member(msg.sender)
    number: uint256 = self.task_number[name]
    if number == 0:
        return
    assert not self.tasks[number].finalised, "TaskRefused: a finalised task stays"
    self.task_number[name] = 0
    self.tasks[number] = empty(Task)
    log TaskDeleted(task=name)


@external
@view
def task_name(number: uint256) -> String[63]:
    """
    @notice Name of that task, empty where it was deleted.
    """
    return self.tasks[number].name


@external
@view
def task_view(name: String[63]) -> TaskView:
    number: uint256 = self._task(name)
    body: DynArray[String[160], MAX_LINES] = []
    for i: uint256 in range(1, self.tasks[number].num_lines + 1, bound=MAX_LINES):
        body.append(self.lines[number][i])
    return TaskView(task=self.tasks[number], body=body)


# --- taskrunners ---


@internal
@view
def _runner(name: String[63]) -> uint256:
    number: uint256 = self.runner_number[name]
    assert number != 0, "NotFound: no such taskrunner"
    return number


@external
def create_taskrunner(name: String[63]):
    self._check_member(msg.sender)
    if self.runner_number[name] != 0:
        return
    assert len(name) > 0, "ConfigError: a taskrunner needs a name"
    number: uint256 = self.num_taskrunners + 1
    self.num_taskrunners = number
    self.runner_number[name] = number
    self.runners[number].name = name
    log TaskrunnerCreated(taskrunner=name)


@external
def enrol(taskrunner: String[63], node: String[135], num_sl: uint256):
    """
    @notice The node follows this taskrunner and can start `num_sl` SL nodes for it.
    """
    number: uint256 = self._runner(taskrunner)
    authorized: uint256 = staticcall registry.authorize(node, 0, msg.sender)
    assert num_sl >= 1, "ConfigError: num_sl is at least 1"
    who: uint256 = self.peer_number[number][node]
    if who == 0:
        who = self.num_enrolled[number] + 1
        assert who <= MAX_PEERS, "LedgerError: a taskrunner has at most 256 peers"
        self.num_enrolled[number] = who
        self.peer_number[number][node] = who
        self.peers[number][who].node = node
        log Enrolled(taskrunner=taskrunner, node=node)
    self.peers[number][who].num_sl = num_sl


@internal
@view
def _share(number: uint256, who: uint256) -> uint256:
    # What a peer contributes to num_peers: its SL nodes in RUN_SWARM, itself otherwise.
    if self.runners[number].counts_sl:
        return self.peers[number][who].num_sl
    return 1


@internal
@view
def _state(number: uint256, who: uint256) -> uint256:
    # What a peer reported about an earlier assignment is no longer so.
    if self.peers[number][who].assignment != self.runners[number].assignment:
        return IDLE
    return self.peers[number][who].state


@external
def assign(taskrunner: String[63], task: String[63], num_peers: uint256, target: String[135]):
    """
    @notice Give a task to a taskrunner: to as many as make `num_peers` (0: all), or to one target.
            A target may join a running assignment of the same task: a failed peer tries again, a late one is added.
    """
    self._check_member(msg.sender)
    number: uint256 = self._runner(taskrunner)
    assert self.tasks[self._task(task)].finalised, "TaskRefused: the task is not finalised"
    assert task != "ROOTTASK", "TaskRefused: ROOTTASK is only a prerequisite"
    who: uint256 = 0
    if len(target) > 0:
        who = self.peer_number[number][target]
        assert who != 0, "NotFound: the target is not enrolled"
    if self.runners[number].state == RUNNING:
        same: bool = self.runners[number].task == task and self.runners[number].target == target and self.runners[number].num_peers == num_peers
        if who == 0 or self.runners[number].task != task:
            assert same, "TaskRefused: the taskrunner is running"
            return
        self._invite(number, who)
    else:
        self._begin(number, task, num_peers, who)
    log Assigned(taskrunner=taskrunner, task=task, num_peers=self.runners[number].num_peers, target=target)


@internal
def _begin(number: uint256, task: String[63], num_peers: uint256, who: uint256):
    counts_sl: bool = self.tasks[self.task_number[task]].type == "RUN_SWARM"
    self.runners[number].counts_sl = counts_sl
    self.runners[number].assignment += 1
    self.runners[number].state = RUNNING
    self.runners[number].task = task
    self.runners[number].target = ""
    self.runners[number].assigned_at = self._now()
    self.runners[number].ended_at = 0
    if who != 0:
        self.runners[number].target = self.peers[number][who].node
        self.peers[number][who].invited = self.runners[number].assignment
        self.runners[number].num_peers = self._share(number, who)
        return
    available: uint256 = 0
    for i: uint256 in range(1, self.num_enrolled[number] + 1, bound=MAX_PEERS):
        available += self._share(number, i)
    wanted: uint256 = num_peers
    if num_peers == 0:
        wanted = available
    assert wanted >= 1 and wanted <= available, "TaskRefused: fewer peers are enrolled"
    self.runners[number].num_peers = wanted


@internal
def _invite(number: uint256, who: uint256):
    assignment: uint256 = self.runners[number].assignment
    state: uint256 = self._state(number, who)
    if state == RUNNING or state == COMPLETE or (state == IDLE and self.peers[number][who].invited == assignment):
        return
    if state == IDLE:
        # It would not have been needed: the goal grows, or somebody else's share would be taken.
        self.runners[number].num_peers += self._share(number, who)
    self.peers[number][who].state = IDLE
    self.peers[number][who].invited = assignment


@internal
@view
def _tally(number: uint256) -> (uint256, uint256, uint256, uint256):
    # Peers at work; shares begun (at work or done); shares done; shares that can still be begun.
    num_running: uint256 = 0
    begun: uint256 = 0
    done: uint256 = 0
    left: uint256 = 0
    only_target: bool = len(self.runners[number].target) > 0
    for who: uint256 in range(1, self.num_enrolled[number] + 1, bound=MAX_PEERS):
        state: uint256 = self._state(number, who)
        share: uint256 = self._share(number, who)
        if state == RUNNING:
            num_running += 1
            begun += share
        elif state == COMPLETE:
            begun += share
            if self.runners[number].counts_sl:
                done += self.peers[number][who].num_done
            else:
                done += 1
        elif state == IDLE and (not only_target or self.peers[number][who].invited == self.runners[number].assignment):
            left += share
    return num_running, begun, done, left


@external
def report(taskrunner: String[63], node: String[135], state: uint256, text: String[160], num_done: uint256):
    """
    @notice How far a peer is: running, complete or error. Beginning is refused when the task has peers enough.
    """
    number: uint256 = self._runner(taskrunner)
    authorized: uint256 = staticcall registry.authorize(node, 0, msg.sender)
    assert state >= RUNNING and state <= ERROR, "ConfigError: report running, complete or error"
    who: uint256 = self.peer_number[number][node]
    assert who != 0, "NotFound: the node is not enrolled"
    old: uint256 = self._state(number, who)
    if old == state and self.peers[number][who].text == text and self.peers[number][who].num_done == num_done:
        return
    assert self.runners[number].state == RUNNING, "TaskRefused: the taskrunner has nothing to do"
    assert old != COMPLETE and old != ERROR, "TaskRefused: the peer has ended its part"
    if old == IDLE:
        self._check_needed(number, who)
    self.peers[number][who].assignment = self.runners[number].assignment
    self.peers[number][who].state = state
    self.peers[number][who].text = text
    self.peers[number][who].num_done = num_done
    self.peers[number][who].at = self._now()
    log Reported(taskrunner=taskrunner, node=node, state=state, num_done=num_done)
    self._end_if_done(number)


@internal
@view
def _check_needed(number: uint256, who: uint256):
    if self.peers[number][who].invited == self.runners[number].assignment:
        return
    assert len(self.runners[number].target) == 0, "TaskRefused: the task is for another node"
    num_running: uint256 = 0
    begun: uint256 = 0
    done: uint256 = 0
    left: uint256 = 0
    num_running, begun, done, left = self._tally(number)
    assert begun < self.runners[number].num_peers, "TaskRefused: the task has peers enough"


@internal
def _end_if_done(number: uint256):
    num_running: uint256 = 0
    begun: uint256 = 0
    done: uint256 = 0
    left: uint256 = 0
    num_running, begun, done, left = self._tally(number)
    wanted: uint256 = self.runners[number].num_peers
    if num_running > 0:
        return
    if done >= wanted:
        self.runners[number].state = COMPLETE
    elif begun + left < wanted or (begun >= wanted and done < wanted):
        self.runners[number].state = ERROR
    else:
        return
    self.runners[number].ended_at = self._now()
    log TaskrunnerEnded(taskrunner=self.runners[number].name, state=self.runners[number].state)


@external
def reset_taskrunner(taskrunner: String[63]):
    """
    @notice Drop the assignment, whatever its state: the taskrunner is idle, its peers stop what they do.
    """
    self._check_member(msg.sender)
    number: uint256 = self._runner(taskrunner)
    if self.runners[number].state == IDLE:
        return
    self.runners[number].state = IDLE
    self.runners[number].task = ""
    self.runners[number].target = ""
    self.runners[number].num_peers = 0
    self.runners[number].assignment += 1
    self.runners[number].assigned_at = 0
    self.runners[number].ended_at = 0
    log TaskrunnerReset(taskrunner=taskrunner)


@external
@view
def taskrunner_name(number: uint256) -> String[63]:
    return self.runners[number].name


@external
@view
def taskrunner_view(name: String[63]) -> TaskrunnerView:
    number: uint256 = self._runner(name)
    everybody: DynArray[PeerView, MAX_PEERS] = []
    for who: uint256 in range(1, self.num_enrolled[number] + 1, bound=MAX_PEERS):
        one: Peer = self.peers[number][who]
        if one.assignment != self.runners[number].assignment:
            one.state = IDLE
            one.text = ""
            one.num_done = 0
            one.at = 0
        everybody.append(PeerView(node=one.node, num_sl=one.num_sl, state=one.state, text=one.text, num_done=one.num_done, at=one.at))
    return TaskrunnerView(runner=self.runners[number], peers=everybody)
