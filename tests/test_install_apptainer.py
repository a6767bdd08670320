"""scripts/install_apptainer.sh with stand-ins for apt-get, the packages and what unpacks them: no network, no root."""

from __future__ import annotations

import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install_apptainer.sh"
TOOLS = (
    *(
        "awk",
        "basename",
        "bash",
        "chmod",
        "cp",
        "dirname",
        "env",
        "find",
        "flock",
        "head",
        "id",
        "ln",
        "mkdir",
        "mktemp",
    ),
    *("mv", "nice", "rm", "sed", "sort", "sync", "tail", "timeout"),
)
PROGRAMS = (
    *("debootstrap", "fakeroot", "fuse-overlayfs", "fuse2fs", "fusermount3", "mksquashfs", "mmdebstrap", "newuidmap"),
    "squashfuse_ll",
)
MIRROR = "http://mirror.example/debian/"
LDCONFIG = """\
echo "    libseccomp.so.2 (libc6,x86-64) => /lib/libseccomp.so.2"
echo "    libsqlite3.so.0 (libc6,x86-64) => /lib/libsqlite3.so.0"
"""
DPKG_DEB = """\
echo "$2" >>"$LOG"
case $2 in
*/apptainer_*)
    mkdir -p "$3/usr/bin" "$3/usr/lib/any-linux-gnu/apptainer/bin" "$3/etc/apptainer"
    printf '#!%s\\necho apptainer version 1.4.5\\n' "$BASH" >"$3/usr/bin/apptainer"
    chmod +x "$3/usr/bin/apptainer"
    echo starter >"$3/usr/lib/any-linux-gnu/apptainer/bin/starter"
    echo conf >"$3/etc/apptainer/apptainer.conf"
    ;;
*)
    mkdir -p "$3/usr/lib/any-linux-gnu"
    echo libc >"$3/usr/lib/any-linux-gnu/libc.so.6"
    printf '#!%s\\n' "$BASH" >"$3/usr/lib/any-linux-gnu/ld-linux-any.so.2"
    chmod +x "$3/usr/lib/any-linux-gnu/ld-linux-any.so.2"
    ;;
esac
"""
APT_GET = """\
echo "apt-get $*" >>"$LOG"
case "$*" in
indextargets*) echo "$INDEX" ;;
*update) for word; do case $word in Dir::Etc::sourcelist=*) cat "${word#*=}" >>"$LOG" ;; esac; done ;;
*"download apptainer libc6") for name in apptainer_1.4.5-2 libc6_2.43-7; do echo >"${name}_any.deb"; done ;;
*) exit 1 ;;
esac
"""
NO_NETWORK = 'echo "apt-get $*" >>"$LOG"; exit 1'


