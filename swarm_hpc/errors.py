"""Every error of the project, in one tree. ``except SwarmError`` catches ours and only ours.

SwarmError
├── ConfigError                 what a user typed: unknown key, bad value, missing file      exit 2
│   ├── ContractMismatch        a node's settings differ from its training contract
│   ├── ModelMismatch           a tensor is missing, extra, or has another shape or dtype
│   └── RanksMismatch           MPI sees other ranks than the job has
├── IdentityError               certificates and authorisation                               exit 3
│   ├── CertificateMissing      no such file, or not a certificate
│   ├── CertificateExpired      not valid (any more, or yet)
│   ├── CertificateUntrusted    no CA of the trust bundle signed it
│   ├── KeyMismatch             the private key is not the certificate's
│   ├── WrongSite               a site's CA vouched for another site's name
│   └── NotAuthorized           a known peer asked for what its name does not allow
├── TransportError
│   ├── NotReachable            nobody answers                                               exit 4
│   ├── TimedOut                a wait reached its deadline                                  exit 4
│   ├── RankLost                a rank of this node's MPI job hangs or has ended             exit 4
│   ├── PortInUse
│   └── ProtocolError           the other side said something that the protocol does not know
├── BlobError
│   ├── BlobNotFound
│   ├── BlobCorrupt             the bytes are not the ones the hash names
│   └── DiskFull
├── LedgerError                 the ledger refused or could not be written
│   ├── NotFound                no such site, node, contract, round, task or taskrunner
│   ├── AlreadyExists
│   ├── DuplicateNode           a live node has that name already                            exit 3
│   ├── Fenced                  a newer incarnation of the node took over                    exit 3
│   ├── NotMember               the account does not speak for that site                     exit 3
│   ├── LedgerHalted            no blocks: too little voting power is up                     exit 4
│   ├── ContractBusy            a contract that still trains cannot be reset
│   ├── TaskRefused             a task or taskrunner is not in a state that allows the request
│   └── RoundError
│       ├── RoundClosed         the round went on without this node
│       ├── NotEnoughPeers      fewer check-ins than the contract asks for
│       ├── RoundClaimed        another node leads the round
│       ├── NotLeader           only the leader may publish
│       ├── NotShared           a round cannot be merged in shards: its leader merges it alone
│       └── TrainingOver        the contract is completed
├── SlurmError
│   ├── SlurmMissing            no Slurm here, or its controller does not answer             exit 4
│   ├── JobRefused              Slurm does not take the job                                  exit 2
│   ├── JobFailed               a job ended other than by finishing its work
│   └── NotInJob                this process is no task of a Slurm job                       exit 2
├── ContainerError              Apptainer cannot do what it was asked for
│   ├── ImageNotFound           no such image                                                exit 2
│   └── ImageRefused            an image is not the one that is wanted: digest or signature  exit 3
├── LicenseError                the licence server, or a licence file, refuses               exit 3
├── TaskFailed                  SWOP nodes could not do a task
├── MergeError                  inputs that cannot be merged (weights, counts)
└── ProgramFailed               the ML program ended with an error
"""

from typing import ClassVar


class SwarmError(Exception):
    """Base of all errors of the project. `str()` says what happened, where, and what to do next."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class ConfigError(SwarmError, ValueError):
    """Something the user typed cannot be used; the message names the key or file and the remedy."""

    exit_code = 2
    http_status = 400


class ContractMismatch(ConfigError):
    """A node asked for settings that differ from those its training contract was created with."""

    http_status = 409


class ModelMismatch(ConfigError):
    """A tensor is missing, extra, or of another shape or dtype than the contract's model; names the tensor."""

    http_status = 409


class RanksMismatch(ConfigError):
    """MPI sees another number of ranks than the job has: launcher and MPI library do not fit together."""


class IdentityError(SwarmError):
    """Certificates and authorisation."""

    exit_code = 3
    http_status = 403


class CertificateMissing(IdentityError):
    """A certificate, key or bundle file does not exist or holds no such thing."""


class CertificateExpired(IdentityError):
    """A certificate is outside its validity period."""


class CertificateUntrusted(IdentityError):
    """No CA of the trust bundle signed the certificate."""


class KeyMismatch(IdentityError):
    """The private key does not belong to the certificate."""


class WrongSite(IdentityError):
    """A CA vouched for a name of a site that is not its own."""


class NotAuthorized(IdentityError):
    """The peer is known, but its name does not allow what it asked for."""


