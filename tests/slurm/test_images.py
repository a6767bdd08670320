"""Images as files: found by name or path, told from each other by digest, refused without the right signature."""

import hashlib
from pathlib import Path

import pytest

from swarm_hpc.errors import ConfigError, ImageNotFound, ImageRefused
from swarm_hpc.slurm.images import (
    Image,
    Record,
    check_digest,
    check_signature,
    digest_of,
    find_image,
    image_folder,
    list_images,
    read_record,
    record_image,
)
from tests.slurm.stand_ins import calls, put

RECORD = Record(key="k", version="0.1.0", commit="c", base="b", created="2026-01-31T12:00:00+00:00", apptainer="1.4.5")


def sandbox(path: Path) -> Path:
    (path / ".singularity.d").mkdir(parents=True)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two images by name: sn in both forms, tools as a sandbox; and what is no image."""
    folder = tmp_path / "images"
    sandbox(folder / "sn")
    sandbox(folder / "tools")
    sandbox(folder / ".build-x" / "half")
    sandbox(folder / ".build-y")
    (folder / "data").mkdir()
    (folder / "sn.sif").write_bytes(b"sn")
    (folder / "sn.sif.json").write_text("{}")
    return folder


def test_the_folder_is_the_configured_one_or_in_the_cache(tmp_path):
    assert image_folder("", {"SWARM_HPC_CACHE": str(tmp_path)}) == tmp_path / "images"
    assert image_folder(str(tmp_path / "mine"), {}) == tmp_path / "mine"


def test_a_name_is_a_file_before_it_is_a_sandbox(folder):
    assert find_image("sn", folder) == Image("sn", folder / "sn.sif", is_sandbox=False)
    assert find_image("tools", folder) == Image("tools", folder / "tools", is_sandbox=True)


def test_a_path_is_not_looked_for_among_the_names(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_image("sn.sif", Path("/nowhere")).path == folder / "sn.sif"
    assert find_image("./tools", Path("/nowhere")).is_sandbox
    with pytest.raises(ImageNotFound, match=r"/data: neither a SIF file nor a sandbox"):
        find_image("./data", folder)


@pytest.mark.parametrize("named", ["sl-pytorch", "data", ""])
def test_a_name_that_is_not_there_is_answered_with_those_that_are(folder, named):
    with pytest.raises(ImageNotFound, match=rf"there: sn, sn, tools\): run `swarm-hpc image build {named}`"):
        find_image(named, folder)


def test_what_is_still_being_built_is_not_listed(folder):
    assert [(one.name, one.is_sandbox) for one in list_images(folder)] == [("sn", False), ("sn", True), ("tools", True)]
    assert list_images(folder / "nowhere") == []


def test_a_file_has_a_digest_and_a_sandbox_has_none(folder):
    assert digest_of(find_image("sn", folder)) == f"sha256:{hashlib.sha256(b'sn').hexdigest()}"
    assert digest_of(find_image("tools", folder)) == ""


def test_another_digest_is_refused(folder):
    image = find_image("sn", folder)
    digest = digest_of(image)
    check_digest(image, digest)
    check_digest(image, digest.upper().replace("SHA256", "sha256"))
    image.path.write_bytes(b"sN")
    with pytest.raises(ImageRefused, match=rf"its digest is sha256:\w{{64}}, wanted is {digest}"):
        check_digest(image, digest)
    with pytest.raises(ImageRefused, match="a sandbox can change"):
        check_digest(find_image("tools", folder), digest)


def test_what_is_recorded_is_read_again_with_digest_and_size(folder):
    image = find_image("sn", folder)
    written = record_image(image, RECORD)
    assert read_record(image.path) == written
    assert (written.digest, written.size_bytes) == (digest_of(image), 2)
    tools = record_image(find_image("tools", folder), RECORD)
    assert (tools.digest, tools.size_bytes) == ("", 0)
    assert sorted(file.name for file in folder.glob("*.json")) == ["sn.sif.json", "tools.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1, "shoe": 2}', "\xff"])
def test_a_record_that_is_none_is_as_good_as_missing(folder, text):
    (folder / "sn.sif.json").write_bytes(text.encode("latin-1"))
    assert read_record(folder / "sn.sif") is None


def test_a_signature_is_for_apptainer_to_check(folder, tmp_path):
    key = tmp_path / "key.pem"
    key.write_text("a key")
    good, bad = put(tmp_path / "good", 'echo "$@" >>"$0.calls"'), put(tmp_path / "bad", "echo FATAL: no >&2; exit 255")
    image = find_image("sn", folder)
    check_signature(image, key, good)
    assert calls(good) == [f"verify --key {key} {image.path}"]
    with pytest.raises(ImageRefused, match=r"not signed with the private key of .*key\.pem.*FATAL: no"):
        check_signature(image, key, bad)
    with pytest.raises(ImageRefused, match="a sandbox has no signature"):
        check_signature(find_image("tools", folder), key, good)
    with pytest.raises(ConfigError, match="public_key: there is no file"):
        check_signature(image, tmp_path / "none.pem", good)
