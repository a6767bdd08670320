"""What a task may name to be fetched: http, https, or a file of the host that does the task. Read here and nowhere
else, so that a policy checks exactly what is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from swarm_hpc.errors import ConfigError

FILE: Final = "file"
SCHEMES: Final = ("http", "https", FILE)
_MAX_NAME_BYTES: Final = 200


@dataclass(frozen=True, slots=True)
class Uri:
    """A URI that can be fetched."""

    text: str
    scheme: str
    host: str
    path: str
    """Decoded; of a file, its absolute path."""

    @property
    def name(self) -> str:
        """What a file of it is called; `download` where it says nothing that could be a name."""
        name = self.path.rstrip("/").rpartition("/")[2]
        is_one = name not in ("", ".", "..") and name.isprintable() and len(name.encode()) < _MAX_NAME_BYTES
        return name if is_one else "download"


def is_uri(text: str) -> bool:
    """Whether it is meant as a URI, and not as a path."""
    return "://" in text


def parse_uri(text: str) -> Uri:
    """ConfigError, which never repeats a password: what a task says can be read by all sites, for ever."""
    # one with a / in it is no password to urlsplit: whatever has an @ is not shown
    shown = "the URI" if "@" in text else repr(text)
    try:
        split = urlsplit(text)
        host, has_password = split.hostname or "", "@" in split.netloc
        _ = split.port  # ValueError
    except ValueError as exc:
        raise ConfigError("is no URI" if "@" in text else f"is no URI: {exc}") from exc
    if has_password:
        raise ConfigError(
            f"{split.scheme}://...@{host}: a name or password cannot be part of a task, which all sites can read for "
            "ever: fetch it at each site, by hand, and name it by file:///path"
        )
    if not text.isprintable() or " " in text or not text.lower().startswith(tuple(f"{one}://" for one in SCHEMES)):
        raise ConfigError(f"{shown}: give a URI that begins with http://, https:// or file:///")
    path = unquote(split.path)
    if split.scheme != FILE and not host:
        raise ConfigError(f"{shown} names no host")
    if split.scheme == FILE and (split.netloc not in ("", "localhost") or not path.startswith("/")):
        raise ConfigError(f"{shown}: a file of this host is file:///path")
    if split.scheme == FILE and (not path.isprintable() or split.query or split.fragment):
        raise ConfigError(f"{shown}: is no path of a file: write %23 for #, %3F for ?")
    return Uri(text, split.scheme, host, path)
