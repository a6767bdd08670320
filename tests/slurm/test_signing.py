"""Signing images, with a stand-in for Apptainer that writes down the key it was given."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.slurm.images import Image, digest_of, read_record, record_image
from swarm_hpc.slurm.signing import sign
from tests.slurm.stand_ins import calls, put
from tests.slurm.test_images import RECORD

APPTAINER = 'echo "$@" >>"$0.calls"; cat "$3" >"$0.key"; echo signed >>"$4"'


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "images" / "sn.sif"
    path.parent.mkdir()
    path.write_bytes(b"sn\n")
    return Image("sn", path, is_sandbox=False)


@pytest.fixture
def apptainer(tmp_path):
    return put(tmp_path / "apptainer", APPTAINER)


def key_file(tmp_path, passphrase=""):
    key = ed25519.Ed25519PrivateKey.generate()
    how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    file = tmp_path / "key.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    return file, key.public_key().public_bytes_raw()


@pytest.mark.parametrize("passphrase", ["", "hush"])
def test_apptainer_gets_the_plain_key_and_the_image_another_digest(tmp_path, image, apptainer, passphrase):
    file, public = key_file(tmp_path, passphrase)
    record_image(image, RECORD)
    digest = sign(image, file, apptainer, passphrase=passphrase, timeout_s=30)
    given = load_pem_private_key((tmp_path / "apptainer.key").read_bytes(), None)
    assert given.public_key().public_bytes_raw() == public
    assert image.path.read_bytes() == b"sn\nsigned\n"
    assert digest == digest_of(image) == read_record(image.path).digest


def test_the_key_is_neither_on_the_command_line_nor_on_a_disk(tmp_path, image, apptainer):
    file, _ = key_file(tmp_path, "hush")
    sign(image, file, apptainer, passphrase="hush", timeout_s=30)
    (words,) = calls(apptainer)
    assert words.split()[:2] == ["sign", "--key"]
    assert words.split()[2].startswith("/dev/fd/")
    assert os.listdir(image.path.parent) == ["sn.sif"]


def test_an_image_that_is_in_use_is_not_written_to(tmp_path, image, apptainer):
    with image.path.open("rb") as used:
        sign(image, key_file(tmp_path)[0], apptainer, passphrase="", timeout_s=30)
        assert used.read() == b"sn\n"


@pytest.mark.parametrize(("made_with", "given"), [("hush", ""), ("hush", "loud"), ("", "hush")])
def test_a_wrong_passphrase_is_told_with_its_variable(tmp_path, image, apptainer, made_with, given):
    file, _ = key_file(tmp_path, made_with)
    with pytest.raises(ConfigError, match=r"--key: .*key\.pem.*SWARM_HPC_IMAGE_PASSPHRASE") as refusal:
        sign(image, file, apptainer, passphrase=given, timeout_s=30)
    assert "loud" not in str(refusal.value)
    assert calls(apptainer) == []


def test_what_is_no_key_or_no_file_is_told(tmp_path, image, apptainer):
    with pytest.raises(ConfigError, match="cannot be read"):
        sign(image, tmp_path / "none.pem", apptainer, passphrase="", timeout_s=30)
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(ConfigError, match="is no private key in PEM"):
        sign(image, tmp_path / "text.pem", apptainer, passphrase="", timeout_s=30)
    sandbox = Image("tools", tmp_path, is_sandbox=True)
    with pytest.raises(ConfigError, match="a sandbox cannot be signed"):
        sign(sandbox, key_file(tmp_path)[0], apptainer, passphrase="", timeout_s=30)


def test_a_failure_leaves_the_image_as_it_was(tmp_path, image):
    failing = put(tmp_path / "failing", 'echo half >>"$4"; echo "FATAL: no room" >&2; exit 255')
    with pytest.raises(ContainerError, match="apptainer sign: FATAL: no room"):
        sign(image, key_file(tmp_path)[0], failing, passphrase="", timeout_s=30)
    assert image.path.read_bytes() == b"sn\n"
    assert os.listdir(image.path.parent) == ["sn.sif"]
