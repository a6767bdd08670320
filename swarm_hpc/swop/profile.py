"""A SWOP's profile: the file of HPE Swarm Learning that says what SL nodes a site can start, read for Slurm.

Each field works, or is named in `notes` with the reason why it means nothing here, or is refused. docs/migration.md
has the table. options.py reads what is said of containers, policy.py the site's rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from swarm_hpc.records import LABEL
from swarm_hpc.swop.options import ContainerOptions, read_options
from swarm_hpc.swop.policy import Policy, policy_file, read_policy
from swarm_hpc.tasks import yaml
from swarm_hpc.tasks.file import BIND, VOLUME
from swarm_hpc.tasks.yaml import Value

MAX_NODES: Final = 256
_PLACEHOLDER: Final = re.compile(r"<[A-Z][A-Z_-]+>")
_PORT: Final = (1, 65535)


class IdentityKind(StrEnum):
    """What a file of an identity is."""

    KEY = "KEY"
    CERT = "CERT"
    CACERT = "CACERT"
    CAPATH = "CAPATH"
    SPIFFE_SOCKETPATH = "SPIFFE_SOCKETPATH"


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder at the site: an absolute path (BIND), or a path below the folder of volumes (VOLUME)."""

    path: str
    is_volume: bool = False

    def resolve(self, volumes: Path) -> Path:
        """Where it is, given the site's folder of volumes."""
        return volumes / self.path if self.is_volume else Path(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Locator:
    """Where a service is; an empty host and service: not said."""

    host: str = ""
    port: int | None = None
    service: str = ""
    """Name[:port] behind a proxy; counts before host and port."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeDefinition:
    """An SL node, with its program, that this SWOP can start."""

    index: int
    identity: Mapping[IdentityKind, Place]
    sl_host: str = ""
    """Name of the SL node; empty: the SWOP makes one up."""
    sl_ip: str = ""
    sl_port: int | None = None
    sl_fs_service: str = ""
    private_data: Place | None = None
    """What the program sees at the task's PrivateContent."""
    sl_env: Mapping[str, str] = field(default_factory=dict)
    user_env: Mapping[str, str] = field(default_factory=dict)
    user_host: str = ""
    sl_labels: Mapping[str, str] = field(default_factory=dict)
    user_labels: Mapping[str, str] = field(default_factory=dict)
    options: ContainerOptions = field(default_factory=ContainerOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What a SWOP is told of its site."""

    groupname: str
    taskrunner: str
    network: str
    policy: Policy
    sn: Locator
    license: Locator
    env: Mapping[str, str]
    """For all SLs, and for builds (http_proxy and the like)."""
    nodes: tuple[NodeDefinition, ...]
    notes: tuple[str, ...] = ()
    """What is mapped to something else, or means nothing here; to be said once when the SWOP starts."""

    def sl_env(self, node: NodeDefinition) -> dict[str, str]:
        """The variables of the node's SL."""
        return {**self.env, **node.sl_env}

    def program_env(self, node: NodeDefinition, of_task: Mapping[str, str]) -> dict[str, str]:
        """The variables of the node's program, given those of the task: the site's own count."""
        return {**of_task, **node.user_env}


def read_profile(file: Path) -> Profile:
    """The profile, with its policy. ConfigError names file, line and key; paths that are relative start at the
    profile's folder."""
    return _profile(yaml.read(file), file.absolute().parent)


def parse_profile(text: str, file: str, folder: Path) -> Profile:
    """The same of a text; `folder` is where relative paths start."""
    return _profile(yaml.parse(text, file), folder)


def _profile(document: yaml.Document, folder: Path) -> Profile:
    reader = _Reader(folder, list(document.warnings))
    return reader.profile(document.root)


class _Reader:
    def __init__(self, folder: Path, notes: list[str]) -> None:
        self._folder = folder
        self._notes = notes

    def profile(self, root: Value) -> Profile:
        needed = ("groupname", "taskrunner", "policyuri", "network", "resourcemgr", "apls", "apisrv", "envvars")
        fields = root.fields((*needed, "nodes"), ("dns",))
        self._resource_manager(fields["resourcemgr"])
        self._note("network", "nothing to choose here: jobs use the network of the cluster")
        if "dns" in fields and not fields["dns"].is_null:
            self._note("dns", "is not used: names are resolved as on the cluster's nodes")
        return Profile(
            groupname=fields["groupname"].text(most=240),
            taskrunner=fields["taskrunner"].label(),
            network=fields["network"].text(most=240),
            policy=self._policy(fields["policyuri"]),
            sn=_locator(fields["apisrv"], ("host", "port", "service")),
            license=_locator(fields["apls"], ("host", "port")),
            env=fields["envvars"].variables(),
            nodes=self._nodes(fields["nodes"]),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def _policy(self, value: Value) -> Policy:
        named = value.text_or_none()
        return Policy() if named is None else read_policy(policy_file(value, self._folder))

    def _resource_manager(self, value: Value) -> None:
        fields = value.fields(("mgrtype", "accessinfo"))
        if fields["mgrtype"].choice("DOCKER", "SLURM") == "DOCKER":
            self._note("resourcemgr", "DOCKER stands for Slurm here: nodes are jobs, with Apptainer for containers")
        fields["accessinfo"].fields(("accesstype",))["accesstype"].choice("FROMENV")

    def _nodes(self, value: Value) -> tuple[NodeDefinition, ...]:
        items = value.items()
        if not 1 <= len(items) <= MAX_NODES:
            raise value.wrong(f"has {len(items)} nodes; 1 to {MAX_NODES} are allowed")
        nodes: dict[int, NodeDefinition] = {}
        for item in items:
            definition = item.fields(("slnodedef",))["slnodedef"]
            node = self._node(definition)
            if node.index in nodes:
                raise definition.wrong(f"there is a node with idx {node.index} already: give each its own")
            nodes[node.index] = node
        return tuple(nodes.values())

    def _node(self, value: Value) -> NodeDefinition:
        required = ("idx", "identity", "slhostname", "privatedata", "slenvvars", "usrenvvars", "usrhostname")
        fields = value.fields(required, _OPTIONAL)
        if "sllabels" in fields or "usrlabels" in fields:
            self._note("sllabels, usrlabels", "are kept, and mean nothing to Slurm or Apptainer")
        for key in ("slnetworkopts", "usrnetworkopts"):
            self._network_options(fields.get(key), key)
        options, notes = read_options(fields.get("usrcontaineropts"))
        self._notes.extend(notes)
        return NodeDefinition(
            index=fields["idx"].integer(0, 100_000),
            identity=self._identity(fields["identity"]),
            sl_host=self._text(fields.get("slhostname")),
            sl_ip=self._text(fields.get("slhostip")),
            sl_port=_port(fields.get("slport")),
            sl_fs_service=self._text(fields.get("slfsservice")),
            private_data=self._private_data(fields["privatedata"]),
            sl_env=fields["slenvvars"].variables(),
            user_env=fields["usrenvvars"].variables(),
            user_host=self._text(fields.get("usrhostname")),
            sl_labels=_labels(fields.get("sllabels")),
            user_labels=_labels(fields.get("usrlabels")),
            options=options,
        )

    def _identity(self, value: Value) -> dict[IdentityKind, Place]:
        found: dict[IdentityKind, Place] = {}
        for item in value.items():
            attribute = item.fields(("attribute",))["attribute"]
            by_lower = {key.lower(): one for key, one in attribute.map().items()}  # HPE's schema and examples differ
            same = Value(by_lower, attribute.kind, attribute.file, attribute.path, attribute.line)
            fields = same.fields(("atype", "src"), ("mtype", "tgt", "subpath"))
            kind = IdentityKind(fields["atype"].choice(*IdentityKind))
            if kind in found:
                raise attribute.wrong(f"{kind} is there already: name each once per node")
            found[kind] = self._place(fields["src"], fields.get("mtype"), fields.get("subpath"))
        _check_identity(value, found)
        return found

    def _private_data(self, value: Value) -> Place | None:
        if value.is_null:
            return None
        fields = value.fields(("src",), ("mType",))
        return self._place(fields["src"], fields.get("mType"), None)

    def _place(self, source: Value, kind: Value | None, sub: Value | None) -> Place:
        """`sub` is a path below."""
        path = self._text(source)
        if not path:
            raise source.wrong("is empty: give a path")
        is_volume = kind is not None and not kind.is_null and kind.choice(BIND, VOLUME) == VOLUME
        if is_volume and not LABEL.fullmatch(path):
            raise source.wrong(f"{path!r} is no name of a volume: use letters, digits, '.', '_', '-'; or mType: BIND")
        parts = [path]
        if sub is not None and (below := self._text(sub)):
            if ".." in below.split("/"):
                raise sub.wrong(f"{below!r}: '..' would lead out of {path}")
            parts.append(below.lstrip("/"))
        whole = "/".join(part for part in parts if part)
        return Place(whole if is_volume else str(self._folder / whole), is_volume)

    def _network_options(self, value: Value | None, key: str) -> None:
        if value is None:
            return
        for name, option in value.pairs():
            if name != "ip":
                raise option.wrong("there is no such option; known: ip")
            self._note(f"{key}.ip", "is not used: a job has the addresses of the cluster's node that it runs on")

    def _text(self, value: Value | None) -> str:
        text = "" if value is None else value.text_or_none() or ""
        if value is not None and (found := _PLACEHOLDER.search(text)):
            self._notes.append(f"{value.file}:{value.line}: {value.path}: {found.group()} is still to be filled in")
        return text

    def _note(self, key: str, text: str) -> None:
        self._notes.append(f"{key}: {text}")


_OPTIONAL: Final = (
    "slhostip",
    "slport",
    "slfsservice",
    "sllabels",
    "usrlabels",
    "slnetworkopts",
    "usrnetworkopts",
    "usrcontaineropts",
)


def _check_identity(value: Value, found: Mapping[IdentityKind, Place]) -> None:
    if IdentityKind.SPIFFE_SOCKETPATH in found:
        return
    if IdentityKind.KEY not in found or IdentityKind.CERT not in found:
        raise value.wrong("an SL needs an identity: KEY and CERT with CACERT or CAPATH, or SPIFFE_SOCKETPATH")
    if IdentityKind.CACERT not in found and IdentityKind.CAPATH not in found:
        raise value.wrong("CACERT or CAPATH is missing: whom the SL trusts")


def _locator(value: Value, keys: tuple[str, ...]) -> Locator:
    locator = value.fields(("locator",))["locator"]
    fields = locator.fields(keys)
    host = fields["host"].text_or_none(most=253) or ""
    service = fields["service"].text_or_none(most=253) or "" if "service" in fields else ""
    return Locator(host=host, port=_port(fields["port"]), service=service)


def _port(value: Value | None) -> int | None:
    return None if value is None or value.is_null else value.integer(*_PORT)


def _labels(value: Value | None) -> dict[str, str]:
    """Of a map, a list of maps, or a list of names."""
    if value is None:
        return {}
    if isinstance(value.content, list):
        found: dict[str, str] = {}
        for item in value.content:
            found |= _labels(item) if isinstance(item.content, dict) else _split_label(item)
        return found
    return {name: label.text_or_none() or "" for name, label in value.pairs()}


def _split_label(value: Value) -> dict[str, str]:
    name, _, text = value.text().partition("=")
    return {name: text}
