"""The body of a task as the lines that the ledger keeps: YAML that comes back exactly, one line of it per line.

Lines that somebody wrote by hand (APPEND TASK BODY) are read the same way. A text that is too long for a line goes on
in the next one, behind a backslash, which is YAML's own form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import TaskType
from swarm_hpc.tasks import yaml
from swarm_hpc.tasks.file import BIND, INLINE, VOLUME, Body, MakeUserContainer, MakeUserContent, RunSwarm, read_body

MAX_LINES: Final = 256
MAX_LINE_BYTES: Final = 160
_INDENT: Final = "    "
Plain = str | None | Sequence["Plain"] | Mapping[str, "Plain"]


def to_lines(body: Body) -> tuple[str, ...]:
    """The body as at most 256 lines of at most 160 bytes of UTF-8. ConfigError where it is longer."""
    lines = tuple(_map(_plain(body), ""))
    if len(lines) > MAX_LINES:
        raise ConfigError(
            f"the task's body takes {len(lines)} lines on the ledger, which has room for {MAX_LINES}: make it shorter "
            "(put long steps into a script of the build context, or in the image)"
        )
    return lines


def from_lines(kind: TaskType, lines: Sequence[str], task: str = "task") -> Body:
    """The body that the lines are; errors call it after `task`. ConfigError."""
    document = yaml.parse("\n".join(lines), f"body of {task}")
    return read_body(kind, document.root)


def _plain(body: Body) -> dict[str, Plain]:
    if isinstance(body, RunSwarm):
        mounts = [
            {"Src": one.source, "Tgt": one.target, "MType": VOLUME if one.is_volume else BIND}
            for one in body.shared_content
        ]
        return {
            "Command": body.command,
            "Entrypoint": body.entrypoint or None,
            "WorkingDir": body.working_dir,
            "Envvars": [{name: value} for name, value in body.env.items()] or None,
            "PrivateContent": body.private_content,
            "SharedContent": mounts or None,
        }
    if isinstance(body, MakeUserContainer):
        return {"BuildContext": body.build_context, "BuildType": INLINE, "BuildSteps": body.build_steps}
    if isinstance(body, MakeUserContent):
        operations = [
            {"Operation": one.kind, "Target": one.target, "Options": None if one.out is None else [{"Out": one.out}]}
            for one in body.operations
        ]
        return {"ContentType": body.content_type, "OpsList": operations}
    return {"Tag": body.tag, "RepoName": body.repo, "OrgAndReg": body.registry or None, "Auth": body.auth}


def _map(values: Mapping[str, Plain], indent: str, first: str | None = None) -> Iterator[str]:
    """`first` stands before the first key, in place of the indent: the dash of a list."""
    for at, (key, value) in enumerate(values.items()):
        start = first if first is not None and at == 0 else indent
        if isinstance(value, str):
            yield from _scalar(f"{start}{key}: ", value)
        elif value is None:
            yield f"{start}{key}: ~"
        elif isinstance(value, Mapping):
            yield f"{start}{key}:"
            yield from _map(value, f"{indent}  ")
        else:
            yield f"{start}{key}:"
            for item in value:
                yield from _item(item, indent)


def _item(item: Plain, indent: str) -> Iterator[str]:
    if isinstance(item, Mapping):
        yield from _map(item, f"{indent}  ", first=f"{indent}- ")
    else:
        assert isinstance(item, str)
        yield from _scalar(f"{indent}- ", item)


def _scalar(start: str, text: str) -> Iterator[str]:
    """In double quotes; over several lines where one is too short."""
    line = f'{start}"'
    for char in text:
        piece = yaml.escaped(char)
        if len(f"{line}{piece}\\".encode()) > MAX_LINE_BYTES:
            yield f"{line}\\"
            line = _INDENT
            piece = "\\ " if char == " " else piece  # a line's first blanks do not count
        line += piece
    yield f'{line}"'
