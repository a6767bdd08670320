"""The images that `swarm-hpc image build` makes, with the real Apptainer: what is in them, and what they do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_hpc import __version__
from swarm_hpc.errors import ImageRefused
from swarm_hpc.slurm.apptainer import as_anybody
from swarm_hpc.slurm.images import Image, check_signature, digest_of, find_image, read_record
from swarm_hpc.slurm.recipe import BASE, CONSTRAINTS, RECIPES
from swarm_hpc.slurm.signing import PASSPHRASE_VARIABLE

pytestmark = [pytest.mark.apptainer, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3600)]
NAMES = sorted(RECIPES)
COMMAND_S = 300.0
SURVEY = """
import json, os, stat, sys
from pathlib import Path
found = {"unreadable": [], "devices": [], "keys": [], "caches": [], "uncompiled": []}
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
    if folder == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys", "dev", "tmp", "root", "home")]
    for name in [*folders, *files]:
        path = Path(folder, name)
        try:
            info = path.lstat()
        except OSError:
            continue
        if os.path.ismount(path) or stat.S_ISLNK(info.st_mode):
            continue
        if folder.startswith("/opt") and not info.st_mode & 0o004:
            found["unreadable"].append(str(path))
        if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            found["devices"].append(str(path))
        if name.endswith("-key.pem") or (name.endswith((".pem", ".key")) and b"PRIVATE KEY" in path.read_bytes()):
            found["keys"].append(str(path))
        if name in (".cache", "pip-cache") or (folder.endswith("/archives") and name.endswith(".deb")):
            found["caches"].append(str(path))
