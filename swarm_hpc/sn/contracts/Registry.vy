# pragma version 0.4.3
# pragma evm-version london
"""
@title Registry
@notice Sites and how they vote, nodes and their incarnations, and where the other contracts are (docs/protocol.md 4).
        A revert reason is the name of an exception of errors.py, then what to say after it.
"""

SCHEMA: constant(uint256) = 6
MAX_SITES: constant(uint256) = 256
PAGE: constant(uint256) = 32
# What a site's account is given for gas when it is admitted, where the chain's genesis has endowed this contract.
GRANT: constant(uint256) = 10 ** 27

struct Declared:
    name: String[63]
    created_at: uint256

struct Site:
    name: String[63]
    account: address
    endpoint: String[260]
    ca_fingerprint: String[95]
    # Ed25519 public key that the site's CometBFT signs with, and the ID of its p2p key; empty on the embedded ledger.
    consensus_key: bytes32
    p2p_id: String[40]
    active: bool
    joined_at: uint256
    # How often the site has said that its SN is there. It gets voting power by the first time, and again after it lost it.
    announced: uint256
    # The others have found its SN to be gone: they may mark its nodes away, until it announces itself again.
    lost: bool

struct Node:
    name: String[135]
    endpoint: String[260]
    instance: String[64]
    incarnation: uint256
    active: bool
    since: uint256

event ContractDeclared:
    contract: String[63]

event SiteAdmitted:
    site: String[63]
    account: address
    endpoint: String[260]
    ca_fingerprint: String[95]
    consensus_key: bytes32
    p2p_id: String[40]

event SiteRemoved:
    site: String[63]

event SiteLost:
    site: String[63]

event SiteAnnounced:
    site: String[63]
    endpoint: String[260]
    announced: uint256

event Voted:
    site: String[63]
    account: address
    endpoint: String[260]
    ca_fingerprint: String[95]
    consensus_key: bytes32
    p2p_id: String[40]
    admit: bool
    votes: uint256
    needed: uint256

event NodeRegistered:
    node: String[135]
    incarnation: uint256

event NodeActive:
    node: String[135]
    active: bool

founder: public(address)
training: public(address)
tasks: public(address)
shards: public(address)

num_sites: public(uint256)
num_active_sites: public(uint256)
num_nodes: public(uint256)

# Numbers of sites and nodes start at 1, so that 0 means "none".
sites: HashMap[uint256, Site]
site_number: HashMap[String[63], uint256]
nodes: HashMap[uint256, Node]
node_number: HashMap[String[135], uint256]
site_of_node: HashMap[uint256, uint256]

# How often was decided about a site: votes count for the next decision only.
decisions: HashMap[String[63], uint256]
voted: HashMap[bytes32, HashMap[uint256, bool]]
# Who misses a site, since it announced itself last.
missed: HashMap[uint256, HashMap[uint256, HashMap[uint256, bool]]]

num_declared: uint256
declared: HashMap[uint256, Declared]
declared_number: HashMap[String[63], uint256]


@deploy
def __init__(site: String[63], endpoint: String[260], ca_fingerprint: String[95], consensus_key: bytes32, p2p_id: String[40]):
    self.founder = msg.sender
    self._admit(site, msg.sender, endpoint, ca_fingerprint, consensus_key, p2p_id)
    self.sites[1].announced = 1


@external
def link(training: address, tasks: address, shards: address):
    """
    @notice Say, once, where the other contracts are.
    """
    assert msg.sender == self.founder, "NotMember: only the founder links the contracts"
    if self.training != empty(address):
        assert self.training == training and self.tasks == tasks and self.shards == shards, "AlreadyExists: the contracts are linked"
    self.training = training
    self.tasks = tasks
    self.shards = shards


@external
@view
def schema() -> uint256:
    return SCHEMA


# --- sites ---


@internal
@view
def _now() -> uint256:
    # Seconds since 1970; the ledger's blocks are stamped in milliseconds, so that many fit into a second.
    return block.timestamp // 1000


@internal
def _admit(site: String[63], account: address, endpoint: String[260], ca_fingerprint: String[95], consensus_key: bytes32, p2p_id: String[40]):
    number: uint256 = self.site_number[site]
    if number == 0:
        assert self.num_sites < MAX_SITES, "LedgerError: a network has at most 256 sites"
        number = self.num_sites + 1
        self.num_sites = number
        self.site_number[site] = number
        self.sites[number].name = site
    if not self.sites[number].active:
        self.num_active_sites += 1
        self.sites[number].active = True
        self.sites[number].joined_at = self._now()
    self.sites[number].account = account
    self.sites[number].endpoint = endpoint
    self.sites[number].ca_fingerprint = ca_fingerprint
    self.sites[number].consensus_key = consensus_key
    self.sites[number].p2p_id = p2p_id
    if account.balance < GRANT // 2 and self.balance >= GRANT:
        send(account, GRANT)
    log SiteAdmitted(site=site, account=account, endpoint=endpoint, ca_fingerprint=ca_fingerprint, consensus_key=consensus_key, p2p_id=p2p_id)


