"""Hands out the seats: the licence as it lies in data_dir now, and the table of seats, which is kept there, too."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from swarm_hpc.durable import write
from swarm_hpc.errors import ConfigError, DiskFull, LicenseError, ProtocolError
from swarm_hpc.license import file
from swarm_hpc.license.state import Seat, Seats
from swarm_hpc.license.terms import LicenseStatus, LicenseTerms, SeatRequest, day
from swarm_hpc.records import decode, encode

log = logging.getLogger(__name__)

LICENSE_FILE: Final = "license.json"
SEATS_FILE: Final = "seats.json"
_WARN_EVERY_S: Final = 86400.0


def install(source: Path, data_dir: Path, key: Ed25519PublicKey) -> tuple[LicenseTerms, Path]:
    """Put a licence that is the owner's, and valid now, into the folder of a server, which may be running.

    LicenseError; what was there before is then left as it was. ConfigError: the folder cannot be written.
    """
    try:
        text = source.read_bytes()
    except OSError as exc:
        raise LicenseError(f"licence file {source}: cannot be read ({exc.strerror}); is it the right path?") from exc
    terms = file.parse(text, source, key)
    file.check_valid(terms, source)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        write(data_dir / LICENSE_FILE, text)
    except OSError as exc:
        raise ConfigError(f"data_dir: {data_dir}: {exc.strerror}") from exc
    return terms, data_dir / LICENSE_FILE


@dataclass(slots=True, kw_only=True)
class InstalledLicense:
    """The licence in data_dir. A file that `swarm-hpc license install` puts there counts from then on: its stamp is
    looked at whenever somebody asks, which needs no signal and misses nothing."""

    path: Path
    key: Ed25519PublicKey
    _stamp: tuple[int, int, int] | None = None
    _terms: LicenseTerms | None = None
    _error: str = ""

    def terms(self) -> LicenseTerms:
        """What it says, valid or not. LicenseError: there is none, or not by the owner."""
        self._look()
        if self._terms is None:
            raise LicenseError(self._error)
        return self._terms

    def valid_terms(self) -> LicenseTerms:
        """What it says, valid now. LicenseError."""
        terms = self.terms()
        if text := terms.problem(datetime.now(UTC)):
            raise LicenseError(f"the licence server gives out and renews no seats: {text}")
        return terms

    def _look(self) -> None:
        try:
            found = self.path.stat()
        except OSError:
            self._stamp, self._terms = None, None
            self._error = (
                f"the licence server has no licence ({self.path}): its admin runs `swarm-hpc license install FILE`"
            )
            return
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp == self._stamp:
            return
        try:
            self._terms, self._error = file.read(self.path, self.key), ""
            self._stamp = stamp
            log.info("licence %s: %d seats until %s", self._terms.id, self._terms.seats, day(self._terms.valid_until))
        except LicenseError as exc:
            # what could not be read may be readable next time, and looks the same
            self._stamp = None if isinstance(exc.__cause__, OSError) else stamp
            if str(exc) != self._error:
                log.error("%s", exc)
            self._terms, self._error = None, str(exc)


@dataclass(slots=True, kw_only=True)
class Desk:
    """What the server's handlers ask. Every change is on disk before it is answered."""

    installed: InstalledLicense
    seats: Seats
    file: Path
    warn_days: float
    _warned_at: float = field(default=float("-inf"))
    _told_problem: bool = False
    _unsaved: bool = False

    @classmethod
    def open(cls, data_dir: Path, key: Ed25519PublicKey, *, lease_s: float, warn_days: float) -> Desk:
        """The desk of that folder, with the seats that were taken when it was last closed or killed. ConfigError."""
        seats = Seats(lease_s=lease_s)
        seats.restart(_load(data_dir / SEATS_FILE), time.monotonic())
        installed = InstalledLicense(path=data_dir / LICENSE_FILE, key=key)
        return cls(installed=installed, seats=seats, file=data_dir / SEATS_FILE, warn_days=warn_days)

    @property
    def lease_s(self) -> float:
        """How long a node may be silent."""
        return self.seats.lease_s

    def acquire(self, asked: SeatRequest) -> None:
        """LicenseError: no licence, or no seat left."""
        terms = self.installed.valid_terms()
        self.expire()
        try:
            changed = self.seats.acquire(asked, terms, time.monotonic(), datetime.now(UTC))
        except LicenseError as exc:
            log.warning("refused %s: %s", asked.node, exc)
            raise
        self._save(changed=changed)
        if changed:
            log.info("%s has %d seats: %d of %d are taken", asked.node, asked.num_seats, self.seats.used, terms.seats)

    def renew(self, asked: SeatRequest) -> None:
        """LicenseError: the licence has ended, or the seat is gone."""
        self.installed.valid_terms()
        self.seats.renew(asked.node, asked.instance, time.monotonic())

    def release(self, asked: SeatRequest) -> None:
        """Give seats back; nothing where there are none."""
        changed = self.seats.release(asked.node, asked.instance)
        self._save(changed=changed)
        if changed:
            log.info("%s gave its seats back", asked.node)

    def expire(self) -> None:
        """Free the seats of those that were not heard of."""
        over = self.seats.expire(time.monotonic())
        self._save(changed=bool(over))
        for seat in over:
            log.warning("%s was not heard of for %g s: its seats are free", seat.node, self.lease_s)

    def warn(self) -> None:
        """Say in the log, once a day, that the licence ends soon; at once, and then once a day, that none holds."""
        status = self.status()
        now, is_problem = time.monotonic(), bool(status.problem)
        is_new = is_problem and not self._told_problem
        self._told_problem = is_problem
        if (status.problem or status.warning) and (is_new or now - self._warned_at >= _WARN_EVERY_S):
            self._warned_at = now
            log.warning("%s", status.problem or status.warning)

    def status(self) -> LicenseStatus:
        """Terms, and who has seats now."""
        self.expire()
        today, terms, problem = datetime.now(UTC), None, ""
        try:
            terms = self.installed.terms()
            problem = terms.problem(today)
        except LicenseError as exc:
            problem = str(exc)
        return LicenseStatus(
            terms=terms,
            problem=problem,
            warning=terms.warning(today, self.warn_days) if terms is not None else "",
            used=self.seats.used,
            holders=self.seats.holders(time.monotonic()),
        )

    def _save(self, *, changed: bool) -> None:
        """Write the table where it differs from the file, also because that failed before. DiskFull."""
        self._unsaved = self._unsaved or changed
        if not self._unsaved:
            return
        try:
            write(self.file, json.dumps(encode(self.seats.taken), indent=1).encode() + b"\n", mode=0o600)
        except OSError as exc:
            raise DiskFull(
                f"the licence server cannot write {self.file} ({exc.strerror}): its admin has to make room"
            ) from exc
        self._unsaved = False


def _load(path: Path) -> tuple[Seat, ...]:
    try:
        return decode(tuple[Seat, ...], json.loads(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, ProtocolError) as exc:
        raise ConfigError(
            f"data_dir: {path} cannot be read ({exc}); where nobody trains, remove it and start again"
        ) from exc
