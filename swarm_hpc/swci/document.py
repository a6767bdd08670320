"""Writes what is made from the commands' definitions: the table of docs/swci.md, and the methods of the Python client.

`python -m swarm_hpc.swci.document` in a checkout; a test checks that both files are current.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

from swarm_hpc.swci.commands import COMMANDS, SUBJECTS
from swarm_hpc.swci.grammar import Argument, Command, Subject

PACKAGE: Final = Path(__file__).parent
DOCS: Final = PACKAGE.parents[1] / "docs" / "swci.md"
METHODS: Final = PACKAGE / "methods.py"
BEGIN: Final = "<!-- made by python -m swarm_hpc.swci.document -->"
END: Final = "<!-- end of what is made -->"
_HEAD: Final = '''"""A method per command of SWCI. Made from their definitions by swci/document.py: change those.

The file is there, instead of methods made at run time, for editors and type checkers to know them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Methods(ABC):
    """The commands. Each method returns the command's data, as plain JSON values: records.py has their fields."""

    @abstractmethod
    def _do(self, method: str, **arguments: object) -> Any: ...
'''


def table() -> str:
    """All commands, a table per subject."""
    return "\n\n".join(_section(subject) for subject in SUBJECTS)


def with_table(text: str) -> str:
    """The page with its table made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{DOCS} has lost the lines that the table stands between"
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def methods() -> str:
    """The client's methods, as Python."""
    return _HEAD + "".join(_method(command) for command in COMMANDS)


def _section(subject: Subject) -> str:
    rows = [_row(command) for command in subject.commands]
    return "\n".join([f"### {subject.title}", "| command | what it does | method |", "| --- | --- | --- |", *rows])


def _row(command: Command) -> str:
    usage = command.usage.replace("|", "\\|")
    ours = " *(not in HPE's)*" if command.ours else ""
    return f"| `{usage}` | {command.help}{ours} | `{command.name}` |"


def _method(command: Command) -> str:
    arguments = sorted(command.arguments, key=lambda one: not one.required)
    parameters = ", ".join(["self", *(_parameter(command, one) for one in arguments)])
    values = ", ".join([f'"{command.name}"', *(f"{one.name}={one.name}" for one in arguments)])
    indent = " " * 8

    def wrapped(text: str) -> str:
        return textwrap.fill(text, 120, initial_indent=indent, subsequent_indent=indent)

    lines = [
        f"    def {command.name}({parameters}) -> Any:",
        wrapped(f'"""{command.help}') + "\n",
        wrapped(command.usage),
        f'{indent}"""',
        f"{indent}return self._do({values})",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _parameter(command: Command, argument: Argument) -> str:
    kind = argument.type.__name__ if argument.type in (int, float) else "str"
    if argument.required:
        return f"{argument.name}: {kind}"
    default = command.parameters[argument.name].default
    if default is None:
        return f"{argument.name}: {kind} | None = None"
    return f"{argument.name}: {kind} = {default if kind in ('int', 'float') else _quoted(str(default))}"


def _quoted(text: str) -> str:
    return f'"{text}"'


def main() -> None:
    """Write both files."""
    METHODS.write_text(methods(), encoding="utf-8")
    DOCS.write_text(with_table(DOCS.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
