"""The settings of every command, one dataclass per concern. YAML in conf/ holds the defaults; cli/ fills these in.

Nothing below cli/ sees hydra or os.environ: a function gets the smallest of these that serves it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import IMAGE_DIGEST, LABEL, Merge, NodeName, Platform

T = TypeVar("T")
# Numbers become text where text is wanted: experiment.env.EPOCHS=5 is a number to hydra.
_STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class TransferMode(StrEnum):
    """How parameters travel: through the sites' SNs, or straight from SL to SL."""

    GATEWAY = "gateway"
    DIRECT = "direct"


class RanksKind(StrEnum):
    """Whether an SL node is one process, or the ranks of an MPI job that speak with one voice."""

    SINGLE = "single"
    MPI = "mpi"


class ContainerKind(StrEnum):
    """Whether programs run as they are, or in containers."""

    NONE = "none"
    APPTAINER = "apptainer"


class SlPlace(StrEnum):
    """With container=apptainer: where the SL node itself runs. Its program is in a container in any case."""

    HOST = "host"
    CONTAINER = "container"
    """In a container of its own, made from the same image."""


class LicenseKind(StrEnum):
    """Whether an SL node needs a seat."""

    NONE = "none"
    SERVER = "server"
    """From a licence server."""


class ExecutorKind(StrEnum):
    """What a SWOP starts SL nodes as."""

    SLURM = "slurm"
    """Jobs of the site's cluster."""
    LOCAL = "local"
    """Processes of its own host."""


class LedgerKind(StrEnum):
    """Which ledger an SN keeps."""

    EMBEDDED = "embedded"
    GETH = "geth"


class PowerRule(StrEnum):
    """How voting power in the consensus is shared. More than 2/3 of it must be up for the ledger to go on."""

    SENIOR = "senior"
    """Equal from four sites on; below, the longest member carries enough that it and any one other go on with three
    sites, and it alone with two."""
    EQUAL = "equal"
    """One site, one vote, always: of three sites all must be up, of two both."""


