# pragma version 0.4.3
# pragma evm-version london
"""
@title Tasks
@notice Tasks (what SWOP nodes can be told to do) and taskrunners (groups of them that do one task at a time).
        A revert reason is the name of an exception of errors.py, then what to say after it.
"""

MAX_LINES: constant(uint256) = 256
MAX_PEERS: constant(uint256) = 256
BATCH: constant(uint256) = 32

# States of a taskrunner, of its runs and of each of its peers.
IDLE: constant(uint256) = 0
RUNNING: constant(uint256) = 1
COMPLETE: constant(uint256) = 2
ERROR: constant(uint256) = 3
RESET: constant(uint256) = 4

interface Registry:
    def authorize(node: String[135], incarnation: uint256, account: address) -> uint256: view
    def is_member(account: address) -> bool: view
    def speaks_for(site: String[63], account: address) -> bool: view

struct Task:
    name: String[63]
    type: String[32]
    author: String[160]
    prereq: String[63]
    outcome: String[160]
    finalised: bool
    created_at: uint256
    site: String[63]
    num_lines: uint256

struct TaskView:
    task: Task
    body: DynArray[String[160], MAX_LINES]

struct Run:
    state: uint256
    task: String[63]
    prereq: uint256
    counts_sl: bool
    num_peers: uint256
    target: String[135]
    assigned_at: uint256
    ended_at: uint256

struct Peer:
    node: String[135]
    num_sl: uint256

# A peer in one run. `num_sl` is what it could start when the run was assigned, or when it was invited later.
struct Part:
    num_sl: uint256
    invited: bool
    state: uint256
    text: String[1024]
    num_done: uint256
    at: uint256

struct PeerView:
    node: String[135]
    num_sl: uint256
    state: uint256
    text: String[1024]
    num_done: uint256
    at: uint256

struct TaskrunnerView:
    name: String[63]
    run: uint256
    num_runs: uint256
    version: uint256
    reachable: bool
    last: Run
    peers: DynArray[PeerView, MAX_PEERS]

struct RunView:
    number: uint256
    last: Run
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
runner_name: HashMap[uint256, String[63]]
runner_number: HashMap[String[63], uint256]
current: HashMap[uint256, uint256]
num_runs: HashMap[uint256, uint256]
version: HashMap[uint256, uint256]
runs: HashMap[uint256, HashMap[uint256, Run]]
num_enrolled: HashMap[uint256, uint256]
peers: HashMap[uint256, HashMap[uint256, Peer]]
peer_number: HashMap[uint256, HashMap[String[135], uint256]]
parts: HashMap[uint256, HashMap[uint256, HashMap[uint256, Part]]]
# Who has ever completed a task, by the task's number: what a prerequisite asks for.
has_done: HashMap[uint256, HashMap[String[135], bool]]


@deploy
def __init__(at: address):
    registry = Registry(at)
    self._add_task("ROOTTASK", "ROOT_TASK", "swarm-hpc", "", "", "")
    self.tasks[1].finalised = True
    self._add_taskrunner("defaulttaskbb.taskdb.sml.hpe")


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
def _add_task(name: String[63], type: String[32], author: String[160], prereq: String[63], outcome: String[160], site: String[63]):
    number: uint256 = self.num_tasks + 1
    self.num_tasks = number
    self.task_number[name] = number
    self.tasks[number] = Task(
        name=name, type=type, author=author, prereq=prereq, outcome=outcome, finalised=False, created_at=self._now(), site=site, num_lines=0
    )
    log TaskCreated(task=name, type=type)


@external
def create_task(name: String[63], type: String[32], author: String[160], prereq: String[63], outcome: String[160], site: String[63]):
    """
    @notice Create a task for an operator of the site; its body is appended line by line, then finalised. The same
            again has no effect.
    """
    assert staticcall registry.speaks_for(site, msg.sender), "NotMember: the account does not speak for that site, or the site is no member yet"
    assert type == "RUN_SWARM" or type == "MAKE_USER_CONTAINER" or type == "MAKE_SWARM_USER_CONTENT" or type == "PULL_IMAGE", "ConfigError: no such type of task"
    before: uint256 = self._task(prereq)
    number: uint256 = self.task_number[name]
    if number != 0:
        known: Task = self.tasks[number]
        assert known.type == type and known.author == author and known.prereq == prereq and known.outcome == outcome and known.site == site, "AlreadyExists: another task has that name"
        return
    assert len(name) > 0, "ConfigError: a task needs a name"
    assert self.tasks[before].finalised, "TaskRefused: the prerequisite is not finalised"
    assert type == "RUN_SWARM" or len(outcome) > 0, "ConfigError: outcome: the task needs a name for what it makes"
    self._add_task(name, type, author, prereq, outcome, site)


