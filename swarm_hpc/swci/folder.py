"""The working directory of a session: CD, LS and PWD, and the files that commands read. No process changes its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.swci.result import moment

HPE_USR_DIR: Final = PurePosixPath("/platform/swarm/usr")
"""Where SWCI's user folder is in HPE's container; scripts begin with a cd to it."""
_OPTIONS: Final = frozenset("al1")
_MAX_ENTRIES: Final = 1000


class Folder:
    """Where a session is. With `closed` it never leaves `usr_dir`, not by links either."""

    def __init__(self, usr_dir: str, *, closed: bool) -> None:
        self._root = _resolved(Path(usr_dir))
        self._closed = closed
        self.path = self._root

    def find(self, name: str) -> Path:
        """The file or folder of that name, seen from here; it may not exist. ConfigError where it must not be used."""
        if "\0" in name:
            raise ConfigError(f"{name!r} is no file name")
        asked = PurePosixPath(name)
        if asked.is_relative_to(HPE_USR_DIR) and not _exists(Path(HPE_USR_DIR)):
            found = _resolved(self._root / asked.relative_to(HPE_USR_DIR))
        else:
            found = _resolved(self.path / asked if self._closed else self.path / _without_tilde(name))
        if self._closed and not found.is_relative_to(self._root):
            raise ConfigError(f"{name}: lies outside of {self._root}, which a web session does not leave")
        return found

    def enter(self, name: str) -> None:
        """Go there. ConfigError where there is no such folder."""
        found = self.find(name)
        if not _is_folder(found):
            raise ConfigError(f"{name}: there is no folder {found}")
        self.path = found

    def read(self, name: str, max_bytes: int) -> bytes:
        """The file's bytes. ConfigError where it cannot be read, or is larger than that."""
        found = self.find(name)
        try:
            with found.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConfigError(f"{name}: {found} is no file")
                data = file.read(max_bytes + 1)
        except OSError as exc:
            raise ConfigError(f"{name}: {found}: {exc.strerror}") from exc
        if len(data) > max_bytes:
            raise ConfigError(f"{name}: {found} has more than {max_bytes} bytes")
        return data

    def save(self, name: str, data: bytes) -> Path:
        """Write a file of that name here; one that is there is replaced. ConfigError for a name with folders in it."""
        if name != PurePosixPath(name).name or name.startswith(".") or not name.isprintable() or "\\" in name:
            raise ConfigError(f"{name!r}: send the file under a plain name, such as task.yaml")
        found = self.find(name)
        beside = found.with_name(f".{found.name[:100]}.{os.getpid()}")
        try:
            beside.write_bytes(data)
            beside.rename(found)
        except OSError as exc:
            beside.unlink(missing_ok=True)
            raise ConfigError(f"{name}: {found}: {exc.strerror}") from exc
        return found

    def entries(self, words: Sequence[str]) -> tuple[str, ...]:
        """What `ls` with these words prints: names, or with -l kind, size, time and name. ConfigError."""
        options = {letter for word in words if word.startswith("-") for letter in word[1:]}
        if unknown := sorted(options - _OPTIONS):
            raise ConfigError(f"LS: there is no option -{unknown[0]}; there are -a, -l and -1")
        names = [word for word in words if not word.startswith("-")] or ["."]
        found = [self._list(name, show_hidden="a" in options) for name in names]
        paths = [path for listed in found for path in listed]
        if len(paths) > _MAX_ENTRIES:
            raise ConfigError(f"LS: {len(paths)} entries are more than {_MAX_ENTRIES}; name what you look for")
        return tuple(_line(path) if "l" in options else _name(path) for path in paths)

    def _list(self, name: str, *, show_hidden: bool) -> list[Path]:
        found = self.find(name)
        try:
            if not stat.S_ISDIR(found.stat().st_mode):
                return [found]
            return sorted(one for one in found.iterdir() if show_hidden or not one.name.startswith("."))
        except OSError as exc:
            raise ConfigError(f"{name}: {found}: {exc.strerror}") from exc


def _name(path: Path) -> str:
    """The file's name, also where it is no text."""
    return os.fsencode(path.name).decode(errors="backslashreplace")


def _line(path: Path) -> str:
    try:
        known = path.lstat()
    except OSError:
        return f"?          ? {'?':20} {_name(path)}"  # deleted since
    kind = stat.filemode(known.st_mode)[0]
    return f"{kind} {known.st_size:>10} {moment(known.st_mtime)} {_name(path)}"


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as exc:  # links that turn in a circle, half a character
        raise ConfigError(f"{str(path)!r}: {exc}") from exc


def _without_tilde(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as exc:  # ~nobody
        raise ConfigError(f"{name}: {exc}") from exc


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - raises nothing


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - raises nothing
