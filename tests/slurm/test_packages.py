"""What is gathered for an image on the host, with a stand-in for uv."""

import sys
from pathlib import Path

import pytest

from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.slurm.packages import Content, Platform, _point_inside, ask_platform, find_uv, gather
from swarm_hpc.slurm.recipe import RECIPES, Source
from tests.slurm.stand_ins import APPTAINER, UV, calls, put

PLATFORM = Platform("3.12", "x86_64-manylinux_2_36")
RELEASED = Source(checkout=None, version="0.1.0", commit="unknown", fingerprint="f")
SHELL_FORM = b"#!/bin/sh\n'''exec' '/a/very long/path/python3' \"$0\" \"$@\"\n' '''\nprint(1)\n"


@pytest.fixture
def uv(tmp_path):
    return put(tmp_path / "bin/uv", UV.replace("HOST", f"{sys.version_info.major}.{sys.version_info.minor}"))


def content(name: str = "sl-pytorch", source: Source = RELEASED, **programs: Path) -> Content:
    return Content(recipe=RECIPES[name], source=source, platform=PLATFORM, programs=programs)


def test_the_folder_holds_all_that_the_image_will(tmp_path, uv):
    geth = put(tmp_path / "geth-1.17.8", "")
    folder = tmp_path / "content"
    gather(content("sn", geth=geth), folder, uv=uv, timeout_s=30)
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}
    assert files == {
        "bin/foo",
        "bin/other",
        "bin/geth",
        "examples",
        "requirements.txt",
        "tests/sn.py",
        "lib/python3.12/site-packages/foo-1.dist-info/METADATA",
    }
    assert (folder / "requirements.txt").read_text() == "foo==1\n"
    assert (folder / "bin/geth").stat().st_mode & 0o777 == 0o755
    assert str((folder / "examples").readlink()) == "/opt/swarm-hpc/lib/python3.12/site-packages/swarm_hpc/examples"


def test_programs_run_by_the_interpreter_of_the_image(tmp_path, uv):
    gather(content(), tmp_path / "content", uv=uv, timeout_s=30)
    assert (tmp_path / "content/bin/foo").read_text() == "#!/opt/swarm-hpc/bin/python3\nprint(1)\n"
    assert (tmp_path / "content/bin/other").read_text() == "#!/bin/sh\necho\n"


@pytest.mark.parametrize("text", [b"#!/x/bin/python3.11 -s\nprint(1)\n", SHELL_FORM])
def test_both_forms_of_a_first_line_are_known(tmp_path, text):
    cached, script = tmp_path / "cached", tmp_path / "script"
    cached.write_bytes(text)
    script.hardlink_to(cached)
    _point_inside(script)
    assert script.read_bytes() == b"#!/opt/swarm-hpc/bin/python3\nprint(1)\n"
    assert cached.read_bytes() == text


@pytest.mark.parametrize("text", [b"\x7fELF\x00python", b"#!/bin/bash\necho python\n", b""])
def test_other_programs_stay_as_they_are(tmp_path, text):
    (tmp_path / "script").write_bytes(text)
    _point_inside(tmp_path / "script")
    assert (tmp_path / "script").read_bytes() == text


def test_uv_is_asked_for_what_fits_the_image(tmp_path, uv):
    gather(content(), tmp_path / "content", uv=uv, timeout_s=30)
    (words,) = calls(uv)
    assert "--python-version 3.12 --python-platform x86_64-manylinux_2_36" in words
    assert words.endswith("constraints.txt swarm-hpc[pytorch,mpi]==0.1.0 scikit-learn")


def test_of_a_checkout_only_the_package_is_shown_to_uv(tmp_path, uv):
    source = Source(checkout=tmp_path / "checkout", version="0.1.0", commit="c", fingerprint="f")
    gather(content(source=source), tmp_path / "content", uv=uv, timeout_s=30)
    project = tmp_path / "content-project"
    assert f"swarm-hpc[pytorch,mpi] @ {project.as_uri()} scikit-learn" in calls(uv)[0]
    assert sorted(file.name for file in project.iterdir()) == ["LICENSE", "README.md", "pyproject.toml", "swarm_hpc"]


def test_what_uv_says_is_in_the_error(tmp_path):
    uv = put(tmp_path / "uv", "echo 'error: no such package' >&2; exit 2")
    with pytest.raises(ContainerError, match="uv pip install: error: no such package"):
        gather(content(), tmp_path / "content", uv=uv, timeout_s=30)


def test_uv_is_the_one_beside_the_interpreter_or_on_path(tmp_path, uv, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python/bin/python"))
    assert find_uv({"PATH": str(tmp_path / "bin")}) == uv
    with pytest.raises(ConfigError, match=r"building images needs uv: run `.*python -m pip install uv`"):
        find_uv({"PATH": ""})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    assert find_uv({"PATH": ""}) == uv


def test_the_base_is_asked_for_its_python_and_c_library(tmp_path):
    apptainer = put(tmp_path / "apptainer", APPTAINER)
    assert ask_platform(apptainer, tmp_path / "base.sif") == PLATFORM
    new = put(tmp_path / "new", """echo '[3, 13, "glibc", 2, 99, "aarch64"]'""")
    assert ask_platform(new, tmp_path / "base.sif") == Platform("3.13", "aarch64-manylinux_2_40")
    other = put(tmp_path / "other", """echo '[3, 13, "musl", 1, 2, "x86_64"]'""")
    with pytest.raises(ContainerError, match="its C library is musl"):
        ask_platform(other, tmp_path / "base.sif")