import swarm_hpc
for path in Path(swarm_hpc.__file__).parent.rglob("*.py"):
    if not (path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc").exists():
        found["uncompiled"].append(str(path))
print(json.dumps({name: paths[:5] for name, paths in found.items() if paths}))
"""


def swarm_hpc(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swarm_hpc.cli", "image", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_S, stdin=subprocess.DEVNULL, env={**os.environ, **env}
    )


@pytest.fixture
def ask(apptainer: Path, images: Path):
    """What `apptainer VERB IMAGE WORDS` prints."""

    def call(verb: str, name: str, *words: str) -> str:
        # --pwd: python3 -c would import what lies in the current folder, which Apptainer shows
        options = [*as_anybody(), "--cleanenv", "--no-home", "--pwd", "/"] if verb in ("exec", "test") else []
        command = [apptainer, verb, *options, images / f"{name}.sif", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def signed(apptainer: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Path]:
    """A copy of sn that has been signed, with an encrypted key, and the public key."""
    folder = tmp_path_factory.mktemp("signed")
    shutil.copy(images / "sn.sif", folder)
    key, public = folder / "key.pem", folder / "public.pem"
    words = ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:hush", "-out", str(key)]
    subprocess.run(words, check=True, capture_output=True, timeout=COMMAND_S)
    words = ["openssl", "pkey", "-in", str(key), "-passin", "pass:hush", "-pubout", "-out", str(public)]
    subprocess.run(words, check=True, capture_output=True, timeout=COMMAND_S)
    done = swarm_hpc(
        "sign", str(folder / "sn.sif"), "--key", str(key), f"apptainer={apptainer}", **{PASSPHRASE_VARIABLE: "hush"}
    )
    assert done.returncode == 0, done.stderr
    return find_image(str(folder / "sn.sif"), folder), public


@pytest.mark.parametrize("name", [BASE, *NAMES])
def test_an_image_passes_its_own_test(ask, name):
    said = ask("test", name)
    expected = {
        BASE: "",
        "sn": "answers; ledger embedded",
        "sl-pytorch": "merged 3 models",
        "sl-keras": "on tensorflow",
    }
    assert expected[name] in said


@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_user_runs_it(apptainer, images, unprivileged, name):
    done = unprivileged.run(apptainer, "run", images / f"{name}.sif", "--version", timeout_s=COMMAND_S)
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_its_help_tells_a_newcomer_what_to_do(ask, name):
    said = ask("run-help", name)
    assert "--bind" in said
    assert "apptainer shell" in said
    assert f"apptainer test {name}.sif" in said


@pytest.mark.parametrize("name", NAMES)
def test_its_labels_say_what_it_is_and_where_it_comes_from(ask, images, name):
    labels = dict(line.split(": ", 1) for line in ask("inspect", name).splitlines() if ": " in line)
    record = read_record(images / f"{name}.sif")
    prefix = "org.opencontainers.image"
    assert labels[f"{prefix}.title"] == name
    assert labels[f"{prefix}.version"] == __version__
    assert labels[f"{prefix}.revision"] == record.commit
    assert labels[f"{prefix}.base.digest"] == record.base == read_record(images / "base.sif").digest
    assert str(Path.home()) not in json.dumps(labels)


@pytest.mark.parametrize("name", NAMES)
def test_it_holds_nothing_that_it_should_not(ask, name):
    assert json.loads(ask("exec", name, "python3", "-c", SURVEY)) == {}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_only(ask, name):
    said = ask("exec", name, "sh", "-c", "touch /opt/swarm-hpc/x /usr/x 2>/dev/null || echo cannot")
    assert said == "cannot\n"


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_installed_is_pinned(ask, name):
    installed = ask("exec", name, "cat", "/opt/swarm-hpc/requirements.txt").lower().replace("_", "-").split()
    pinned = CONSTRAINTS.read_text().lower().replace("_", "-").split()
    assert set(installed) - set(pinned) == {f"swarm-hpc=={__version__}"}


def test_each_framework_is_in_its_own_image_alone(ask):
    program = "from importlib.util import find_spec as f; print(*[bool(f(name)) for name in ('torch', 'tensorflow')])"
    assert [ask("exec", name, "python3", "-c", program) for name in ("sn", "sl-pytorch", "sl-keras")] == [
        "False False\n",
        "True False\n",
        "False True\n",
    ]


def test_paths_that_others_rely_on_are_there(ask):
    said = ask("exec", "sl-pytorch", "sh", "-c", "command -v python3; command -v swarm-hpc")
    assert said.split() == ["/opt/swarm-hpc/bin/python3", "/opt/swarm-hpc/bin/swarm-hpc"]
    assert ask("exec", "sl-pytorch", "ls", "/opt/swarm-hpc/examples/digits").split()[-2:] == ["prepare.py", "train.py"]


def test_the_hosts_python_settings_do_not_come_in(apptainer, images):
    program = "import os, sys; print('/nowhere' in sys.path, '/mine' in sys.path, sys.flags.no_user_site)"
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    for options, expected in ([], "False False 1\n"), (["--env", "PYTHONPATH=/mine"], "False True 1\n"):
        words = [apptainer, "exec", *as_anybody(), *options, images / "sn.sif", "python3", "-c", program]
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, env=env)
        assert done.stdout == expected, done.stderr


def test_a_second_build_does_nothing(images):
    before = {file: file.stat().st_mtime_ns for file in images.glob("*.sif")}
    done = swarm_hpc("build", "all", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["is_new"] for row in json.loads(done.stdout)] == [False] * 4
    assert {file: file.stat().st_mtime_ns for file in images.glob("*.sif")} == before


def test_what_was_built_is_verified_and_a_changed_byte_is_not(images, tmp_path):
    assert swarm_hpc("verify", "sn").returncode == 0
    digest = read_record(images / "sn.sif").digest
    copy = tmp_path / "sn.sif"
    shutil.copy(images / "sn.sif", copy)
    assert swarm_hpc("verify", str(copy), "--digest", digest).returncode == 0
    change_a_byte(copy)
    done = swarm_hpc("verify", str(copy), "--digest", digest)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr


def test_a_signed_image_is_verified_with_its_key_alone(apptainer, signed, tmp_path):
    image, public = signed
    done = swarm_hpc("verify", str(image.path), "--key", str(public), f"apptainer={apptainer}")
    assert done.returncode == 0, done.stderr
    assert digest_of(image) in done.stdout
    other = tmp_path / "other.pem"
    words = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(tmp_path / "key.pem")]
    subprocess.run(words, check=True, capture_output=True, timeout=COMMAND_S)
    words = ["openssl", "pkey", "-in", str(tmp_path / "key.pem"), "-pubout", "-out", str(other)]
    subprocess.run(words, check=True, capture_output=True, timeout=COMMAND_S)
    done = swarm_hpc("verify", str(image.path), "--key", str(other), f"apptainer={apptainer}")
    assert done.returncode == 3, done.stderr


def test_a_signed_image_with_a_changed_byte_and_an_unsigned_one_are_refused(apptainer, images, signed, tmp_path):
    image, public = signed
    copy = tmp_path / "sn.sif"
    shutil.copy(image.path, copy)
    change_a_byte(copy)
    with pytest.raises(ImageRefused, match="data object integrity compromised"):
        check_signature(find_image(str(copy), tmp_path), public, apptainer)
    with pytest.raises(ImageRefused, match="signature not found"):
        check_signature(find_image("sn", images), public, apptainer)


def test_an_ordinary_user_builds_on_a_base_that_is_given(apptainer, images, unprivileged):
    folder = unprivileged.home / "images"
    words = ["build", "sn", f"base={images / 'base.sif'}", f"image_dir={folder}", f"apptainer={apptainer}", "--json"]
    command = [sys.executable, "-m", "swarm_hpc.cli", "image", *words]
    done = unprivileged.run(*command, timeout_s=COMMAND_S)
    assert done.returncode == 0, done.stderr
    assert [row["is_new"] for row in json.loads(done.stdout)] == [True]
    done = unprivileged.run(*command, "--sandbox", timeout_s=COMMAND_S)
    assert done.returncode == 0, done.stderr
    said = unprivileged.run(apptainer, "exec", folder / "sn", "swarm-hpc", "--version", timeout_s=COMMAND_S)
    assert said.stdout.strip() == __version__, said.stderr


def change_a_byte(file: Path) -> None:
    """In the middle, where the packed files are."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))
