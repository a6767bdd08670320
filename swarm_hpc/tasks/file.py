"""Tasks as users write them: the task file, and the body of each type of task. lines.py puts a body on the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import LABEL, TaskType
from swarm_hpc.tasks import yaml
from swarm_hpc.tasks.uri import is_uri, parse_uri
from swarm_hpc.tasks.yaml import Value

MAX_TEXT: Final = 160
MAX_STEPS: Final = 80
MAX_OPERATIONS: Final = 20
MAX_SHARED: Final = 10
BIND: Final = "BIND"
VOLUME: Final = "VOLUME"
INLINE: Final = "INLINE"
DOWNLOAD: Final = "DOWNLOAD"
EXTRACT: Final = "EXTRACT"


class ContentType(StrEnum):
    """How many volumes a MAKE_SWARM_USER_CONTENT makes."""

    BUILDCONTENT = "BUILDCONTENT"
    """One per SWOP node: the context of a later MAKE_USER_CONTAINER, or what all its nodes share."""
    SWARMCONTENT = "SWARMCONTENT"
    """One per SL node of the SWOP's profile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """What a program sees at `target`: a path of the site, or one of its volumes."""

    source: str
    target: str
    is_volume: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSwarm:
    """Start the program, with an SL node each, for the SL nodes of the profile."""

    command: str
    entrypoint: str
    """Empty: that of the image."""
    working_dir: str
    env: Mapping[str, str] = field(default_factory=dict)
    private_content: str | None = None
    """Where the program sees its node's private data."""
    shared_content: tuple[Mount, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeUserContainer:
    """Build an image from lines of a Dockerfile. The task's outcome is its name."""

    build_context: str | None
    """Volume whose files COPY and ADD take; None: there are none."""
    build_steps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """A step of making a volume: a download of `target`, or the extraction of the archive `target` is."""

    kind: str
    """DOWNLOAD or EXTRACT."""
    target: str
    out: str | None = None
    """Path below the volume that takes the result; None: the volume itself, or the name of what was downloaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeUserContent:
    """Fill volumes with downloads. The task's outcome is their name."""

    content_type: ContentType
    operations: tuple[Operation, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PullImage:
    """Fetch an image of a registry. The task's outcome is its name here."""

    tag: str
    repo: str
    registry: str
    """Organisation and registry (OrgAndReg), such as `docker.io/library`."""
    auth: str | None = None
    """Path, at each site, of a config.json of docker with the registry's credentials; None: without any."""


Body = RunSwarm | MakeUserContainer | MakeUserContent | PullImage


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFile:
    """A task as its author wrote it."""

    name: str
    type: TaskType
    author: str
    prereq: str
    outcome: str
    body: Body
    warnings: tuple[str, ...] = ()


def read_task(file: Path) -> TaskFile:
    """The task of a YAML file. ConfigError names file, line and key."""
    return _task(yaml.read(file))


def parse_task(text: str, file: str) -> TaskFile:
    """The same of a text that was read already; errors call it `file`."""
    return _task(yaml.parse(text, file))


def _task(document: yaml.Document) -> TaskFile:
    fields = document.root.fields(("Name", "TaskType", "Author", "Prereq", "Outcome", "Body"))
    kind = TaskType(fields["TaskType"].choice(*_BODIES))
    return TaskFile(
        name=fields["Name"].label(),
        type=kind,
        author=_short(fields["Author"]),
        prereq=fields["Prereq"].label(),
        outcome=_short(fields["Outcome"]),
        body=read_body(kind, fields["Body"]),
        warnings=document.warnings,
    )


def read_body(kind: TaskType, value: Value) -> Body:
    """The body of a task of that type. ConfigError."""
    read = _BODIES.get(kind)
    if read is None:
        raise ConfigError(f"a task of type {kind} has no body; types that do: {', '.join(_BODIES)}")
    return read(value)


def type_of(body: Body) -> TaskType:
    """The type of task that such a body is of."""
    return _TYPES[type(body)]


def _run_swarm(value: Value) -> RunSwarm:
    fields = value.fields(("Command", "Entrypoint", "WorkingDir", "Envvars", "PrivateContent", "SharedContent"))
    shared = fields["SharedContent"]
    mounts = () if shared.is_null else tuple(_mount(item) for item in shared.items())
    if len(mounts) > MAX_SHARED:
        raise shared.wrong(f"has {len(mounts)} items; at most {MAX_SHARED} are allowed")
    return RunSwarm(
        command=_short(fields["Command"]),
        entrypoint=fields["Entrypoint"].text_or_none(most=MAX_TEXT) or "",
        working_dir=_target(fields["WorkingDir"]),
        env=fields["Envvars"].variables(),
        private_content=None if fields["PrivateContent"].text_or_none() is None else _target(fields["PrivateContent"]),
        shared_content=mounts,
    )


def _mount(value: Value) -> Mount:
    fields = value.fields(("Src", "Tgt", "MType"))
    is_volume = fields["MType"].choice(BIND, VOLUME) == VOLUME
    source = _volume(fields["Src"]) if is_volume else _short(fields["Src"])
    return Mount(source=source, target=_target(fields["Tgt"]), is_volume=is_volume)


def _user_container(value: Value) -> MakeUserContainer:
    fields = value.fields(("BuildContext", "BuildType", "BuildSteps"))
    if fields["BuildType"].choice(INLINE, "REMOTE") != INLINE:
        raise fields["BuildType"].wrong("REMOTE is not there (nor is it in HPE Swarm Learning): use INLINE")
    context, steps = fields["BuildContext"], fields["BuildSteps"]
    lines = tuple("" if step.is_null else step.text(least=0, most=MAX_TEXT) for step in steps.items())
    if not 1 <= len(lines) <= MAX_STEPS:
        raise steps.wrong(f"has {len(lines)} lines; 1 to {MAX_STEPS} are allowed")
    if broken := [step for step, line in zip(steps.items(), lines, strict=True) if "\n" in line or "\r" in line]:
        raise broken[0].wrong("is one line of a Dockerfile: give each line an item of its own")
    return MakeUserContainer(
        build_context=None if context.text_or_none() is None else _volume(context), build_steps=lines
    )


def _user_content(value: Value) -> MakeUserContent:
    fields = value.fields(("ContentType", "OpsList"))
    operations = tuple(_operation(item) for item in fields["OpsList"].items())
    if not 1 <= len(operations) <= MAX_OPERATIONS:
        raise fields["OpsList"].wrong(f"has {len(operations)} items; 1 to {MAX_OPERATIONS} are allowed")
    return MakeUserContent(content_type=ContentType(fields["ContentType"].choice(*ContentType)), operations=operations)


def _operation(value: Value) -> Operation:
    fields = value.fields(("Operation", "Target"), ("Options",))
    out = None
    if "Options" in fields:
        for name, option in fields["Options"].pairs():
            if name != "Out":
                raise option.wrong("there is no such option; known: Out")
            out = option.text_or_none(most=MAX_TEXT)
    kind, target = fields["Operation"].choice(DOWNLOAD, EXTRACT), _short(fields["Target"])
    if kind == DOWNLOAD or is_uri(target):
        try:
            parse_uri(target)
        except ConfigError as exc:
            raise fields["Target"].wrong(str(exc)) from exc
    return Operation(kind=kind, target=target, out=out)


def _pull_image(value: Value) -> PullImage:
    fields = value.fields(("Tag", "RepoName", "OrgAndReg", "Auth"))
    auth = fields["Auth"]
    if auth.kind == "map":
        auth.fields(("Username", "Password"))
        raise auth.wrong(
            "a password cannot be part of a task: every site of the network could read it on the ledger, for ever. "
            "Put a config.json of docker (made by `apptainer registry login` or `docker login`) at each site and "
            "write its path here"
        )
    return PullImage(
        tag=_short(fields["Tag"]),
        repo=_short(fields["RepoName"]),
        registry=fields["OrgAndReg"].text_or_none(most=MAX_TEXT) or "",
        auth=auth.text_or_none(most=MAX_TEXT),
    )


def _short(value: Value) -> str:
    return value.text(most=MAX_TEXT)


def _volume(value: Value) -> str:
    text = _short(value)
    if not LABEL.fullmatch(text) or ".." in text:
        raise value.wrong(f"{text!r} is no name of a volume: use letters, digits, '.', '_', '-'")
    return text


def _target(value: Value) -> str:
    text = value.text(most=MAX_TEXT)
    if not text.startswith("/") or ".." in text.split("/") or not set(text).isdisjoint(':,"\n\r'):
        raise value.wrong(f"{text!r}: a path in a container begins with / and has no '..', colon, comma or quote")
    return text


_BODIES: Final[Mapping[TaskType, Callable[[Value], Body]]] = {
    TaskType.RUN_SWARM: _run_swarm,
    TaskType.MAKE_USER_CONTAINER: _user_container,
    TaskType.MAKE_SWARM_USER_CONTENT: _user_content,
    TaskType.PULL_IMAGE: _pull_image,
}
_TYPES: Final[Mapping[type[Body], TaskType]] = {
    RunSwarm: TaskType.RUN_SWARM,
    MakeUserContainer: TaskType.MAKE_USER_CONTAINER,
    MakeUserContent: TaskType.MAKE_SWARM_USER_CONTENT,
    PullImage: TaskType.PULL_IMAGE,
}