@external
def append_task_body(name: String[63], first: uint256, lines: DynArray[String[160], BATCH]):
    """
    @notice Add or overwrite the lines from number `first` (from 1) on of a task that is not finalised.
    """
    self._check_member(msg.sender)
    number: uint256 = self._task(name)
    assert first >= 1 and first <= self.tasks[number].num_lines + 1, "ConfigError: lines are numbered from 1, without gaps"
    assert len(lines) > 0, "ConfigError: no line is given"
    last: uint256 = first + len(lines) - 1
    assert last <= MAX_LINES, "ConfigError: a task's body has at most 256 lines"
    if self.tasks[number].finalised:
        assert last <= self.tasks[number].num_lines, "TaskRefused: the task is finalised"
    at: uint256 = first
    for line: String[160] in lines:
        if self.tasks[number].finalised:
            assert self.lines[number][at] == line, "TaskRefused: the task is finalised"
        else:
            self.lines[number][at] = line
        at += 1
    if last > self.tasks[number].num_lines:
        self.tasks[number].num_lines = last


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


@internal
def _add_taskrunner(name: String[63]):
    number: uint256 = self.num_taskrunners + 1
    self.num_taskrunners = number
    self.runner_number[name] = number
    self.runner_name[number] = name
    log TaskrunnerCreated(taskrunner=name)


@external
def create_taskrunner(name: String[63]):
    self._check_member(msg.sender)
    if self.runner_number[name] != 0:
        return
    assert len(name) > 0, "ConfigError: a taskrunner needs a name"
    self._add_taskrunner(name)


@external
def enrol(taskrunner: String[63], node: String[135], incarnation: uint256, num_sl: uint256):
    """
    @notice The node follows this taskrunner and can start `num_sl` SL nodes for it: also in a run that it has not begun.
    """
    number: uint256 = self._runner(taskrunner)
    authorized: uint256 = staticcall registry.authorize(node, incarnation, msg.sender)
    assert num_sl >= 1, "ConfigError: num_sl is at least 1"
    who: uint256 = self.peer_number[number][node]
    if who == 0:
        who = self.num_enrolled[number] + 1
        assert who <= MAX_PEERS, "LedgerError: a taskrunner has at most 256 peers"
        self.num_enrolled[number] = who
        self.peer_number[number][node] = who
        self.peers[number][who].node = node
        log Enrolled(taskrunner=taskrunner, node=node)
    elif self.peers[number][who].num_sl == num_sl:
        return
    self.peers[number][who].num_sl = num_sl
    run: uint256 = self.current[number]
    if run != 0 and self.runs[number][run].state == RUNNING and self.parts[number][run][who].state == IDLE:
        self.parts[number][run][who].num_sl = num_sl
    self.version[number] += 1


@internal
@view
def _share(number: uint256, run: uint256, who: uint256) -> uint256:
    # What a peer contributes to num_peers: its SL nodes in RUN_SWARM, itself otherwise.
    if self.runs[number][run].counts_sl:
        return self.parts[number][run][who].num_sl
    return 1


@internal
@view
def _can(number: uint256, run: uint256, who: uint256) -> bool:
    # Whether the peer has done what comes first. ROOTTASK, number 1, is done.
    prereq: uint256 = self.runs[number][run].prereq
    return prereq == 1 or self.has_done[prereq][self.peers[number][who].node]


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
    run: uint256 = self.current[number]
    if run != 0 and self.runs[number][run].state == RUNNING:
        same: bool = self.runs[number][run].task == task and self.runs[number][run].target == target and self.runs[number][run].num_peers == num_peers
        if who == 0 or self.runs[number][run].task != task:
            assert same, "TaskRefused: the taskrunner is running"
            return
        self._invite(number, run, who)
    else:
        self._begin(number, task, num_peers, who)
        run = self.current[number]
    self.version[number] += 1
    log Assigned(taskrunner=taskrunner, task=task, num_peers=self.runs[number][run].num_peers, target=target)