@dataclass
class Host:
    """A host whose PATH has what the script itself needs, the other programs and libraries, but no Apptainer."""

    folder: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.path, self.cache, self.log = self.folder / "path", self.folder / "cache", self.folder / "log"
        self.path.mkdir()
        for name in (*TOOLS, "cat"):
            found = shutil.which(name)
            assert found is not None, name
            (self.path / name).symlink_to(found)
        for name in PROGRAMS:
            self.put(name, "exit 1")
        self.put("ldconfig", LDCONFIG)
        self.put("stat", "echo 666")  # of /dev/fuse
        self.put("dpkg-deb", DPKG_DEB)
        self.put("patchelf", 'echo "patchelf $*" >>"$LOG"')
        self.put("apt-get", APT_GET)
        self.put("apt-cache", 'echo "$POLICY"')
        self.env = {
            "PATH": str(self.path),
            "SWARM_HPC_CACHE": str(self.cache),
            "LOG": str(self.log),
            "INDEX": f"Debian main bookworm-updates http://no.example/\nDebian main bookworm {MIRROR}",
            "POLICY": "",
        }

    @property
    def installed(self) -> Path:
        return self.cache / "apptainer"

    def put(self, name: str, text: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        (self.path / name).write_text(f"#!{self.path}/bash\n{text}\n")
        (self.path / name).chmod(0o755)

    def be(self, uid: int) -> None:
        self.put("id", f"echo {uid}")

    def keep_packages(self) -> None:
        debs = self.cache / "apptainer-debs"
        debs.mkdir(parents=True)
        for name in ("apptainer_1.4.4-1_any.deb", "apptainer_1.4.10-1_any.deb", "libc6_2.43-7_any.deb"):
            (debs / name).touch()

    def install(self, *args: str, **env: str) -> tuple[int, str]:
        """Exit code and what it said."""
        done = subprocess.run(
            [self.path / "bash", SCRIPT, *args], env=self.env | env, text=True, stderr=subprocess.PIPE, timeout=60
        )
        return done.returncode, done.stderr

    def did(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_is_done_where_everything_is_there(host: Host) -> None:
    host.put("apptainer", "[ $1 = --version ]")
    for name in ("patchelf", "dpkg-deb"):
        (host.path / name).unlink()
    assert host.install() == (0, "")
    assert host.did() == ""
    assert not host.cache.exists()


def test_a_host_without_apt_is_told_what_to_install(host: Host) -> None:
    (host.path / "apt-get").unlink()
    code, said = host.install()
    assert code == 1
    assert "there is no apt-get: install Apptainer and mksquashfs" in said


def test_an_ordinary_user_is_told_which_packages_root_must_install(host: Host) -> None:
    host.be(1000)
    for name in ("mksquashfs", "newuidmap", "patchelf"):
        (host.path / name).unlink()
    code, said = host.install()
    assert (code, said) == (
        1,
        "Apptainer: only root may install packages: apt-get install squashfs-tools uidmap patchelf\n",
    )
    assert host.did() == ""


def test_the_distributions_own_package_comes_first(host: Host) -> None:
    host.be(1000)
    code, said = host.install(POLICY="apptainer:\n  Installed: (none)\n  Candidate: 1.4.5-2\n")
    assert (code, said) == (1, "Apptainer: only root may install packages: apt-get install apptainer\n")


def test_it_is_fetched_from_apts_own_mirror_once_and_nothing_else_is_left(host: Host) -> None:
    code, said = host.install(POLICY="apptainer:\n  Installed: (none)\n  Candidate: (none)\n")
    assert code == 0, said
    did = host.did()
    assert f"{MIRROR} sid main" in did
    assert f"--set-interpreter {host.installed}/libexec/glibc/ld-linux-any.so.2" in did
    assert sorted(one.name for one in host.cache.iterdir()) == ["apptainer", "apptainer-debs", "apptainer.lock"]
    assert (host.installed / "lib" / "any-linux-gnu" / "apptainer" / "bin" / "starter").read_text() == "starter\n"
    assert host.install() == (0, "")
    assert host.did() == did


def test_kept_packages_are_used_without_network_the_newest_first(host: Host) -> None:
    host.be(1000)
    host.put("apt-get", NO_NETWORK)
    host.keep_packages()
    code, said = host.install()
    assert (code, said) == (0, f"Apptainer: {host.installed}/bin/apptainer\n")
    assert "apptainer_1.4.10-1_any.deb" in host.did()
    assert "apt-get" not in host.did()
    assert "1.4.4" not in host.did()


def test_a_host_of_another_distribution_without_a_package_is_told(host: Host) -> None:
    code, said = host.install(INDEX=f"Ubuntu main noble {MIRROR}")
    assert code == 1
    assert "no package of it, and apt no mirror of Debian: install Apptainer" in said
    assert not host.installed.exists()


def test_a_mirror_that_does_not_answer_is_told_with_what_to_do(host: Host) -> None:
    host.put("apt-get", APT_GET.replace("*update) for", "*update) echo no route to anywhere; exit 1 ;;\nnever) for"))
    code, said = host.install()
    assert code == 1
    assert "no route to anywhere" in said
    assert f"copy that to {host.cache}/apptainer-debs" in said
    assert [one.name for one in host.cache.iterdir()] == ["apptainer.lock"]


def test_an_interrupted_installation_is_done_again(host: Host) -> None:
    host.keep_packages()
    patchelf = (host.path / "patchelf").read_text()
    host.put("patchelf", "read -r _ _ _ script _ </proc/$PPID/stat; kill -KILL $script")
    assert host.install()[0] == -signal.SIGKILL
    assert (host.cache / "apptainer.new").exists()
    assert not host.installed.exists()
    (host.path / "patchelf").write_text(patchelf)
    code, said = host.install()
    assert code == 0, said
    assert not (host.cache / "apptainer.new").exists()
    assert host.install() == (0, "")


def test_an_apptainer_that_does_not_run_is_not_left_there(host: Host) -> None:
    host.keep_packages()
    host.put("dpkg-deb", DPKG_DEB.replace("echo apptainer version", "exit 1; echo"))
    code, said = host.install()
    assert code == 1
    assert "apptainer_1.4.10-1_any.deb does not run on this host" in said
    assert not host.installed.exists()


def test_an_optional_installation_may_fail_except_in_ci(host: Host) -> None:
    (host.path / "apt-get").unlink()
    code, said = host.install("--optional")
    assert code == 0
    assert "tests that need Apptainer are skipped" in said
    assert host.install("--optional", CI="true")[0] == 1
    assert host.install("--optional", "--optimal")[0] == 2


def test_a_cache_whose_path_cannot_be_in_a_programs_header_is_refused(host: Host) -> None:
    for name in ("my cache", "a:b", "$ORIGIN"):
        code, said = host.install(SWARM_HPC_CACHE=str(host.folder / name))
        assert code == 1
        assert "must have no space, colon or dollar sign" in said
        assert not (host.folder / name).exists()


def test_fuse_is_opened_to_everybody_by_root(host: Host) -> None:
    chmod = shutil.which("chmod")
    host.put("apptainer", "exit 0")
    host.put("stat", "echo 600")
    host.put("chmod", f'[ "$2" != /dev/fuse ] || {{ echo "chmod $*" >>"$LOG"; exit; }}; exec {chmod} "$@"')
    host.be(1000)
    code, said = host.install()
    assert code == 0
    assert "until root runs chmod 0666 /dev/fuse" in said
    assert host.did() == ""
    host.be(0)
    code, said = host.install()
    assert (code, host.did()) == (0, "chmod 0666 /dev/fuse\n")
    assert said.count("\n") == 1
