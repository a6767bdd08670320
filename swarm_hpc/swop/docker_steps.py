"""Lines of a Dockerfile as a definition file of Apptainer. What cannot be translated faithfully is refused.

Where the build runs, /mnt has `environment.sh` (variables of the build that no image is to keep, such as proxies) and
`context`, the files that COPY and ADD take. work.py sees to that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.swop.docker_words import (
    NAME,
    Text,
    Word,
    in_shell,
    is_pattern,
    literal,
    one_word,
    pattern_in_shell,
    quoted,
    split_pair,
    split_words,
    variables,
    with_values,
)

MOUNT: Final = "/mnt"
CONTEXT: Final = "context"
ENVIRONMENT: Final = "environment.sh"
REFERENCE: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(?::[0-9]+)?(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*(?:[:@][\w.:-]+)?", re.ASCII
)
"""How images of a registry are named."""
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_ARCHIVE: Final = re.compile(r"\.(tar|tgz|tbz2?|txz|tzst|tar\.\w+)$", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[\x85\u2028\u2029]|[\ud800-\udfff]")
_CONTINUES: Final = re.compile(r"\\[ \t]*$")
_ESCAPE: Final = re.compile(r"#\s*escape\s*=\s*(\S+)", re.IGNORECASE)
_PRELUDE: Final = f"""\
  {{ set +x; }} 2>/dev/null
  . {MOUNT}/{ENVIRONMENT}
  for one in 10-docker2singularity 90-environment; do
    [ ! -f "/.singularity.d/env/$one.sh" ] || . "/.singularity.d/env/$one.sh"
  done
  set -eu
  copy_into() (
    is_folder=$1; target=$2; shift 2
    for one in "$@"; do
      [ -e "$one" ] || {{ echo "COPY: the build context has no ${{one#{MOUNT}/{CONTEXT}/}}" >&2; exit 1; }}
      if [ -d "$one" ]; then mkdir -p "$target"; cp -RP "$one/." "$target/"
      elif [ "$is_folder" = 1 ] || [ -d "$target" ]; then mkdir -p "$target"; cp -RP "$one" "$target/"
      else mkdir -p "$(dirname "$target")"; cp -RP "$one" "$target"; fi
    done
  )
  set -x
  cd /"""
"""Apptainer has the shell tell each command (sh -ex), and what it tells is logged: not those that set a password."""


@dataclass(frozen=True, slots=True)
class Base:
    """What FROM names, for the header of a definition file."""

    bootstrap: str
    """localimage or docker."""
    reference: str


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition file, and what of the Dockerfile means nothing in it."""

    text: str
    notes: tuple[str, ...]


def translate(steps: Sequence[str], find_base: Callable[[str], Base], build_env: Collection[str] = ()) -> Definition:
    """The definition file of these lines. `build_env`: names of what environment.sh sets.

    ConfigError: number of the line, instruction, and what to write instead.
    """
    build = _Build(find_base, frozenset(build_env))
    for step in _instructions(steps):
        build.take(step)
    return build.definition()


def base_names(steps: Sequence[str]) -> list[str]:
    """What these lines are built on: the names after FROM. ConfigError, as translate()."""
    found: list[str] = []

    def note(name: str) -> Base:
        found.append(name)
        return Base("docker", name)

    translate(steps, note)
    return found


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    """Of its first line, from 1."""
    name: str
    rest: str

    def wrong(self, reason: str) -> ConfigError:
        return ConfigError(f"line {self.number} of the Dockerfile: {self.name}: {reason}")


def _instructions(steps: Sequence[str]) -> Iterator[_Step]:
    first, held = 0, ""
    for number, line in enumerate(steps, 1):
        if _CONTROL.search(line):
            raise ConfigError(f"line {number} of the Dockerfile: has a control character: write one line per item")
        if line.lstrip().startswith("#"):
            if not first and (told := _ESCAPE.match(line.lstrip())) and told[1] != "\\":
                raise ConfigError(f"line {number} of the Dockerfile: only a backslash can continue a line")
            continue
        if not line.strip():
            continue  # Docker goes on with the next line, too
        first = first or number
        if _CONTINUES.search(line):
            held += _CONTINUES.sub("", line)
            continue
        yield _step(first, held + line)
        first, held = 0, ""
    if held.strip():
        yield _step(first, held)