class Admission(StrEnum):
    """How this site votes on others that ask to join."""

    TRUSTED = "trusted"
    """For every site whose CA is in this site's trust bundle."""
    MANUAL = "manual"
    """As its operator says: `swarm-hpc sites admit SITE`."""


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class IdentityConfig:
    """The files that say who a node is. Made by `swarm-hpc certs`, openssl or a company CA."""

    cert: str
    """PEM file with the node's certificate, and any intermediate CAs after it."""
    key: str
    """PEM file with its private key; readable by its owner only."""
    bundle: str
    """Trust bundle: a JSON file with the CAs of all sites, from `swarm-hpc certs bundle`."""
    strict_x509: bool = True
    """RFC 5280 to the letter. Turn off for certificates such as HPE's gen-cert makes."""


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class ConnectionConfig:
    """How long nodes try."""

    connect_timeout_s: float = 60.0
    """How long a call is repeated while the other side does not answer."""
    transfer_timeout_s: float = 600.0
    """The longest that one blob may take."""

    def __post_init__(self) -> None:
        positive(self, "connect_timeout_s", "transfer_timeout_s")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class TransferConfig:
    """Where parameters are kept and how they travel."""

    mode: TransferMode = TransferMode.GATEWAY
    """gateway: through the SN, no inbound port on compute nodes. direct: from SL to SL."""
    host: str = "127.0.0.1"
    """direct: address that the SL file server listens on."""
    port: int = 30305
    """direct: its port; 0 takes a free one."""
    advertise: str = ""
    """direct: host[:port] under which the other SLs reach it; empty means host and port, if that is one host's."""
    shared_dir: str = ""
    """gateway: a folder on a file system that SL and SN share; blobs then go by rename instead of upload."""
    keep_rounds: int = 3
    """Blobs of older rounds are deleted; 0 keeps all of them (`swarm-hpc verify` needs them). Where differences travel
    (`merge.wire`), results since the newest whole one stay in any case."""
    min_free_mib: int = 256
    """A blob is refused when it would leave less room than this on its file system."""

    def __post_init__(self) -> None:
        port_number(self, "port")
        at_least(self, 0, "keep_rounds", "min_free_mib")


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True, slots=True)
class MergeConfig(Merge):
    """How parameters are merged. A training contract says of it what `agreed` keeps."""


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class RoundConfig:
    """The rules of a training contract, the same for all its nodes."""

    contract: str = "default"
    """Name of the training contract."""
    min_peers: int = 2
    """A round never closes with fewer nodes than this."""
    quorum_wait_s: int = 30
    """How long a round stays open for stragglers once min_peers have checked in."""
    leader_timeout_s: int = 60
    """How long a leader has to publish before another participant may take over."""
    max_wait_s: float = 86400.0
    """How long a node waits for its peers in one round before it gives up."""
    image: str = ""
    """Digest (sha256:...) of the container image that every participant's program must run in; empty: any, or none."""

    def __post_init__(self) -> None:
        label(self, "contract")
        image_digest(self, "image")
        at_least(self, 1, "min_peers", "leader_timeout_s")
        at_least(self, 0, "quorum_wait_s")
        positive(self, "max_wait_s")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class LedgerConfig:
    """The ledger of an SN. All but the first two are for `ledger=geth`."""

    kind: LedgerKind = LedgerKind.EMBEDDED
    chain_id: int = 48125
    """Ethereum chain ID; the same for all SNs of a network."""
    join: list[str] = field(default_factory=list)
    """host:port of member SNs to join through; empty when this site founds the network or is a member already."""
    network: str = ""
    """SHA-256 of the network to join, as its members' `swarm-hpc sn` prints it; empty trusts what `join` answers."""
    admission: Admission = Admission.TRUSTED
    """How this site votes on others that ask to join."""
    power: PowerRule = PowerRule.SENIOR
    """How voting power is shared; the founder's choice holds for the network."""
    jail_after_s: int = 60
    """A site that takes no part in the consensus for this long loses its voting power until it is back; the founder's
    choice holds for the network."""
    commit_wait_ms: int = 250
    """How long a block waits for the slower sites' votes; raise it where sites are far apart."""
    geth: str = ""
    """Path of geth; empty looks at the variable GETH_BINARY, in the cache of `make geth` and in PATH."""
    cometbft: str = ""
    """Path of cometbft; empty as for geth."""
    min_free_mib: int = 512
    """Less room than this on the ledger's file system is warned of."""

    def __post_init__(self) -> None:
        at_least(self, 1, "jail_after_s", "commit_wait_ms")
        at_least(self, 0, "min_free_mib")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class SnConfig:
    """`swarm-hpc sn`: a site's swarm network node."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 30304
    """The site's one inbound port; 0 takes a free one."""
    advertise: str = ""
    """host[:port] under which other nodes reach this SN; empty means host and port, if that is one host's."""
    data_dir: str = "swarm-sn"
    """Where ledger, keys and blobs are kept; the SN's whole memory."""
    lease_s: float = 15.0
    """A node that is not heard of for this long is away: rounds no longer wait for it."""
    sentinel: bool = False
    """ledger=geth: found a new network where data_dir holds none yet. One site does; the others join it."""
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    """How long blobs are fetched from other sites' SNs."""
    identity: IdentityConfig
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        port_number(self, "port")
        positive(self, "lease_s")


