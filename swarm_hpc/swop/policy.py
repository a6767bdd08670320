"""What a site lets tasks do: its own file (policyuri in the profile), and the check of a task against it.

Every key may be left out, and null is as good: then there is no such rule.

    types: [RUN_SWARM, MAKE_USER_CONTAINER]     # of tasks
    sites: [alpha, beta]                        # whose operators' tasks are taken
    authors: [jane, j*]                         # as the tasks say; nobody vouches for that
    outcomes: [user-env-*]                      # names of images and volumes that tasks may make
    registries: [docker.io/library/*]           # REGISTRY/REPO:TAG that PULL_IMAGE may fetch
    downloads: [https://data.example.org/*]     # URIs of MAKE_SWARM_USER_CONTENT
    paths: [/projects/swarm]                    # below which SharedContent may bind; empty list: nowhere
    max_nodes: 4                                # that a RUN_SWARM may start here
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm_hpc.errors import ConfigError, TaskRefused
from swarm_hpc.records import Task, TaskType
from swarm_hpc.tasks import yaml
from swarm_hpc.tasks.file import DOWNLOAD, Body, MakeUserContent, PullImage, RunSwarm
from swarm_hpc.tasks.uri import FILE, is_uri, parse_uri
from swarm_hpc.tasks.yaml import Value

_KEYS: Final = ("types", "sites", "authors", "outcomes", "registries", "downloads", "paths", "max_nodes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The site's rules; None: anything goes. Texts are patterns with * and ?."""

    types: tuple[TaskType, ...] | None = None
    sites: tuple[str, ...] | None = None
    authors: tuple[str, ...] | None = None
    outcomes: tuple[str, ...] | None = None
    registries: tuple[str, ...] | None = None
    downloads: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    """Folders, resolved, below which tasks may bind paths of this host."""
    max_nodes: int | None = None

    def check(self, task: Task, body: Body) -> None:
        """TaskRefused with the reason, unless the site takes the task."""
        if self.types is not None and task.type not in self.types:
            raise _refused(task, f"this site takes {', '.join(self.types) or 'no tasks'}, and not {task.type}")
        _match(task, "the site that made it", task.site, self.sites)
        _match(task, "its author", task.author, self.authors)
        if not isinstance(body, RunSwarm):
            _match(task, "what it makes", task.outcome, self.outcomes)
        if isinstance(body, PullImage):
            _match(task, "the image", image_reference(body), self.registries)
        if isinstance(body, MakeUserContent):
            for one in body.operations:
                if one.kind == DOWNLOAD or is_uri(one.target):
                    self._check_uri(task, one.target)
        if isinstance(body, RunSwarm):
            for mount in body.shared_content:
                if not mount.is_volume:
                    self._check_path(task, mount.source)

    def nodes(self, available: int) -> int:
        """How many of that many nodes a task may start."""
        return available if self.max_nodes is None else min(available, self.max_nodes)

    def _check_path(self, task: Task, path: str) -> None:
        # links are followed: what counts is what the program would see
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError) as exc:
            raise _refused(task, f"{path!r} is no path: {exc}") from exc
        if self.paths is not None and not any(real.is_relative_to(one) for one in self.paths):
            raise _refused(task, f"{path} is not below what it may bind here ({', '.join(self.paths) or 'nothing'})")

    def _check_uri(self, task: Task, text: str) -> None:
        try:
            uri = parse_uri(text)
        except ConfigError as exc:
            raise _refused(task, str(exc)) from exc
        _match(task, "what it downloads", text, self.downloads)
        if uri.scheme == FILE:
            self._check_path(task, uri.path)


def image_reference(body: PullImage) -> str:
    """REGISTRY/REPO:TAG of an image to pull."""
    registry = body.registry.strip("/")
    return f"{registry}/{body.repo}:{body.tag}" if registry else f"{body.repo}:{body.tag}"


def policy_file(value: Value, folder: Path) -> Path:
    """The file that policyuri names: a path (from `folder`) or a file:// URI of this host."""
    text = value.text()
    if not is_uri(text):
        return folder / text
    try:
        uri = parse_uri(text)
    except ConfigError as exc:
        raise value.wrong(str(exc)) from exc
    if uri.scheme != FILE:
        raise value.wrong(f"{text!r}: give a path of this host, or file:///path")
    return Path(uri.path)


def read_policy(file: Path) -> Policy:
    """The rules of a YAML file. ConfigError: also for what is not there, for a policy must not get lost."""
    return parse_policy(yaml.read(file))


def parse_policy(document: yaml.Document) -> Policy:
    """The same of a document that was read already."""
    if document.warnings:
        raise document.root.wrong(f"a rule must be there once ({document.warnings[0]})")
    fields = {key: one for key, one in document.root.fields((), _KEYS).items() if not one.is_null}
    paths = _texts(fields.get("paths"))
    if "paths" in fields and any(not one.startswith("/") for one in paths or ()):
        raise fields["paths"].wrong("paths have to begin with /")
    types = fields.get("types")
    return Policy(
        types=None if types is None else tuple(TaskType(one.choice(*_TYPES)) for one in types.items()),
        sites=_texts(fields.get("sites")),
        authors=_texts(fields.get("authors")),
        outcomes=_texts(fields.get("outcomes")),
        registries=_texts(fields.get("registries")),
        downloads=_texts(fields.get("downloads")),
        paths=None if paths is None else tuple(os.path.realpath(one) for one in paths),
        max_nodes=fields["max_nodes"].integer(0, 100_000) if "max_nodes" in fields else None,
    )


_TYPES: Final = tuple(one for one in TaskType if one is not TaskType.ROOT_TASK)


def _texts(value: Value | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(one.text() for one in value.items())


def _match(task: Task, what: str, text: str, patterns: Sequence[str] | None) -> None:
    if patterns is not None and not any(fnmatch.fnmatchcase(text, one) for one in patterns):
        raise _refused(task, f"{what}, {text!r}, is not among {', '.join(patterns) or 'nothing at all'}")


def _refused(task: Task, reason: str) -> TaskRefused:
    return TaskRefused(f"task {task.name}: the policy of this site refuses it: {reason}")
