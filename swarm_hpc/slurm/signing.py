"""Signs a SIF file with a private key in PEM, which may be encrypted: Apptainer itself takes plain ones only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from swarm_hpc.errors import ConfigError
from swarm_hpc.identity.keys import parse_private_key
from swarm_hpc.slurm.apptainer import run_program
from swarm_hpc.slurm.images import Image, digest_of, read_record, record_image

PASSPHRASE_VARIABLE: Final = "SWARM_HPC_IMAGE_PASSPHRASE"  # noqa: S105 - its name, not its value


def sign(image: Image, private_key: Path, apptainer: Path, *, passphrase: str, timeout_s: float) -> str:
    """Sign an image and return its new digest, which is also what is recorded beside it, if anything is.

    ConfigError, ContainerError; the image is as it was then, and programs that run from it go on in any case.
    """
    if image.is_sandbox:
        raise ConfigError(f"{image.path}: a sandbox cannot be signed; build it without --sandbox")
    pem = _plain_pem(private_key, passphrase)
    with TemporaryDirectory(dir=image.path.parent, prefix=".sign-") as folder:
        copy = Path(folder) / image.path.name
        shutil.copy(image.path, copy)
        _sign(copy, pem, apptainer, timeout_s)
        copy.replace(image.path)
    if record := read_record(image.path):
        return record_image(image, record).digest
    return digest_of(image)


def _sign(file: Path, pem: bytes, apptainer: Path, timeout_s: float) -> None:
    # Apptainer reads the key from memory: a decrypted one must not lie on a disk.
    fd = os.memfd_create("swarm-hpc-key", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        os.lseek(fd, 0, os.SEEK_SET)
        command = [str(apptainer), "sign", "--key", f"/dev/fd/{fd}", str(file)]
        run_program("apptainer sign", command, timeout_s=timeout_s, pass_fds=(fd,))
    finally:
        os.close(fd)


def _plain_pem(file: Path, passphrase: str) -> bytes:
    try:
        pem = file.read_bytes()
    except OSError as exc:
        raise ConfigError(f"--key: {file} cannot be read ({exc.strerror})") from exc
    key = parse_private_key(pem, file, passphrase, PASSPHRASE_VARIABLE)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