SAVE_TIMEOUT_S: Final = 20.0
"""Default of program.save_timeout_s, and what a Slurm job has at least."""


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class ProgramConfig:
    """The user's own ML program, started by SL."""

    command: list[str]
    """Program and arguments; empty runs SL alone, for a program that is started by hand."""
    launcher: list[str] = field(default_factory=list)
    """Words before the command that start it, such as [numactl, --localalloc]. In them `{channel}` is the folder of
    SL's socket, and `{state}` the folder of what the program saves."""
    cwd: str = "."
    """Working directory of the program."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables added to SL's own."""
    log: str = ""
    """File that takes the program's output; empty passes it through."""
    save_timeout_s: float = SAVE_TIMEOUT_S
    """How long the program has to come to the end of a batch and to save its state when the node is told to leave."""
    stop_timeout_s: float = 10.0
    """How long the program has between SIGTERM and SIGKILL."""


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class RanksConfig:
    """The SL processes of one job that merge among themselves before their rank 0 checks in for all."""

    kind: RanksKind = RanksKind.SINGLE
    """single: this process alone is the node. mpi: all processes of the job are, each with an ML program of its own."""
    num_ranks: int = 0
    """mpi: how many processes the job has, as its launcher says (SLURM_NTASKS); MPI has to see the same number."""
    timeout_s: float = 120.0
    """mpi: a rank that is not heard of for this long is lost, and the job ends."""

    def __post_init__(self) -> None:
        positive(self, "timeout_s")
        if self.kind is RanksKind.MPI and self.num_ranks < 1:
            raise ConfigError("num_ranks: how many ranks has the job? Under Slurm: ranks.num_ranks=$SLURM_NTASKS")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class ContainerConfig:
    """Containers that programs run in. All but `kind` are for container=apptainer."""

    kind: ContainerKind = ContainerKind.NONE
    image: str = ""
    """Image of the ML program, and of SL where that is in a container: the path of a SIF file or of a sandbox folder,
    or the name of one in image_dir. Empty: sl-pytorch or sl-keras, by the platform of the experiment."""
    sn_image: str = "sn"
    """swarm-hpc local: image of the SNs."""
    image_dir: str = ""
    """Folder of the images that have names; empty: the one where `swarm-hpc image build` leaves them."""
    sl: SlPlace = SlPlace.CONTAINER
    """host: SL runs on the node itself. container: in a container of its own."""
    binds: list[str] = field(default_factory=list)
    """Further folders and files that the ML program sees, as SOURCE, SOURCE:TARGET or SOURCE:TARGET:rw; read-only
    without rw."""
    bind_named: bool = True
    """The ML program sees the folders of the files that its command line names, too; one of SWOP's tasks never does."""
    public_key: str = ""
    """PEM file: only images that are signed with its private key are started; empty: any."""
    apptainer: str = ""
    """Path of apptainer; empty looks for it in PATH and in the cache of `make apptainer`."""

    def __post_init__(self) -> None:
        one_line(self)

    def of(self, platform: Platform) -> ContainerConfig:
        """With the image for programs of that platform, where none is given."""
        return replace(self, image=self.image or f"sl-{platform}")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class JobConfig:
    """What this node is run by and with, for the ledger's record of each check-in."""

    id: str = ""
    """ID of the job; empty where there is none."""
    image: str = ""
    """Digest (sha256:...) of the container image that the ML program runs in; empty: none, or a sandbox."""
    num_gpus: int = 0
    """How many GPUs the job holds: their time is counted, used or not."""

    def __post_init__(self) -> None:
        image_digest(self, "image")
        at_least(self, 0, "num_gpus")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """`swarm-hpc image`: building and keeping container images."""

    image_dir: str = ""
    """Folder of the images; empty: the folder images in the cache folder."""
    apptainer: str = ""
    """Path of apptainer; empty looks for it in PATH and in the cache of `make apptainer`."""
    base: str = "debian"
    """What images are built on. debian: this host's own Debian or Ubuntu, from the mirror that its apt uses. registry:
    the python image of a registry. Else the path of an image with Python 3.11-3.13."""
    level: int = 1
    """Compression (zstd) of SIF files, 1-22: 1 packs quickly, more than 3 hardly makes them smaller."""
    timeout_s: float = 3600.0
    """The longest that one step of a build may take."""

    def __post_init__(self) -> None:
        one_line(self)
        positive(self, "timeout_s")
        if not 1 <= self.level <= 22:
            raise ConfigError(f"level: {self.level} is outside 1-22")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class LicenseConfig:
    """The seat that an SL node trains on. All but `kind` are for license=server."""

    kind: LicenseKind = LicenseKind.NONE
    server: str = ""
    """host:port of the consortium's licence server."""
    wait_s: float = 0.0
    """How long a node that starts waits for a free seat; 0: it ends at once where there is none."""
    grace_s: float = 900.0
    """How long a node trains on while the licence server cannot be reached."""

    def __post_init__(self) -> None:
        at_least(self, 0, "wait_s")
        positive(self, "grace_s")
        if self.kind is LicenseKind.SERVER and not self.server:
            raise ConfigError("server: host:port of the licence server; give license.server=HOST:5814")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class LicenseServerConfig:
    """`swarm-hpc license`: the consortium's licence server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 5814
    """Its inbound port; 0 takes a free one."""
    data_dir: str = "swarm-license"
    """Where the licence and who has seats are kept."""
    public_key: str = ""
    """PEM file of the owner's public key: only licences that are signed with its private key count."""
    lease_s: float = 60.0
    """The seats of a node that is not heard of for this long are free again."""
    warn_days: float = 14.0
    """So many days before the licence ends the log and the status begin to say so."""
    identity: IdentityConfig

    def __post_init__(self) -> None:
        port_number(self, "port")
        positive(self, "lease_s")
        at_least(self, 0, "warn_days")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class SlConfig:
    """`swarm-hpc sl`: a swarm learning node beside one ML program."""

    name: str
    """This node's name, site/sl/name; it must lie in the site of its certificate."""
    sn: str
    """host:port of the site's SN."""
    state_dir: str
    """Where this node keeps its instance ID, its blobs and the socket for the ML program."""
    node_weight: int = 1
    """Weight of this node's parameters in a merge, 1-100, where the ML program does not say."""
    left_file: str = ""
    """Made when the node has left because of SIGUSR2, its training unfinished: its job is to come back. Empty: none."""
    identity: IdentityConfig
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    license: LicenseConfig = field(default_factory=LicenseConfig)
    container: ContainerConfig = field(default_factory=ContainerConfig)
    job: JobConfig = field(default_factory=JobConfig)
    program: ProgramConfig

    def __post_init__(self) -> None:
        node_name(self, "name")
        weight(self, "node_weight")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """`conf/experiment/*.yaml`: a training program with its data, as `swarm-hpc local` runs it.

    In both command lines `{examples}` is the folder of the examples and the word `python` the running interpreter.
    """

    name: str
    """Short name; also the name of the training contract."""
    title: str = ""
    """One line on what is trained on which data."""
    metric: str
    """What the result is called, such as accuracy."""
    platform: Platform
    """The framework of the training program."""
    prepare: list[str]
    """Program that makes a folder of data per site, and one named pooled with all of it; it is called with
    `OUT_DIR --sites N --names A,B,... --seed S`."""
    train: list[str]
    """The training program of every site. It gets SITE, SEED, DATA_DIR and SCRATCH_DIR in its environment and leaves
    SCRATCH_DIR/result.json, an object with the metric as `value`."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of both programs."""
    max_sites: int = 24
    """How many sites the data can be dealt out to."""

    def __post_init__(self) -> None:
        label(self, "name")

    def fill(self, words: Sequence[str], examples: Path, python: str = sys.executable) -> list[str]:
        """`prepare` or `train` as it is run here, or with another interpreter and other examples: a container's."""
        filled = [word.replace("{examples}", str(examples)) for word in words]
        return [python if word == "python" else word for word in filled]


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class LocalConfig:
    """`swarm-hpc local`: a whole swarm of several sites on this host."""

    experiment: ExperimentConfig
    sites: Annotated[int, Field(ge=1)] = 4
    """How many sites take part."""
    seed: int = 0
    """Seed of the data split and of the programs."""
    run_dir: str = ""
    """Folder of this run; empty for runs/<experiment>-<time>. An existing one must be empty."""
    baselines: bool = True
    """Also train each site alone and one model on the pooled data, to compare with."""
    timeout_s: float = 1800.0
    """The longest that the whole run may take."""
    lease_s: float = 15.0
    """A node that is not heard of for this long is away: rounds no longer wait for it."""
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    container: ContainerConfig = field(default_factory=ContainerConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "sites")
        positive(self, "timeout_s", "lease_s")
        if self.sites > self.experiment.max_sites:
            raise ConfigError(
                f"sites: {self.sites} is more than {self.experiment.name} has: {self.experiment.max_sites}"
            )
        if self.round.min_peers > self.sites:
            raise ConfigError(
                f"round.min_peers: {self.round.min_peers} is more than the {self.sites} sites: no round would end"
            )
        enough_peers(self.merge, self.round)


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class SiteConfig:
    """`conf/site/*.yaml`: a site and its Slurm cluster. Empty text leaves the cluster's own default."""

    name: str
    """Name of the site, as in its certificates."""
    sn: str = ""
    """host:port of the site's SN, as the compute nodes reach it."""
    sn_file: str = ""
    """Where the SN runs as a job: the endpoint.json in its data_dir, which says where it is; goes with an empty sn."""
    identity: IdentityConfig
    """Certificate of the site's jobs: one of kind sl serves all their tasks."""
    data_dir: str = "data"
    """Folder on the shared file system with a folder of training data per experiment."""
    run_dir: str = "runs"
    """Folder on the shared file system for what jobs leave: logs, results, and the state that survives a requeue."""
    command: str = "swarm-hpc"
    """How swarm-hpc is called on a compute node, after `setup`."""
    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    """Time limit, such as 12:00:00 or 2-00:00:00."""
    constraint: str = ""
    """Features that the nodes must have."""
    reservation: str = ""
    licenses: str = ""
    """Slurm licences that a job holds while it runs, such as swarm:1."""
    nodes: int = 1
    tasks_per_node: int = 1
    """One SL with one ML program each."""
    cpus_per_task: int = 1
    """Also the number of threads that the ML program is told to use."""
    mem: str = ""
    """Memory per node, such as 64G."""
    gpus_per_task: int = 0
    """GPUs of each task; 0 asks for none this way (see also gres)."""
    gres: str = ""
    """Generic resources per node, such as gpu:a100:4, on clusters that want them named so."""
    sbatch: list[str] = field(default_factory=list)
    """Further options of sbatch, such as --exclusive; each becomes a #SBATCH line."""
    modules: list[str] = field(default_factory=list)
    """Modules to load, in this order."""
    setup: list[str] = field(default_factory=list)
    """Lines of bash to run before the tasks start, after the modules: such as source venv/bin/activate."""
    mpi: str = "none"
    """What srun --mpi is given: none, pmi2, pmix. With MPI a job's tasks merge among themselves and are one node."""
    scratch: str = ""
    """Folder on the compute nodes' own disks; TMPDIR then is a folder of the job in it. May hold $USER and the like."""
    requeue: bool = True
    """Slurm may put the job back into the queue, after a preemption or a node failure."""
    warning_s: int = 120
    """So many seconds before its time limit the job saves its state and goes back into the queue, under the same ID; 0:
    it ends there."""

    def __post_init__(self) -> None:
        label(self, "name")
        if bool(self.sn) == bool(self.sn_file):
            raise ConfigError("sn: give the host:port of the site's SN, or sn_file, but not both")
        at_least(self, 1, "nodes", "tasks_per_node", "cpus_per_task")
        at_least(self, 0, "gpus_per_task", "warning_s")
        one_line(self)
        for number, option in enumerate(self.sbatch):
            if not option.startswith("-"):
                raise ConfigError(f"sbatch.{number}: {option!r} is no option of sbatch: write it as --name=value")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class SubmitConfig:
    """`swarm-hpc submit`, and each task of the job: one site's part in a training."""

    experiment: ExperimentConfig
    site: SiteConfig
    seed: int = 0
    """Seed of the training programs."""
    data_dir: str
    """Folder of this training's data; the programs' DATA_DIR. Empty: that is not set."""
    node_weight: int = 1
    """Weight of each task's parameters in a merge, 1-100, where the ML program does not say."""
    poll_s: float = 5.0
    """--wait: how often Slurm is asked how the job does."""
    wait_s: float = 604800.0
    """--wait: how long the job is followed at most; it goes on by itself."""
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    license: LicenseConfig = field(default_factory=LicenseConfig)
    container: ContainerConfig = field(default_factory=ContainerConfig)

    def __post_init__(self) -> None:
        weight(self, "node_weight")
        positive(self, "poll_s", "wait_s")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class FollowConfig:
    """How a SWOP follows its taskrunner, and what it says there."""

    poll_s: float = 5.0
    """How often it looks how jobs and processes do."""
    report_s: float = 30.0
    """How often it reports progress at most: each time is a transaction. What has begun or ended is told at once."""
    share_log_lines: int = 5
    """How many lines of a failed program's log go onto the ledger, which all sites read and which forgets nothing; 0:
    the reason and the log's last line only."""

    def __post_init__(self) -> None:
        positive(self, "poll_s", "report_s")
        at_least(self, 0, "share_log_lines")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class SwopConfig:
    """`swarm-hpc swop`: a site's node that does the tasks of a taskrunner."""

    profile: str
    """The SWOP profile: YAML, as for HPE Swarm Learning."""
    name: str
    """This node's name, site/swop/name; it must lie in the site of its certificate."""
    sn: str = ""
    """host:port of the site's SN; empty: that of the profile (apisrv)."""
    state_dir: str = "swarm-swop"
    """Folder for all that it starts, on the file system that the cluster shares; a new SWOP finds it there."""
    volumes_dir: str = ""
    """Folder of the volumes that tasks make and use; empty: volumes in state_dir."""
    executor: ExecutorKind = ExecutorKind.SLURM
    identity: IdentityConfig
    site: SiteConfig
    """What jobs ask Slurm for; its identity is that of the SL nodes, where the profile names none."""
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    license: LicenseConfig = field(default_factory=LicenseConfig)
    container: ContainerConfig = field(default_factory=ContainerConfig)
    follow: FollowConfig = field(default_factory=FollowConfig)

    def __post_init__(self) -> None:
        node_name(self, "name")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class ClientConfig:
    """`swarm-hpc status` and `swarm-hpc verify`: which SN to ask, and as whom."""

    sn: str
    """host:port of the SN."""
    identity: IdentityConfig
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class SwciWebConfig:
    """`swci --web`: commands over HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 30306
    """Its port; 0 takes a free one."""
    max_sessions: int = 64
    """Each client certificate has a session; the one that was not used for the longest time makes room."""
    command_timeout_s: float = 7500.0
    """The longest that one command may take; longer than the two limits of WAIT FOR TASKRUNNER."""

    def __post_init__(self) -> None:
        port_number(self, "port")
        at_least(self, 1, "max_sessions")
        positive(self, "command_timeout_s")


@with_config(_STRICT)
@dataclass(kw_only=True, slots=True)
class SwciConfig:
    """`swci`: the command interface."""

    sn: str = ""
    """host:port of the SN that the context `default` stands for; empty: there is no such context."""
    identity: IdentityConfig
    """A certificate of kind swci."""
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    usr_dir: str = "."
    """Folder where the session starts, and which a web session does not leave; /platform/swarm/usr of HPE's scripts."""
    history: str = "~/.swci_history"
    """File with the lines that were typed in the shell; empty keeps none."""
    run_task_max_wait_min: float = 120.0
    """WAIT FOR TASKRUNNER: the longest wait for a RUN_SWARM task, in minutes."""
    generic_task_max_wait_min: float = 120.0
    """WAIT FOR TASKRUNNER: the longest wait for any other task, in minutes."""
    web: SwciWebConfig = field(default_factory=SwciWebConfig)

    def __post_init__(self) -> None:
        positive(self, "run_task_max_wait_min", "generic_task_max_wait_min")


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def load(cls: type[T], values: object) -> T:
    """Plain values (from YAML) as a settings object; ConfigError names the first key that does not fit."""
    try:
        settings: T = _adapter(cast("Any", cls)).validate_python(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        inner = first.get("ctx", {}).get("error")
        key = ".".join(str(part) for part in first["loc"])
        if isinstance(inner, ConfigError):
            raise ConfigError(f"{key}.{inner}" if key else str(inner)) from exc
        if first["type"] == "unexpected_keyword_argument":
            raise ConfigError(f"{key}: there is no such setting") from exc
        if first["type"] == "missing":  # its input is all that is there, variables with tokens among it
            raise ConfigError(f"{key}: no value") from exc
        raise ConfigError(f"{key}: {first['msg']} (it is {first['input']!r})") from exc
    return settings


def positive(settings: object, *keys: str) -> None:
    """Refuse zero and negative numbers."""
    for key in keys:
        if getattr(settings, key) <= 0:
            raise ConfigError(f"{key}: {getattr(settings, key)} must be greater than 0")


def at_least(settings: object, least: int, *keys: str) -> None:
    """Refuse numbers below `least`."""
    for key in keys:
        if getattr(settings, key) < least:
            raise ConfigError(f"{key}: {getattr(settings, key)} must be at least {least}")


def weight(settings: object, key: str) -> None:
    """Refuse what is no weight of a node."""
    if not 1 <= getattr(settings, key) <= 100:
        raise ConfigError(f"{key}: {getattr(settings, key)} is outside 1-100")


def enough_peers(merge: Merge, rules: RoundConfig) -> None:
    """Refuse rounds that may close with fewer nodes than the merge takes."""
    if rules.min_peers < merge.least_peers:
        raise ConfigError(
            f"round.min_peers: {rules.min_peers} nodes are too few to merge by {merge}: it takes {merge.least_peers}"
        )


def port_number(settings: object, key: str) -> None:
    """Refuse what is no TCP port."""
    if not 0 <= getattr(settings, key) <= 65535:
        raise ConfigError(f"{key}: {getattr(settings, key)} is not a port number (0-65535)")


def label(settings: object, key: str) -> None:
    """Refuse names that could not stand on the ledger, in a URL and in a file name."""
    if not LABEL.fullmatch(getattr(settings, key)):
        raise ConfigError(f"{key}: {getattr(settings, key)!r}: use letters, digits, '.', '_', '-', at most 63")


def node_name(settings: object, key: str) -> None:
    """Refuse what is no node's name."""
    try:
        NodeName.parse(getattr(settings, key))
    except ValueError as exc:
        raise ConfigError(f"{key}: {exc}") from exc


def image_digest(settings: object, key: str) -> None:
    """Refuse what is no digest of an image, nor empty."""
    value = getattr(settings, key)
    if value and not IMAGE_DIGEST.fullmatch(value):
        raise ConfigError(f"{key}: {value!r} is no image's digest: sha256: and 64 hex digits (swarm-hpc image list)")


def one_line(settings: object) -> None:
    """Refuse texts of several lines: each becomes a line, or a part of one, in a file that is read line by line."""
    for one in fields(cast("Any", settings)):
        value = getattr(settings, one.name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and len(text.splitlines()) > 1:
                raise ConfigError(f"{one.name}: {text!r} has more than one line")