@internal
def _begin(number: uint256, task: String[63], num_peers: uint256, who: uint256):
    run: uint256 = self.num_runs[number] + 1
    self.num_runs[number] = run
    self.current[number] = run
    id: uint256 = self.task_number[task]
    self.runs[number][run].state = RUNNING
    self.runs[number][run].task = task
    self.runs[number][run].prereq = self.task_number[self.tasks[id].prereq]
    self.runs[number][run].counts_sl = self.tasks[id].type == "RUN_SWARM"
    self.runs[number][run].assigned_at = self._now()
    available: uint256 = 0
    enrolled: uint256 = 0
    for i: uint256 in range(1, self.num_enrolled[number] + 1, bound=MAX_PEERS):
        self.parts[number][run][i].num_sl = self.peers[number][i].num_sl
        enrolled += self._share(number, run, i)
        if self._can(number, run, i):
            available += self._share(number, run, i)
    if who != 0:
        assert self._can(number, run, who), "TaskRefused: the target has not completed the task's prerequisite"
        self.runs[number][run].target = self.peers[number][who].node
        self.parts[number][run][who].invited = True
        self.runs[number][run].num_peers = self._share(number, run, who)
        return
    wanted: uint256 = num_peers
    if num_peers == 0:
        wanted = enrolled
    assert wanted >= 1 and wanted <= enrolled, "TaskRefused: fewer peers are enrolled"
    assert wanted <= available, "TaskRefused: fewer peers have completed the task's prerequisite"
    self.runs[number][run].num_peers = wanted


@internal
def _invite(number: uint256, run: uint256, who: uint256):
    assert self._can(number, run, who), "TaskRefused: the target has not completed the task's prerequisite"
    state: uint256 = self.parts[number][run][who].state
    if state == RUNNING or state == COMPLETE or (state == IDLE and self.parts[number][run][who].invited):
        return
    if state == IDLE:
        # It would not have been needed: the goal grows, or somebody else's share would be taken.
        self.parts[number][run][who].num_sl = self.peers[number][who].num_sl
        self.runs[number][run].num_peers += self._share(number, run, who)
    self.parts[number][run][who].state = IDLE
    self.parts[number][run][who].invited = True


@internal
@view
def _tally(number: uint256, run: uint256) -> (uint256, uint256, uint256, uint256):
    # Peers at work; shares begun (at work or done); shares done; shares that can still be begun.
    num_running: uint256 = 0
    begun: uint256 = 0
    done: uint256 = 0
    left: uint256 = 0
    only_target: bool = len(self.runs[number][run].target) > 0
    for who: uint256 in range(1, self.num_enrolled[number] + 1, bound=MAX_PEERS):
        state: uint256 = self.parts[number][run][who].state
        share: uint256 = self._share(number, run, who)
        if state == RUNNING:
            num_running += 1
            begun += share
        elif state == COMPLETE:
            begun += share
            if self.runs[number][run].counts_sl:
                done += self.parts[number][run][who].num_done
            else:
                done += 1
        elif state == IDLE and self._can(number, run, who) and (not only_target or self.parts[number][run][who].invited):
            left += share
    return num_running, begun, done, left


@external
def report(taskrunner: String[63], run: uint256, node: String[135], incarnation: uint256, state: uint256, text: String[1024], num_done: uint256):
    """
    @notice How far a peer is with that run: running, complete or error. Beginning is refused when the run has peers
            enough.
    """
    number: uint256 = self._runner(taskrunner)
    authorized: uint256 = staticcall registry.authorize(node, incarnation, msg.sender)
    assert state >= RUNNING and state <= ERROR, "ConfigError: report running, complete or error"
    who: uint256 = self.peer_number[number][node]
    assert who != 0, "NotFound: the node is not enrolled"
    assert run >= 1 and run <= self.num_runs[number], "NotFound: the taskrunner had no such run"
    old: uint256 = self.parts[number][run][who].state
    if old == state and self.parts[number][run][who].text == text and self.parts[number][run][who].num_done == num_done:
        return
    assert run == self.current[number] and self.runs[number][run].state == RUNNING, "TaskRefused: the run is over"
    assert old != COMPLETE and old != ERROR, "TaskRefused: the peer has ended its part"
    if old == IDLE:
        self._check_needed(number, run, who)
    self.parts[number][run][who].state = state
    self.parts[number][run][who].text = text
    self.parts[number][run][who].num_done = num_done
    self.parts[number][run][who].at = self._now()
    if state == COMPLETE:
        self.has_done[self.task_number[self.runs[number][run].task]][node] = True
    self.version[number] += 1
    log Reported(taskrunner=taskrunner, node=node, state=state, num_done=num_done)
    self._end_if_done(number, run)


