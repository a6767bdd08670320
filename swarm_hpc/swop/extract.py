"""Unpacking an archive that nobody vouches for: nothing outside of the folder, no devices, no more than is allowed."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

from swarm_hpc.errors import ConfigError, DiskFull, SwarmError

_CHUNK_BYTES: Final = 1 << 20
_MAX_MEMBERS: Final = 5_000_000


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
    left, num = max_bytes, 0
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            left, num = left - max(0, member.size), num + 1
            _check(archive, left, num)
            tar.extract(member, folder, filter=_data, set_attrs=True)
    return num


def _data(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    return tarfile.data_filter(member, path)


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
        raise DiskFull(f"{what.name}: holds more than is allowed here (max_unpacked_bytes)")
