"""Unpacking an archive that nobody vouches for: nothing outside of the folder, no devices, no more than is allowed."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from swarm_hpc.errors import ConfigError, DiskFull, SwarmError

_CHUNK_BYTES: Final = 1 << 20
_MAX_MEMBERS: Final = 5_000_000
_MAX_PATH_BYTES: Final = 3000
"""Of a member, from the root on: well below the 4096 that a system call takes, so that a check of links is complete."""


def extract(archive: Path, folder: Path, max_bytes: int) -> int:
    """Unpack a zip or tar file (also gz, bz2, xz) into `folder`; how many members. ConfigError, DiskFull."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            return _unzip(archive, folder, max_bytes)
        return _untar(archive, folder, max_bytes)
    except SwarmError:  # ConfigError is a ValueError, too
        raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as exc:
        raise ConfigError(f"{archive.name}: is no zip or tar file that can be unpacked: {exc}") from exc
    except (ValueError, RuntimeError, UnicodeError) as exc:  # names with NUL, zip files with a password
        raise ConfigError(f"{archive.name}: cannot be unpacked: {exc}") from exc
    except OSError as exc:
        if exc.errno in (28, 122):  # ENOSPC, EDQUOT
            raise DiskFull(f"{folder}: no room for what is in {archive.name}") from exc
        raise ConfigError(f"{archive.name}: cannot be unpacked: {exc.strerror or exc}") from exc


def inside(folder: Path, path: str) -> Path:
    """The path below `folder`, links followed. ConfigError where it leads out."""
    parts = PurePosixPath(path.lstrip("/"))
    found = folder / parts
    real = Path(os.path.realpath(folder))
    if ".." in parts.parts or "\0" in path or not Path(os.path.realpath(found)).is_relative_to(real):
        raise ConfigError(f"{path!r} leads out of the volume: give a path below it")
    return found


def _untar(archive: Path, folder: Path, max_bytes: int) -> int:
    """Links are made when all else is there, so that nothing is written through one: what `tarfile` knows of links
    can be led astray by long paths in Python before 3.11.13 (CVE-2025-4517), and by the order of links."""
    left, num, links = max_bytes, 0, list[tarfile.TarInfo]()
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            left, num = left - max(0, member.size), num + 1
            _check(archive, left, num)
            kept = tarfile.data_filter(member, str(folder))
            _check_parents(archive, folder, kept.name)
            if kept.issym():
                links.append(kept)
                continue
            if kept.islnk():
                _check_parents(archive, folder, kept.linkname)
                if not _is(folder / kept.linkname, stat.S_ISREG):
                    raise ConfigError(f"{archive.name}: {kept.name!r} links to what is no file: leave it out")
            if _is(folder / kept.name, stat.S_ISLNK):
                raise ConfigError(f"{archive.name}: {kept.name!r} is a link already: leave one of them out")
            tar.extract(kept, folder, filter="fully_trusted")
    _link(archive, folder, links)
    return num


def _link(archive: Path, folder: Path, links: Sequence[tarfile.TarInfo]) -> None:
    made: list[Path] = []
    for link in links:
        _check_parents(archive, folder, link.name)
        target = folder / link.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is(target, stat.S_ISDIR):
            raise ConfigError(f"{archive.name}: {link.name!r} is a link and a folder: leave one of them out")
        target.unlink(missing_ok=True)
        target.symlink_to(link.linkname)
        made.append(target)
    real = Path(os.path.realpath(folder))
    for target in made:  # now all of them are there
        if not Path(os.path.realpath(target)).is_relative_to(real):
            for one in made:
                one.unlink(missing_ok=True)
            raise ConfigError(f"{archive.name}: {target.name!r} leads out of the volume: leave it out")


def _check_parents(archive: Path, folder: Path, name: str) -> None:
    """That the way to a member has no link in it, and is not so long that the system no longer follows it."""
    if len(os.fsencode(os.path.realpath(folder))) + len(os.fsencode(name)) > _MAX_PATH_BYTES:
        raise ConfigError(f"{archive.name}: {name[:60]!r}... is too deep: at most {_MAX_PATH_BYTES} bytes in all")
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        raise ConfigError(f"{archive.name}: {name!r} is no path below the volume")
    at = folder
    for part in parts[:-1]:
        at /= part
        if _is(at, stat.S_ISLNK):
            raise ConfigError(f"{archive.name}: {name!r} lies behind the link {at.name!r}: give its place itself")


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _unzip(archive: Path, folder: Path, max_bytes: int) -> int:
    left, num = max_bytes, 0
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            num += 1
            _check(archive, left, num)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ConfigError(f"{archive.name}: {member.filename!r} is a link or a device: leave it out")
            if member.filename.startswith("/") or "\\" in member.filename:
                raise ConfigError(f"{archive.name}: {member.filename!r} is no path below the volume")
            target = inside(folder, member.filename)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            left = _write(zipped, member, target, left)
            target.chmod((mode & 0o755) | 0o644 if mode else 0o644)
    return num


def _write(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int) -> int:
    """What is left of the limit afterwards. What the archive says of sizes is not believed."""
    with zipped.open(member) as source, target.open("wb") as file:
        while part := source.read(_CHUNK_BYTES):
            left -= len(part)
            _check(target, left, 0)
            file.write(part)
    return left


def _check(what: Path, left: int, num: int) -> None:
    if left < 0 or num > _MAX_MEMBERS:
        raise DiskFull(f"{what.name}: holds more than is allowed here: see EXTRACT in docs/migration.md")
