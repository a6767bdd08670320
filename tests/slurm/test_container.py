"""Command lines of containers, and what they let in."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from swarm_hpc.cli import settings
from swarm_hpc.config import (
    ContainerConfig,
    ContainerKind,
    IdentityConfig,
    ProgramConfig,
    RanksConfig,
    RanksKind,
    SlConfig,
    SubmitConfig,
)
from swarm_hpc.errors import ConfigError, ImageNotFound
from swarm_hpc.records import Platform
from swarm_hpc.slurm import container
from swarm_hpc.slurm.container import SHIELD, Bind, Container, Gpus, Host
from swarm_hpc.slurm.images import Image, digest_of

HOST = Host(apptainer=Path("/opt/bin/apptainer"), search_path="/usr/bin")
PLAIN = Container(image=Path("/images/ml.sif"), home=Path("/s/home"), tmp=Path("/s/tmp"), cwd=Path("/s"))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    file = tmp_path / "ml.sif"
    file.write_bytes(b"image")
    return Image("ml", file, is_sandbox=False)


@pytest.fixture
def config(tmp_path: Path) -> SlConfig:
    """An SL node's with a program, whose folders and files are there."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").touch()
    (tmp_path / "data").mkdir()
    program = ProgramConfig(
        command=["python3", str(tmp_path / "code" / "train.py"), "--rate=0.1"],
        cwd=str(tmp_path),
        env={"DATA_DIR": str(tmp_path / "data"), "SCRATCH_DIR": str(tmp_path)},
    )
    keys = IdentityConfig(cert="/pki/c.pem", key="/pki/k.pem", bundle="/pki/b.json")
    state = str(tmp_path / "state")
    return SlConfig(name="alpha/sl/one", sn="sn:30304", state_dir=state, identity=keys, program=program)


def options(line: list[str], name: str) -> list[str]:
    """The values of an option, in order."""
    return [value for word, value in pairwise(line) if word == name]


def test_a_command_line_is_a_list_of_words() -> None:
    line = container.command_line(HOST, PLAIN, ["python3", "a b.py", "$HOME"])
    assert line[:5] == ["/usr/bin/env", f"PATH={SHIELD}:/usr/bin", "/opt/bin/apptainer", "--quiet", "exec"]
    assert line[-4:] == ["/images/ml.sif", "python3", "a b.py", "$HOME"]
    assert options(line, "--home") == ["/s/home:/home/swarm"]
    assert options(line, "--mount") == ["type=bind,source=/s/tmp,destination=/tmp"]
    assert options(line, "--pwd") == ["/s"]
    assert not {"--userns", "--nv", "--rocm", "--writable", "--fakeroot"} & set(line)


def test_nothing_of_the_host_s_python_comes_in_and_caches_are_writable() -> None:
    env = dict(one.split("=", 1) for one in options(container.command_line(HOST, PLAIN), "--env"))
    assert (env["PYTHONPATH"], env["PYTHONHOME"], env["PYTHONNOUSERSITE"]) == ("", "", "1")
    assert all(env[name].startswith("/home/swarm/") for name in ("HF_HOME", "TORCH_HOME", "MPLCONFIGDIR"))


def test_a_value_may_have_commas_and_quotes() -> None:
    line = container.command_line(HOST, replace(PLAIN, env={"A": 'b,"c"'}))
    assert '"A=b,""c"""' in options(line, "--env")
    assert Bind("/a,b").words()[1] == 'type=bind,"source=/a,b","destination=/a,b",ro'


@pytest.mark.parametrize(("gpus", "expected"), [(Gpus.NVIDIA, "--nv"), (Gpus.AMD, "--rocm")])
def test_gpus_are_only_for_programs_that_use_them(gpus: Gpus, expected: str) -> None:
    host = replace(HOST, gpus=gpus)
    assert expected in container.command_line(host, replace(PLAIN, with_gpus=True))
    assert expected not in container.command_line(host, PLAIN)


def test_root_without_privileges_needs_a_user_namespace() -> None:
    assert "--userns" in container.command_line(replace(HOST, is_root=True), PLAIN)