@internal
def _remove(number: uint256):
    self.num_active_sites -= 1
    self.sites[number].active = False
    log SiteRemoved(site=self.sites[number].name)


@internal
@view
def _is_free(consensus_key: bytes32, site: uint256) -> bool:
    for number: uint256 in range(1, self.num_sites + 1, bound=MAX_SITES):
        if number != site and self.sites[number].active and self.sites[number].consensus_key == consensus_key:
            return False
    return True


@external
def announce(endpoint: String[260]):
    """
    @notice Say that the SN of the sender's sites is there, and where. No vote is needed for that.
    """
    speaks: bool = False
    for number: uint256 in range(1, self.num_sites + 1, bound=MAX_SITES):
        if self.sites[number].active and self.sites[number].account == msg.sender:
            speaks = True
            self.sites[number].endpoint = endpoint
            self.sites[number].announced += 1
            self.sites[number].lost = False
            log SiteAnnounced(site=self.sites[number].name, endpoint=endpoint, announced=self.sites[number].announced)
    assert speaks, "NotMember: the account speaks for no active site"


@external
def report_lost(site: String[63]):
    """
    @notice Say, for every active site of the sender, that the SN of another site is gone. When more than half of the other
            active sites say so, any member may mark that site's nodes away, until it announces itself again.
    """
    missing: uint256 = self.site_number[site]
    assert missing != 0, "NotFound: no such site"
    if not self.sites[missing].active or self.sites[missing].lost:
        return
    speaks: bool = False
    votes: uint256 = 0
    announced: uint256 = self.sites[missing].announced
    for number: uint256 in range(1, self.num_sites + 1, bound=MAX_SITES):
        if number == missing or not self.sites[number].active:
            continue
        if self.sites[number].account == msg.sender:
            speaks = True
            self.missed[missing][announced][number] = True
        if self.missed[missing][announced][number]:
            votes += 1
    assert speaks, "NotMember: the account speaks for no other active site"
    if votes > (self.num_active_sites - 1) // 2:
        self.sites[missing].lost = True
        log SiteLost(site=site)


@external
def vote(site: String[63], account: address, endpoint: String[260], ca_fingerprint: String[95], consensus_key: bytes32, p2p_id: String[40], admit: bool):
    """
    @notice Vote, with every active site of the sender, to admit a site (or to change its record) or to remove it.
            More than half of the active sites decide. What is so already needs no vote.
    """
    number: uint256 = self.site_number[site]
    proposal: bytes32 = empty(bytes32)
    if admit:
        if number != 0:
            known: Site = self.sites[number]
            same: bool = known.active and known.account == account and known.endpoint == endpoint
            if same and known.ca_fingerprint == ca_fingerprint and known.consensus_key == consensus_key and known.p2p_id == p2p_id:
                return
        assert consensus_key == empty(bytes32) or self._is_free(consensus_key, number), "AlreadyExists: another site has this consensus key"
        proposal = keccak256(abi_encode(site, self.decisions[site], account, endpoint, ca_fingerprint, consensus_key, p2p_id))
    else:
        assert number != 0, "NotFound: no such site"
        if not self.sites[number].active:
            return
        assert self.num_active_sites > 1, "LedgerError: the last site cannot be removed"
        proposal = keccak256(abi_encode(site, self.decisions[site]))

    speaks: bool = False
    counted: bool = False
    votes: uint256 = 0
    for voter: uint256 in range(1, self.num_sites + 1, bound=MAX_SITES):
        if not self.sites[voter].active:
            continue
        if self.sites[voter].account == msg.sender:
            speaks = True
            if not self.voted[proposal][voter]:
                self.voted[proposal][voter] = True
                counted = True
        if self.voted[proposal][voter]:
            votes += 1
    assert speaks, "NotMember: the account speaks for no active site"
    needed: uint256 = self.num_active_sites // 2 + 1
    if counted:
        log Voted(site=site, account=account, endpoint=endpoint, ca_fingerprint=ca_fingerprint, consensus_key=consensus_key, p2p_id=p2p_id, admit=admit, votes=votes, needed=needed)
    if votes >= needed:
        self.decisions[site] += 1
        if admit:
            self._admit(site, account, endpoint, ca_fingerprint, consensus_key, p2p_id)
        else:
            self._remove(number)


@external
@view
def site_page(first: uint256) -> DynArray[Site, PAGE]:
    """
    @notice Up to 32 sites from number `first` (from 1) on.
    """
    page: DynArray[Site, PAGE] = []
    for number: uint256 in range(first, self.num_sites + 1, bound=MAX_SITES):
        if len(page) == PAGE:
            break
        page.append(self.sites[number])
    return page