@internal
@view
def _check_needed(number: uint256, run: uint256, who: uint256):
    assert self._can(number, run, who), "TaskRefused: the node has not completed the task's prerequisite"
    if self.parts[number][run][who].invited:
        return
    assert len(self.runs[number][run].target) == 0, "TaskRefused: the task is for another node"
    num_running: uint256 = 0
    begun: uint256 = 0
    done: uint256 = 0
    left: uint256 = 0
    num_running, begun, done, left = self._tally(number, run)
    assert begun < self.runs[number][run].num_peers, "TaskRefused: the task has peers enough"


@internal
def _end_if_done(number: uint256, run: uint256):
    num_running: uint256 = 0
    begun: uint256 = 0
    done: uint256 = 0
    left: uint256 = 0
    num_running, begun, done, left = self._tally(number, run)
    wanted: uint256 = self.runs[number][run].num_peers
    if num_running > 0:
        return
    if done >= wanted:
        self.runs[number][run].state = COMPLETE
    elif begun + left < wanted or (begun >= wanted and done < wanted):
        self.runs[number][run].state = ERROR
    else:
        return
    self.runs[number][run].ended_at = self._now()
    log TaskrunnerEnded(taskrunner=self.runner_name[number], state=self.runs[number][run].state)


@external
def reset_taskrunner(taskrunner: String[63]):
    """
    @notice Drop the assignment, whatever its state: the taskrunner is idle, its peers stop what they do. What they have
            reported stays in the history of runs.
    """
    self._check_member(msg.sender)
    number: uint256 = self._runner(taskrunner)
    run: uint256 = self.current[number]
    if run == 0:
        return
    if self.runs[number][run].state == RUNNING:
        self.runs[number][run].state = RESET
        self.runs[number][run].ended_at = self._now()
    self.current[number] = 0
    self.version[number] += 1
    log TaskrunnerReset(taskrunner=taskrunner)


@external
@view
def taskrunner_name(number: uint256) -> String[63]:
    return self.runner_name[number]


@internal
@view
def _everybody(number: uint256, run: uint256) -> DynArray[PeerView, MAX_PEERS]:
    everybody: DynArray[PeerView, MAX_PEERS] = []
    for who: uint256 in range(1, self.num_enrolled[number] + 1, bound=MAX_PEERS):
        part: Part = self.parts[number][run][who]
        num_sl: uint256 = part.num_sl
        if num_sl == 0:
            # It takes no part in this run: it enrolled later, or there is none.
            if run != 0 and run != self.current[number]:
                continue
            num_sl = self.peers[number][who].num_sl
        everybody.append(PeerView(node=self.peers[number][who].node, num_sl=num_sl, state=part.state, text=part.text, num_done=part.num_done, at=part.at))
    return everybody


@external
@view
def taskrunner_view(name: String[63]) -> TaskrunnerView:
    number: uint256 = self._runner(name)
    run: uint256 = self.current[number]
    num_running: uint256 = 0
    begun: uint256 = 0
    done: uint256 = 0
    left: uint256 = 0
    num_running, begun, done, left = self._tally(number, run)
    return TaskrunnerView(
        name=name, run=run, num_runs=self.num_runs[number], version=self.version[number], reachable=begun + left >= self.runs[number][run].num_peers, last=self.runs[number][run], peers=self._everybody(number, run)
    )


@external
@view
def taskrunner_version(name: String[63]) -> uint256:
    """
    @notice It grows with every change of the taskrunner.
    """
    return self.version[self._runner(name)]


@external
@view
def run_view(name: String[63], run: uint256) -> RunView:
    number: uint256 = self._runner(name)
    assert run >= 1 and run <= self.num_runs[number], "NotFound: the taskrunner had no such run"
    return RunView(number=run, last=self.runs[number][run], peers=self._everybody(number, run))
