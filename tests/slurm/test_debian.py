"""A base from apt's mirror, with stand-ins for the programs that fetch it."""

import pytest

from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.slurm import debian
from tests.slurm.stand_ins import calls, put

INDEX = """
echo 'http://mirror/security|main|bookworm-security'
echo 'http://mirror/debian|contrib|bookworm'
echo 'http://mirror/debian|main|bookworm'
"""
# the folder of the files that it puts into the archive is its own
MMDEBSTRAP = """
echo "$@" >>"$0.calls"
while [ $# -gt 2 ]; do shift; done
mkdir -p "$0.root/dev" "$0.root/bin"
: >"$0.root/dev/null"; : >"$0.root/bin/python3"; chmod 0 "$0.root/bin/python3"
tar -C "$0.root" -cf "$1" .
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    put(folder / "apt-get", INDEX)
    put(folder / "mmdebstrap", MMDEBSTRAP)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_the_mirror_of_this_release_is_taken_and_devices_are_left_out(tmp_path, path):
    debian.make_root("bookworm", tmp_path / "root", timeout_s=30)
    (words,) = calls(path / "mmdebstrap")
    assert words.endswith(f"bookworm {tmp_path / 'root.tar'} http://mirror/debian")
    assert "--include=python3,python3-venv,ca-certificates" in words
    assert (tmp_path / "root/bin/python3").stat().st_mode & 0o600 == 0o600
    assert list((tmp_path / "root/dev").iterdir()) == []
    assert not (tmp_path / "root.tar").exists()


def test_a_release_that_apt_does_not_know_is_told(tmp_path, path):
    with pytest.raises(ContainerError, match=r"apt knows no mirror of trixie: run `apt-get update`.*base=registry"):
        debian.make_root("trixie", tmp_path / "root", timeout_s=30)


def test_without_mmdebstrap_the_other_ways_are_named(tmp_path, path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs mmdebstrap: run `make apptainer`.*base=registry, or base=PATH"):
        debian.make_root("bookworm", tmp_path / "root", timeout_s=30)


def test_the_release_is_this_hosts(tmp_path, path, monkeypatch):
    release = tmp_path / "os-release"
    release.write_text('ID=ubuntu\nVERSION_CODENAME="noble"\n')
    assert debian.suite_of(release) == "noble"
    for text in ("ID=fedora\n", 'VERSION_CODENAME=""\n'):
        release.write_text(text)
        with pytest.raises(ConfigError, match="no Debian or Ubuntu"):
            debian.suite_of(release)
    with pytest.raises(ConfigError, match="no Debian or Ubuntu"):
        debian.suite_of(tmp_path / "nothing")