@external
@view
def is_member(account: address) -> bool:
    """
    @notice Whether the account speaks for an active site.
    """
    return self._is_member(account)


@external
@view
def speaks_for(site: String[63], account: address) -> bool:
    """
    @notice Whether the account speaks for that site, which is a member.
    """
    number: uint256 = self.site_number[site]
    return self.sites[number].active and self.sites[number].account == account


@internal
@view
def _is_member(account: address) -> bool:
    for number: uint256 in range(1, self.num_sites + 1, bound=MAX_SITES):
        if self.sites[number].active and self.sites[number].account == account:
            return True
    return False


# --- nodes ---


@internal
@view
def _check_account(site: uint256, account: address):
    assert site != 0, "NotFound: no such site"
    assert self.sites[site].active, "NotMember: the site is no member any more"
    assert self.sites[site].account == account, "NotMember: another account speaks for this site"


@external
def register_node(site: String[63], kind: String[7], label: String[63], endpoint: String[260], instance: String[64]):
    """
    @notice Make the node `site/kind/label` active and raise its incarnation, which fences off its earlier processes.
    """
    self._check_account(self.site_number[site], msg.sender)
    name: String[135] = concat(site, "/", kind, "/", label)
    number: uint256 = self.node_number[name]
    if number == 0:
        number = self.num_nodes + 1
        self.num_nodes = number
        self.node_number[name] = number
        self.nodes[number].name = name
        self.site_of_node[number] = self.site_number[site]
    incarnation: uint256 = self.nodes[number].incarnation + 1
    self.nodes[number].incarnation = incarnation
    self.nodes[number].endpoint = endpoint
    self.nodes[number].instance = instance
    self.nodes[number].active = True
    self.nodes[number].since = self._now()
    log NodeRegistered(node=name, incarnation=incarnation)


@external
def set_node_active(node: String[135], active: bool):
    """
    @notice Mark a node away, or present again.
    """
    number: uint256 = self._node(node)
    if active:
        self._check_account(self.site_of_node[number], msg.sender)
    else:
        self._check_away(number, msg.sender)
    if self.nodes[number].active == active:
        return
    self.nodes[number].active = active
    self.nodes[number].since = self._now()
    log NodeActive(node=node, active=active)


@internal
@view
def _node(name: String[135]) -> uint256:
    number: uint256 = self.node_number[name]
    assert number != 0, "NotFound: no such node"
    return number


@internal
@view
def _check_away(node: uint256, account: address):
    """
    Whether the account may mark the node away: its own site's may, and any member's while that site is lost.
    """
    site: uint256 = self.site_of_node[node]
    if site != 0 and self.sites[site].lost and self.sites[site].active and self._is_member(account):
        return
    self._check_account(site, account)


@external
@view
def authorize_away(node: String[135], account: address) -> uint256:
    """
    @notice The node's number, if the account may mark it away.
    """
    number: uint256 = self._node(node)
    self._check_away(number, account)
    return number


@external
@view
def authorize(node: String[135], incarnation: uint256, account: address) -> uint256:
    """
    @notice The node's number, if the account speaks for its site and the incarnation is the node's (0: any).
    """
    number: uint256 = self._node(node)
    self._check_account(self.site_of_node[number], account)
    assert incarnation == 0 or incarnation == self.nodes[number].incarnation, "Fenced: another process has taken over this node"
    return number


@external
@view
def node(name: String[135]) -> Node:
    return self.nodes[self._node(name)]


@external
@view
def node_page(first: uint256) -> DynArray[Node, PAGE]:
    """
    @notice Up to 32 nodes from number `first` (from 1) on.
    """
    page: DynArray[Node, PAGE] = []
    for i: uint256 in range(PAGE):
        if first + i > self.num_nodes:
            break
        page.append(self.nodes[first + i])
    return page


# --- names of training contracts ---


@external
def declare_contract(name: String[63]):
    """
    @notice Set a name aside for a training contract; the first node that takes part says in Training what it is.
    """
    assert self._is_member(msg.sender), "NotMember: the account speaks for no active site"
    assert len(name) > 0, "ConfigError: a training contract needs a name"
    if self.declared_number[name] != 0:
        return
    number: uint256 = self.num_declared + 1
    self.num_declared = number
    self.declared_number[name] = number
    self.declared[number] = Declared(name=name, created_at=self._now())
    log ContractDeclared(contract=name)


@external
@view
def declared_page(first: uint256) -> DynArray[Declared, PAGE]:
    """
    @notice Up to 32 declared names from number `first` (from 1) on, also those that a training contract has by now.
    """
    page: DynArray[Declared, PAGE] = []
    for i: uint256 in range(PAGE):
        if first + i > self.num_declared:
            break
        page.append(self.declared[first + i])
    return page
