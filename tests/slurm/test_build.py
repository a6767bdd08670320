"""Building images, with stand-ins for Apptainer and uv: what is made, kept, and made anew."""

from __future__ import annotations

import fcntl
import sys
import threading

import pytest

from swarm_hpc.config import ImageConfig
from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.slurm import build, recipe
from swarm_hpc.slurm.build import Builder
from swarm_hpc.slurm.images import digest_of
from tests.slurm.stand_ins import APPTAINER, UV, calls, put


class Workshop:
    """A builder of its own folder, with programs that only pretend."""

    def __init__(self, root):
        self.root = root
        self.folder = root / "images"
        self.apptainer = put(root / "bin/apptainer", APPTAINER)
        host = f"{sys.version_info.major}.{sys.version_info.minor}"
        self.uv = put(root / "bin/uv", UV.replace("HOST", host))
        self.told = []
        (root / "python.sif").write_bytes(b"a base")

    def builder(self, **changes):
        settings = {
            "image_dir": str(self.folder),
            "apptainer": str(self.apptainer),
            "base": str(self.root / "python.sif"),
        }
        return Builder(ImageConfig(**{**settings, **changes}), {"PATH": ""}, self.told.append)

    def builds(self):
        """The names of the images that Apptainer was asked to build, in turn."""
        return [
            words.rpartition("/")[2].removesuffix(".def")
            for words in calls(self.apptainer)
            if words.startswith("build")
        ]


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setattr(build, "_as_builder", lambda: [])
    return Workshop(tmp_path)


def test_an_image_is_built_on_a_base_that_is_built_first(workshop):
    built = workshop.builder().build("sl-pytorch")
    assert workshop.builds() == ["base", "sl-pytorch"]
    assert built.is_new
    assert built.image.path == workshop.folder / "sl-pytorch.sif"
    assert built.record.digest == digest_of(built.image)
    text = built.image.path.read_text()
    assert "--bind" in text and "/content:/mnt:ro" in text
    assert "--build-arg BASE=base.sif --build-arg BASE_NAME=base --build-arg BASE_DIGEST=sha256:" in text
    assert "-all-root -comp zstd -Xcompression-level 1" in text
    assert sorted(file.name for file in workshop.folder.iterdir()) == [
        ".lock",
        "base.sif",
        "base.sif.json",
        "sl-pytorch.sif",
        "sl-pytorch.sif.json",
    ]


def test_it_is_tested_before_it_is_there(workshop):
    workshop.builder().build("sl-pytorch")
    tested = [words for words in calls(workshop.apptainer) if words.startswith("test")]
    assert len(tested) == 2
    assert all("--cleanenv --no-home" in words and "/.build-" in words for words in tested)


def test_the_same_content_is_not_built_again(workshop):
    first = workshop.builder().build("sl-pytorch")
    second = workshop.builder().build("sl-pytorch")
    assert (second.is_new, second.record) == (False, first.record)
    assert workshop.builds() == ["base", "sl-pytorch"]
    assert len(calls(workshop.uv)) == 1


def test_another_base_is_another_content(workshop):
    first = workshop.builder().build("sl-pytorch")
    (workshop.root / "python.sif").write_bytes(b"a newer base")
    second = workshop.builder().build("sl-pytorch")
    assert second.is_new
    assert second.record.key != first.record.key
    assert workshop.builds() == ["base", "sl-pytorch"] * 2


def test_the_base_of_one_image_serves_the_others(workshop):
    workshop.builder().build("sl-pytorch")
    workshop.builder().build("sl-keras")
    assert workshop.builds() == ["base", "sl-pytorch", "sl-keras"]


def test_force_makes_the_image_anew_but_not_its_base(workshop):
    workshop.builder().build("sl-pytorch")
    assert workshop.builder().build("sl-pytorch", force=True).is_new
    assert workshop.builds() == ["base", "sl-pytorch", "sl-pytorch"]


@pytest.mark.parametrize("harm", ["cut", "removed", "record"])
def test_an_image_that_is_not_whole_is_built_again(workshop, harm):
    path = workshop.builder().build("sl-pytorch").image.path
    if harm == "cut":
        path.write_text("built")
    elif harm == "removed":
        path.unlink()
    else:
        path.with_name("sl-pytorch.sif.json").write_text("{}")
    assert workshop.builder().build("sl-pytorch").is_new


def test_a_sandbox_is_kept_beside_the_file_and_replaced_as_a_whole(workshop):
    file = workshop.builder().build("sl-pytorch")
    sandbox = workshop.builder().build("sl-pytorch", sandbox=True)
    assert sandbox.image.path == workshop.folder / "sl-pytorch"
    assert sandbox.record.digest == ""
    (sandbox.image.path / "changed").touch()
    assert not workshop.builder().build("sl-pytorch", sandbox=True).is_new
    assert workshop.builder().build("sl-pytorch", sandbox=True, force=True).is_new
    assert not (sandbox.image.path / "changed").exists()
    assert not workshop.builder().build("sl-pytorch").is_new
    assert file.image.path.is_file()


def test_an_image_that_fails_its_own_test_does_not_replace_the_one_before(workshop):
    before = workshop.builder().build("sl-pytorch")
    workshop.root.joinpath("bin/apptainer.fails").touch()
    with pytest.raises(ContainerError, match=r"apptainer test: AssertionError: no loss"):
        workshop.builder().build("sl-pytorch", force=True)
    assert digest_of(before.image) == before.record.digest
    assert not list(workshop.folder.glob(".build-*"))


def test_what_a_killed_build_has_left_is_removed(workshop):
    left = workshop.folder / ".build-x" / "content"
    left.mkdir(parents=True)
    workshop.builder().build("base")
    assert not left.exists()


@pytest.mark.slow
def test_a_build_waits_for_another_one(workshop):
    builder = workshop.builder()
    workshop.folder.mkdir()
    with (workshop.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=builder.build, args=("base",))
        thread.start()
        thread.join(1)
        assert workshop.told == [f"waiting for another build into {workshop.folder}"]
        assert workshop.builds() == []
    thread.join(30)
    assert workshop.builds() == ["base"]


def test_a_build_does_not_wait_for_ever(workshop):
    builder = workshop.builder(timeout_s=0.2)
    workshop.folder.mkdir()
    with (workshop.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ContainerError, match=r"another build has not ended for 0\.2 s"):
            builder.build("base")


def test_what_cannot_be_built_is_named(workshop):
    with pytest.raises(ConfigError, match=r"'sl-torch' is no image .* base, sn, sl-pytorch, sl-keras"):
        workshop.builder().build("sl-torch")
    with pytest.raises(ConfigError, match=r"base: 'debain' is neither debian, registry nor the path of an image"):
        workshop.builder(base="debain").build("base")


def test_a_registry_is_reached_by_the_name_of_its_image(workshop):
    built = workshop.builder(base="registry").build("base")
    assert "--build-arg BOOTSTRAP=docker --build-arg FROM=python:3.11-slim-bookworm" in built.image.path.read_text()


def test_a_new_commit_with_the_same_files_is_no_new_content(workshop, monkeypatch):
    workshop.builder().build("sl-pytorch")
    monkeypatch.setattr(recipe, "_commit", lambda checkout: "another")
    assert not workshop.builder().build("sl-pytorch").is_new