def test_a_program_sees_its_folders_read_only_where_it_has_nothing_to_write(
    config: SlConfig, image: Image, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    config.container = ContainerConfig(kind=ContainerKind.APPTAINER, binds=[f"{tmp_path}/more:/more"])
    contained = container.contain(config, image, HOST, tmp_path / "tmp")
    binds = options(contained.program.launcher, "--mount")
    assert binds == [
        f"type=bind,source={tmp_path}/tmp/tmp,destination=/tmp",
        f"type=bind,source={tmp_path},destination={tmp_path}",  # its working directory, and what lies in it
        f"type=bind,source={tmp_path}/more,destination=/more,ro",
        "type=bind,source={channel},destination={channel},ro",
        "type=bind,source={state},destination={state}",
    ]
    assert contained.program.command == config.program.command
    assert contained.job.image == digest_of(image)
    assert "/pki" not in " ".join(contained.program.launcher)


def test_folders_outside_of_the_working_directory_are_bound_by_themselves(config: SlConfig, tmp_path: Path) -> None:
    cwd = tmp_path / "scratch"
    program = replace(config.program, cwd=str(cwd), env={"DATA_DIR": str(tmp_path / "data"), "SCRATCH_DIR": str(cwd)})
    made = container.program_container(program, ContainerConfig(), Image("ml", Path("/ml.sif"), False), tmp_path / "t")
    assert made.binds == (
        Bind(str(cwd), writable=True),
        Bind(str(tmp_path / "data")),
        Bind(str(tmp_path / "code")),
    )


def test_variables_of_a_program_are_those_in_its_container(config: SlConfig, image: Image, tmp_path: Path) -> None:
    config.program.env |= {"APPTAINER_BIND": "/home", "LD_PRELOAD": "/x.so", "SWARM_RANK": "1"}
    env = container.contain(config, image, HOST, tmp_path / "tmp").program.env
    assert env == {
        "APPTAINERENV_DATA_DIR": str(tmp_path / "data"),
        "APPTAINERENV_SCRATCH_DIR": str(tmp_path),
        "APPTAINERENV_APPTAINER_BIND": "/home",
        "APPTAINERENV_LD_PRELOAD": "/x.so",
        "SWARM_RANK": "1",
    }


def test_a_program_that_every_system_has_is_that_of_the_image(config: SlConfig, tmp_path: Path) -> None:
    cwd = tmp_path / "scratch"
    command = ["/usr/bin/env", "/bin/sh", "-c", "true", str(tmp_path / "code" / "train.py")]
    program = replace(config.program, command=command, cwd=str(cwd), env={})
    made = container.program_container(program, ContainerConfig(), Image("ml", Path("/ml.sif"), False), tmp_path / "t")
    assert made.binds == (Bind(str(cwd), writable=True), Bind(str(tmp_path / "code")))


def test_a_cache_that_the_program_names_itself_stays_where_it_is(config: SlConfig, tmp_path: Path) -> None:
    config.program.env["HF_HOME"] = "/models"
    made = container.program_container(
        config.program, ContainerConfig(), Image("ml", Path("/i"), False), tmp_path / "t"
    )
    assert "HF_HOME=/models" in options(container.command_line(HOST, made), "--env")


def test_a_node_sees_its_own_keys_file_by_file(config: SlConfig, image: Image, tmp_path: Path) -> None:
    config.transfer.shared_dir = str(tmp_path / "shared")
    config.program.log = str(tmp_path / "ml.log")
    made = container.sl_container(config, image, tmp_path / "settings", tmp_path / "tmp")
    assert made.binds == (
        Bind(str(tmp_path / "settings")),
        Bind(str(tmp_path / "state"), writable=True),
        Bind(str(tmp_path / "tmp"), writable=True),
        Bind("/pki/c.pem"),
        Bind("/pki/k.pem"),
        Bind("/pki/b.json"),
        Bind(str(tmp_path / "shared"), writable=True),
        Bind(str(tmp_path / "ml.log"), writable=True),
    )
    assert not made.with_gpus
    assert made.env == {}
    config.ranks = RanksConfig(kind=RanksKind.MPI, num_ranks=2)
    made = container.sl_container(config, image, tmp_path / "settings", tmp_path / "tmp")
    assert made.env["MPIR_CVAR_CH4_CMA_ENABLE"] == "0"


def test_a_node_finds_its_files_from_another_working_directory(config: SlConfig, tmp_path: Path) -> None:
    config.identity = IdentityConfig(cert="c.pem", key="k.pem", bundle="/pki/b.json")
    config.state_dir, config.program.log = "state", ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        found = container.with_absolute_paths(config)
    keys = found.identity
    assert (keys.cert, keys.key, keys.bundle) == (f"{tmp_path}/c.pem", f"{tmp_path}/k.pem", "/pki/b.json")
    assert (found.state_dir, found.program.log, found.transfer.shared_dir) == (f"{tmp_path}/state", "", "")


def test_what_is_bound_below_tmp_has_a_place_in_the_containers_own(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "file"
    data.mkdir()
    file.touch()
    config = ContainerConfig(binds=[f"{data}:/tmp/test/data:rw", f"{file}:/tmp/test/file"])
    program = ProgramConfig(command=["x"], cwd=str(data))
    made = container.program_container(program, config, Image("ml", Path("/ml.sif"), False), tmp_path / "t")
    assert (made.tmp / "test" / "data").is_dir()
    assert (made.tmp / "test" / "file").is_file()


@pytest.mark.parametrize("text", ["", ":/a", "{here}:relative", "{here}:/a:wr", "/not/there"])
def test_a_bind_that_cannot_be_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"container\.binds"):
        container.parse_bind(text.replace("{here}", str(tmp_path)))


def test_a_state_folder_that_apptainer_could_not_read_is_refused(
    config: SlConfig, image: Image, tmp_path: Path
) -> None:
    config.state_dir = str(tmp_path / "a,b")
    with pytest.raises(ConfigError, match="may have no comma"):
        container.contain(config, image, HOST, tmp_path / "tmp")


def test_images_are_found_by_name_and_by_path(image: Image) -> None:
    config = ContainerConfig(image_dir=str(image.path.parent))
    assert container.find_checked(config, "ml", HOST, {}) == image
    assert container.find_checked(config, str(image.path), HOST, {}) == image
    with pytest.raises(ImageNotFound, match="swarm-hpc image build other"):
        container.find_checked(config, "other", HOST, {})
    with pytest.raises(ConfigError, match=r"container\.image"):
        container.find_checked(config, "", HOST, {})


def test_the_image_goes_with_the_platform_unless_it_is_given() -> None:
    assert ContainerConfig().of(Platform.KERAS).image == "sl-keras"
    assert ContainerConfig(image="mine").of(Platform.KERAS).image == "mine"


def test_an_experiment_s_program_is_the_image_s_own_in_a_container() -> None:
    words = ["site.name=a", "site.sn=s:1", *(f"site.identity.{key}=x" for key in ("cert", "key", "bundle"))]
    config = settings.load(SubmitConfig, "submit", words)
    inside = container.train_command(config.experiment, ContainerConfig(kind=ContainerKind.APPTAINER), Path("/here"))
    assert inside == ["python3", "/opt/swarm-hpc/examples/digits/train.py"]
    assert container.train_command(config.experiment, ContainerConfig(), Path("/here"))[1] == "/here/digits/train.py"


def test_the_host_is_looked_at(tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    program.touch(mode=0o755)
    host = container.look_at_host(ContainerConfig(apptainer=str(program)), {"PATH": "/bin"})
    assert (host.apptainer, host.search_path, host.is_root) == (program, "/bin", os.geteuid() == 0)


def test_what_takes_the_image_away_is_told(image: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = replace(HOST, apptainer=tmp_path / "bin" / "apptainer")
    container.warn_of_signals(host, image)
    assert not caplog.text
    own = tmp_path / "libexec" / "apptainer" / "bin" / "squashfuse_ll"
    own.parent.mkdir(parents=True)
    own.touch(mode=0o755)
    container.warn_of_signals(host, replace(image, is_sandbox=True))
    assert not caplog.text
    container.warn_of_signals(host, image)
    assert f"its own {own}" in caplog.text