def _step(number: int, text: str) -> _Step:
    name, *rest = text.strip().split(maxsplit=1)
    step = _Step(number, name.upper()[:40], rest[0].strip() if rest else "")
    if not step.rest:
        raise step.wrong("has nothing after it")
    return step


@dataclass(slots=True)
class _Build:
    find_base: Callable[[str], Base]
    build_env: frozenset[str]
    base: Base | None = None
    early: dict[str, str] = field(default_factory=dict)
    """Arguments that are there for FROM."""
    arguments: dict[str, str] = field(default_factory=dict)
    env_names: set[str] = field(default_factory=set)
    post: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    working_dir: Word = (Text("/"),)
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    def take(self, step: _Step) -> None:
        """One more instruction."""
        if step.name in _NOTED:
            self.notes.append(f"line {step.number} of the Dockerfile: {step.name} {_NOTED[step.name]}")
            return
        if step.name not in _INSTRUCTIONS:
            known = ", ".join(_INSTRUCTIONS)
            raise step.wrong(_REFUSED.get(step.name, f"there is no such instruction; known here: {known}"))
        if self.base is None and step.name not in ("FROM", "ARG"):
            raise step.wrong("has to come after FROM")
        try:
            _INSTRUCTIONS[step.name](self, step)
        except ConfigError as exc:
            if str(exc).startswith("line "):
                raise
            raise step.wrong(str(exc)) from exc

    def definition(self) -> Definition:
        """All that was taken."""
        if self.base is None:
            raise ConfigError("the Dockerfile has no FROM: its first instruction names the image that it is built on")
        parts = [f"Bootstrap: {self.base.bootstrap}\nFrom: {self.base.reference}"]
        parts.append("\n".join(["%post", _PRELUDE, *self.post]))
        if self.environment:
            parts.append("\n".join(["%environment", *self.environment]))
        if self.labels:
            parts.append("\n".join(["%labels", *(f"  {name} {text}" for name, text in self.labels.items())]))
        if self.entrypoint is not None or self.command is not None:
            parts.append("\n".join(["%runscript", *self._runscript()]))
        return Definition("\n\n".join(parts) + "\n", tuple(self.notes))

    def _runscript(self) -> Iterator[str]:
        yield f"  cd {in_shell(self.working_dir)}"
        if self.command:
            yield f'  [ "$#" -gt 0 ] || set -- {_joined(self.command)}'
        yield f'  exec {_joined(self.entrypoint)} "$@"' if self.entrypoint else '  exec "$@"'

    def _from(self, step: _Step) -> None:
        if self.base is not None:
            raise step.wrong("several stages are not known: build the first one as a task of its own, and name it here")
        words = [literal(with_values(word, self.early)) for word in split_words(step.rest)]
        if words[0] is not None and words[0].startswith("--"):
            raise step.wrong(f"{words[0]}: options are not known here: leave it out")
        if not (len(words) == 1 or (len(words) == 3 and str(words[1]).lower() == "as")):
            raise step.wrong("takes the name of one image")
        name = words[0]
        if name is None or not REFERENCE.fullmatch(name) or ".." in name:
            raise step.wrong("is not the name of an image, or has a variable without a value")
        if name.lower() == "scratch":
            raise step.wrong("an image needs one to be built on: name one with a shell")
        self.base = self.find_base(name)

    def _arg(self, step: _Step) -> None:
        for word in split_words(step.rest):
            pair = split_pair(word)
            name, value = pair if pair else (literal(word) or "", None)
            if not NAME.fullmatch(name):
                raise step.wrong("write ARG NAME or ARG NAME=VALUE")
            known = self.early if self.base is None else self.arguments
            default = self.early.get(name) if value is None else literal(with_values(value, known))
            if value is not None and default is None:
                raise step.wrong(f"the value of {name} has a variable that is no ARG: write it out")
            if default is None or name in self.env_names or name in self.build_env:
                continue  # ENV counts more than ARG; what is for the build is set already, and is not to be kept
            known[name] = default
            if self.base is not None:
                self.post.append(f"  export {name}={quoted(default)}")

    def _env(self, step: _Step) -> None:
        first = split_words(step.rest)[0]
        if split_pair(first) is None:
            name, *rest = step.rest.split(maxsplit=1)
            value = rest[0] if rest else ""
            if not value:
                raise step.wrong("write NAME=VALUE")
            pairs = [(name, one_word(value))]
        else:
            pairs = [_pair(step, word) for word in split_words(step.rest)]
        self._check_env(step, pairs)
        for name, word in pairs:
            if secret := variables(word) & self.build_env:
                raise step.wrong(f"{secret.pop()} is for the build alone, and an image would keep it: leave it out")
            line = f"  export {name}={in_shell(with_values(word, self.arguments))}"
            self.post.append(line)
            self.environment.append(line)
        for name, _ in pairs:
            self.env_names.add(name)
            self.arguments.pop(name, None)

    def _check_env(self, step: _Step, pairs: Sequence[tuple[str, Word]]) -> None:
        set_here: set[str] = set()
        for name, word in pairs:
            if not NAME.fullmatch(name):
                raise step.wrong(f"{name[:40]!r} is no name of a variable")
            if both := variables(word) & set_here:
                raise step.wrong(f"{both.pop()} is set and used in one line: give it an ENV of its own, before")
            set_here.add(name)

    def _label(self, step: _Step) -> None:
        for word in split_words(step.rest):
            name, value = _pair(step, word)
            text = literal(with_values(value, self.arguments))
            if not _LABEL.fullmatch(name) or text is None or "{{" in text:
                raise step.wrong("a label is NAME=TEXT, with neither {{ nor a variable that is no ARG")
            if variables(value) & self.build_env:
                raise step.wrong("has a variable that is for the build alone: leave it out")
            self.labels[name] = text

    def _workdir(self, step: _Step) -> None:
        word = with_values(one_word(step.rest), self.arguments)
        first = word[0]
        if not isinstance(first, Text):
            raise step.wrong("has to begin with a plain text: write the path out")
        self.working_dir = word if first.text.startswith("/") else (*self.working_dir, Text("/"), *word)
        _check_target(step, self.working_dir)
        self.post.append(f"  mkdir -p {in_shell(self.working_dir)}; cd {in_shell(self.working_dir)}")

    def _run(self, step: _Step) -> None:
        if step.rest.startswith("--"):
            raise step.wrong("options (--mount and the like) are not known here: leave them out")
        if "<<" in step.rest and re.match(r"<<-?\s*[\w'\"]", step.rest):
            raise step.wrong("here-documents are not known: write the commands in lines that end in a backslash")
        words = _exec_form(step) or [*self.shell, step.rest]
        self.post.append(f"  {_joined(words)}")

    def _shell(self, step: _Step) -> None:
        words = _exec_form(step)
        if not words:
            raise step.wrong('takes a list: SHELL ["/bin/bash", "-c"]')
        self.shell = words

    def _copy(self, step: _Step) -> None:
        listed = _exec_form(step)
        words: list[Word] = [(Text(one),) for one in listed] if listed else split_words(step.rest)
        words = [with_values(word, self.arguments) for word in words]
        for word in words:
            if (literal(word) or "").startswith("--"):
                raise step.wrong(f"{literal(word)}: options are not known here: files of an image belong to root")
        if len(words) < 2:
            raise step.wrong("takes files of the build context, and where they go")
        *sources, target = words
        _check_target(step, target)
        for source in sources:
            _check_source(step, source)
        folder = (literal((target[-1],)) or "").endswith("/") if target else False
        if not folder and (len(sources) > 1) and literal(target) not in (".", ".."):
            raise step.wrong("several files need a folder to go to: let it end in a /")
        named = " ".join(f"{MOUNT}/{CONTEXT}/{pattern_in_shell(_relative(source))}" for source in sources)
        is_folder = folder or any(is_pattern(source) for source in sources) or len(sources) > 1
        self.post.append(f"  copy_into {int(is_folder)} {in_shell(target)} {named}")

    def _add(self, step: _Step) -> None:
        for word in split_words(step.rest):
            text = literal(word) or ""
            if "://" in text or text.startswith("git@"):
                raise step.wrong("nothing is fetched: make a volume of it (MAKE_SWARM_USER_CONTENT), or RUN curl")
            if _ARCHIVE.search(text) or is_pattern(word):
                raise step.wrong("an archive would be unpacked, or not: COPY it, and RUN tar -xf")
        self._copy(step)

    def _entrypoint(self, step: _Step) -> None:
        self.entrypoint = _exec_form(step) or [*self.shell, step.rest]

    def _cmd(self, step: _Step) -> None:
        self.command = _exec_form(step) or [*self.shell, step.rest]

    def _user(self, step: _Step) -> None:
        if step.rest.lower() not in ("root", "0", "0:0", "root:root"):
            raise step.wrong("a program runs as the user whose job it is, whatever the image says: leave it out")


