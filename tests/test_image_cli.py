"""`swarm-hpc image` on the command line: what is printed, and the exit codes. Builds are tests/slurm/test_build.py."""

import json

import pytest

from swarm_hpc import cli
from swarm_hpc.cli import settings
from swarm_hpc.config import ImageConfig
from swarm_hpc.slurm.images import Image, record_image
from tests.slurm.stand_ins import APPTAINER, put
from tests.slurm.test_images import RECORD


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache/images"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SWARM_HPC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def sn(folder):
    """An image that has been built, and its record."""
    image = Image("sn", folder / "sn.sif", is_sandbox=False)
    image.path.write_bytes(b"sn")
    return image.path, record_image(image, RECORD)


def run(capsys, *words):
    code = cli.main(["image", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_defaults_in_yaml_are_those_of_the_dataclass():
    assert settings.load(ImageConfig, "image", []) == ImageConfig()


def test_images_are_listed_for_people_and_for_machines(capsys, folder, sn):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert out.splitlines()[0] == str(folder)
    assert out.splitlines()[2].split()[:3] == ["sn", "SIF", "0"]
    code, out, _ = run(capsys, "list", "--json")
    (row,) = json.loads(out)
    assert (row["name"], row["path"], row["digest"]) == ("sn", str(sn[0]), sn[1].digest)


def test_an_image_is_listed_by_the_name_that_its_file_has(capsys, folder):
    (folder / "mine[old].sif").write_bytes(b"")
    assert run(capsys, "list")[1].splitlines()[2].split()[:2] == ["mine[old]", "SIF"]


def test_an_empty_folder_says_how_images_are_made(capsys, folder):
    assert run(capsys, "list")[1] == f"no images in {folder}; `swarm-hpc image build all` makes them\n"
    assert json.loads(run(capsys, "list", "--json")[1]) == []


def test_an_image_is_verified_against_its_record_or_a_digest(capsys, sn):
    path, record = sn
    assert run(capsys, "verify", "sn")[:2] == (0, f"{path}\n{record.digest}: as recorded when it was built or signed\n")
    assert run(capsys, "verify", str(path), "--digest", record.digest)[0] == 0
    code, out, err = run(capsys, "verify", "sn", "--digest", f"sha256:{'0' * 64}")
    assert (code, out) == (3, "")
    assert "wanted is sha256:0000" in err
    path.write_bytes(b"sN")
    assert run(capsys, "verify", "sn")[0] == 3


def test_an_image_of_which_nothing_is_known_needs_a_digest_or_a_key(capsys, sn, tmp_path):
    copied = tmp_path / "copied.sif"
    copied.write_bytes(b"sn")
    code, _, err = run(capsys, "verify", str(copied))
    assert code == 2
    assert "give --digest or --key" in err
    assert run(capsys, "verify", str(copied), "--digest", sn[1].digest)[0] == 0


def test_a_signature_is_verified_with_the_key(capsys, sn, tmp_path):
    (tmp_path / "key.pem").write_text("a key")
    good, bad = put(tmp_path / "good", APPTAINER), put(tmp_path / "bad", "echo FATAL: no >&2; exit 255")
    code, out, _ = run(capsys, "verify", "sn", "--key", "key.pem", f"apptainer={good}", "--json")
    assert (code, json.loads(out)["signed"]) == (0, True)
    code, _, err = run(capsys, "verify", "sn", "--key", "key.pem", f"apptainer={bad}")
    assert (code, err.count("\n")) == (3, 1)


@pytest.mark.parametrize("taken", ["/proc/x", "/proc/self", "cache/images/sn.sif"])
def test_a_folder_that_takes_no_image_is_named(capsys, sn, tmp_path, taken):
    apptainer = put(tmp_path / "apptainer", APPTAINER)
    code, out, err = run(capsys, "build", "base", f"apptainer={apptainer}", f"image_dir={taken}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"image_dir: {tmp_path / taken} cannot be written to (" in err


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["build"], 2, "name base, sn, sl-pytorch, sl-keras or all"),
        (["build", "sl-torch"], 2, "'sl-torch' is no image that can be built"),
        (["build", "sn", "apptainer=/nothing"], 2, "apptainer: /nothing is no program"),
        (["build", "sn", "level=99"], 2, "level: 99 is outside 1-22"),
        (["build", "sn", "bsae=registry"], 2, "did you mean base?"),
        (["list", "sn"], 2, "takes no name"),
        (["verify"], 2, "takes one name or path"),
        (["verify", "tools"], 2, "run `swarm-hpc image build tools`"),
        (["sign", "sn"], 2, "needs --key PRIVATE.pem"),
        (["bulid"], 2, "bulid"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, sn, words, code, expected):
    found, out, err = run(capsys, *words)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert expected in err
