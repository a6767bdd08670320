"""Private keys in PEM, which may be encrypted with a passphrase."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from swarm_hpc.errors import ConfigError


def parse_private_key(pem: bytes, file: Path, passphrase: str, variable: str) -> PrivateKeyTypes:
    """The key in what was read from the file that --key names. ConfigError, which names the environment `variable` that
    the passphrase is from."""
    try:
        return load_pem_private_key(pem, passphrase.encode() or None)
    except TypeError as exc:  # a passphrase is needed and there is none, or the other way round
        raise ConfigError(f"--key: {file}: {exc}; the passphrase is what {variable} holds") from exc
    except ValueError as exc:
        raise ConfigError(
            f"--key: {file} is no private key in PEM, or {variable} holds another passphrase than its own"
        ) from exc