_INSTRUCTIONS: Final[Mapping[str, Callable[[_Build, _Step], None]]] = {
    "FROM": _Build._from,
    "ARG": _Build._arg,
    "ENV": _Build._env,
    "LABEL": _Build._label,
    "WORKDIR": _Build._workdir,
    "RUN": _Build._run,
    "SHELL": _Build._shell,
    "COPY": _Build._copy,
    "ADD": _Build._add,
    "ENTRYPOINT": _Build._entrypoint,
    "CMD": _Build._cmd,
    "USER": _Build._user,
}
_NOTED: Final = {
    "EXPOSE": "means nothing: a container has the network of its cluster node",
    "VOLUME": "means nothing: the task says what a program sees and may write to",
    "HEALTHCHECK": "means nothing: the SL node watches the program",
    "STOPSIGNAL": "means nothing: the SL node and Slurm send the signals",
    "MAINTAINER": "means nothing: use LABEL",
}
_REFUSED: Final = {"ONBUILD": "nothing can be left for later builds: write the step where it is needed"}


def _exec_form(step: _Step) -> list[str]:
    """The words of ["a", "b"]; empty where it is not written so."""
    if not step.rest.startswith("["):
        return []
    try:
        words = json.loads(step.rest)
    except (ValueError, RecursionError):
        return []  # Docker takes it as a command for the shell, too
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise step.wrong('a list has to be of texts in double quotes: ["a", "b"]')
    if any(_CONTROL.search(word) for word in words):
        raise step.wrong("has a control character")
    return words


def _joined(words: Sequence[str] | None) -> str:
    return " ".join(quoted(word) for word in words or ())


def _pair(step: _Step, word: Word) -> tuple[str, Word]:
    pair = split_pair(word)
    if pair is None:
        raise step.wrong("write NAME=VALUE")
    return pair


def _check_target(step: _Step, word: Word) -> None:
    text = literal(word) or ""
    if text.rstrip("/") == MOUNT or text.startswith(f"{MOUNT}/"):
        raise step.wrong(f"{MOUNT} is where the build context is while an image is built: take another folder")


def _check_source(step: _Step, word: Word) -> None:
    text = literal(word) or ""
    if "://" in text or ".." in text.split("/"):
        raise step.wrong(f"{text!r}: only files of the build context can be copied")


def _relative(word: Word) -> Word:
    """Without the slashes that it begins with: / is the build context."""
    first = word[0] if word else Text("")
    return (Text(first.text.lstrip("/"), first.is_quoted), *word[1:]) if isinstance(first, Text) else word
