"""Licence files: JSON with the terms and the owner's Ed25519 signature over them, and the owner's pair of keys.

The signature is over the file's own `terms`, in one spelling: sorted keys, no spaces, UTF-8. So what a later version
adds to the terms is signed as well.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from swarm_hpc.durable import write
from swarm_hpc.errors import ConfigError, LicenseError, ProtocolError
from swarm_hpc.identity.keys import parse_private_key
from swarm_hpc.license.terms import LicenseTerms
from swarm_hpc.records import decode, encode
from swarm_hpc.transport import document

PASSPHRASE_VARIABLE: Final = "SWARM_HPC_LICENSE_PASSPHRASE"  # noqa: S105 - its name, not its value
PRIVATE_NAME: Final = "license-key.pem"
PUBLIC_NAME: Final = "license-public.pem"
MAX_BYTES: Final = 1 << 20
_PREFIX: Final = b"swarm-hpc licence 1\n"
"""Signed before the terms: a signature that the key made for something else is none for a licence."""


def make_keys(folder: Path, *, passphrase: str = "") -> tuple[Path, Path]:
    """The owner's new pair of keys: license-key.pem (mode 0600; encrypted where there is a passphrase) and
    license-public.pem. ConfigError where one is there already."""
    private, public = folder / PRIVATE_NAME, folder / PUBLIC_NAME
    for path in (private, public):
        if path.exists():
            raise ConfigError(
                f"{path}: exists already; a new key makes every licence of the old one worthless: choose another folder"
            )
    key = Ed25519PrivateKey.generate()
    how: KeySerializationEncryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how), mode=0o600)
        write(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except OSError as exc:
        raise ConfigError(f"--out: {folder} cannot be written ({exc.strerror})") from exc
    return private, public


def load_private_key(file: Path, passphrase: str) -> Ed25519PrivateKey:
    """ConfigError: no such file, no Ed25519 key in PEM, or another passphrase."""
    key = parse_private_key(_read_key(file), file, passphrase, PASSPHRASE_VARIABLE)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"--key: {file} is no Ed25519 key; `swarm-hpc license keys` makes one")
    return key


def load_public_key(file: Path) -> Ed25519PublicKey:
    """ConfigError: no such file, or no Ed25519 public key in PEM."""
    pem = _read_key(file)
    try:
        key = load_pem_public_key(pem)
    except ValueError as exc:
        raise ConfigError(f"public key {file}: holds no public key in PEM; it is the owner's {PUBLIC_NAME}") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"public key {file}: is no Ed25519 key; it is the owner's {PUBLIC_NAME}")
    return key


def sign(terms: LicenseTerms, key: Ed25519PrivateKey) -> bytes:
    """The text of a licence file."""
    values = encode(terms)
    signature = base64.b64encode(key.sign(_signed(values))).decode()
    return json.dumps({"terms": values, "signature": signature}, indent=2, ensure_ascii=False).encode() + b"\n"


def read(file: Path, key: Ed25519PublicKey | None) -> LicenseTerms:
    """The terms in a licence file that this key has signed (None: by whomever). Not whether they are valid today.

    LicenseError names file, reason and remedy.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
    except OSError as exc:
        raise LicenseError(f"licence file {file}: cannot be read ({exc.strerror}); is it the right path?") from exc
    return parse(text, file, key)


def parse(text: bytes, file: Path, key: Ed25519PublicKey | None) -> LicenseTerms:
    """As `read`, of a text that came from that file."""
    values, signature = _split(text, file)
    if key is not None:
        try:
            key.verify(signature, _signed(values))
        except InvalidSignature as exc:
            raise LicenseError(
                f"licence file {file}: is not signed with the owner's key, or was changed since; install the file "
                "as the owner sent it, and check public_key"
            ) from exc
    try:
        return decode(LicenseTerms, values)
    except ProtocolError as exc:
        raise LicenseError(f"licence file {file}: {exc}; ask the owner for a new one") from exc


def check_valid(terms: LicenseTerms, file: Path, today: datetime | None = None) -> None:
    """LicenseError where the terms have ended, or have not begun."""
    if text := terms.problem(today or datetime.now(UTC)):
        raise LicenseError(f"licence file {file}: {text}")


def _read_key(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise ConfigError(f"key {file} cannot be read ({exc.strerror}); `swarm-hpc license keys` makes a pair") from exc


def _split(text: bytes, file: Path) -> tuple[dict[str, Any], bytes]:
    """Terms and signature. LicenseError."""
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES} bytes")
        whole = document.parse(text)
        terms, signature = whole["terms"], base64.b64decode(whole["signature"], validate=True)
        if not isinstance(terms, dict):
            raise TypeError("terms is no object")
    except (ValueError, TypeError, KeyError, binascii.Error) as exc:
        raise LicenseError(
            f"licence file {file}: is no licence, or was cut short ({exc}); install the file as the owner sent it"
        ) from exc
    return terms, signature


def _signed(terms: dict[str, Any]) -> bytes:
    text = json.dumps(terms, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return _PREFIX + text.encode()