class TransportError(SwarmError):
    """Connections between nodes."""

    http_status = 502


class NotReachable(TransportError):
    """Nobody answers at the address."""

    exit_code = 4


class TimedOut(TransportError):
    """A wait reached its deadline."""

    exit_code = 4
    http_status = 504


class RankLost(TransportError):
    """A rank of this node's MPI job hangs or has ended; the job cannot go on."""

    exit_code = 4


class PortInUse(TransportError):
    """The port to listen on belongs to another process."""


class ProtocolError(TransportError):
    """The other side sent something that the protocol does not know."""

    http_status = 400


class BlobError(SwarmError):
    """Parameter files addressed by their hash."""


class BlobNotFound(BlobError):
    """No store at hand holds the blob."""

    http_status = 404


class BlobCorrupt(BlobError):
    """The bytes do not have the hash that names them, or are no valid blob."""

    http_status = 422


class DiskFull(BlobError):
    """The file system that keeps the blobs has no room left."""

    http_status = 507


class LedgerError(SwarmError):
    """The ledger refused a transaction or could not be written."""

    http_status = 409


class NotFound(LedgerError):
    """The ledger knows no such site, node, contract, round, task or taskrunner."""

    http_status = 404


class AlreadyExists(LedgerError):
    """The name is taken."""


class DuplicateNode(LedgerError):
    """A live node has that name already."""

    exit_code = 3


class Fenced(LedgerError):
    """A newer incarnation of the same node took over; this process must stop."""

    exit_code = 3


class NotMember(LedgerError):
    """The sending account does not speak for the site it acts for."""

    exit_code = 3
    http_status = 403


class LedgerHalted(LedgerError):
    """No block can be made until more sites are up; what was asked for has not happened, or not yet. Ask again."""

    exit_code = 4
    http_status = 503


class ContractBusy(LedgerError):
    """The training contract is not completed: its name cannot be given to another training yet."""


class TaskRefused(LedgerError):
    """The task or taskrunner is not in a state that allows the request."""


class RoundError(LedgerError):
    """A round is not in a state that allows the request."""


class RoundClosed(RoundError):
    """The round went on without this node: take the merged parameters and continue with the next round."""


class NotEnoughPeers(RoundError):
    """The round cannot close: fewer check-ins than the contract asks for, or stragglers are still awaited."""


class RoundClaimed(RoundError):
    """Another node leads the round and its deadline has not passed."""


class NotLeader(RoundError):
    """Only the leader of a claimed round may publish its result."""


class NotShared(RoundError):
    """A round cannot be merged in shards, and its leader merges it alone."""


class TrainingOver(RoundError):
    """The training contract is completed: no further rounds."""


class SlurmError(SwarmError):
    """A command of Slurm failed; the message holds what it said."""


class SlurmMissing(SlurmError):
    """There is no Slurm on this host, or its controller does not answer."""

    exit_code = 4
    http_status = 503


class JobRefused(SlurmError):
    """Slurm does not take the job: a partition, account or resource that it does not have for this user."""

    exit_code = 2
    http_status = 400


class JobFailed(SlurmError):
    """A job ended other than by finishing its work."""


class NotInJob(SlurmError):
    """The process is no task of a Slurm job, although it was asked to be one."""

    exit_code = 2


class ContainerError(SwarmError):
    """Apptainer could not do what it was asked for; the message has what it said."""


class ImageNotFound(ContainerError):
    """There is no such image; the message says where it was looked for, and which there are."""

    exit_code = 2
    http_status = 404


class ImageRefused(ContainerError):
    """An image is not the one that is wanted: another digest, no signature, or not by the key that is trusted."""

    exit_code = 3
    http_status = 409


class LicenseError(SwarmError):
    """The licence server refuses a seat, or a licence file is not valid."""

    exit_code = 3
    http_status = 403


class TaskFailed(SwarmError):
    """SWOP nodes could not do a task: the text says which of them, which task and why."""

    http_status = 409


class MergeError(SwarmError):
    """Inputs that cannot be merged."""


class ProgramFailed(SwarmError):
    """The ML program ended with an error."""


def by_name(name: str) -> type[SwarmError]:
    """The class of that name, or SwarmError where there is none: how a client re-raises a server's error."""
    pending: list[type[SwarmError]] = [SwarmError]
    while pending:
        cls = pending.pop()
        if cls.__name__ == name:
            return cls
        pending.extend(cls.__subclasses__())
    return SwarmError
