"""What a RUN_SWARM starts at a node of the profile, with and without a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm_hpc.config import ContainerConfig, ContainerKind, IdentityConfig, RoundConfig
from swarm_hpc.errors import ConfigError
from swarm_hpc.slurm.container import program_container
from swarm_hpc.slurm.images import Image
from swarm_hpc.swop import run_swarm
from swarm_hpc.swop.profile import IdentityKind, NodeDefinition, Place, Profile, read_profile
from swarm_hpc.tasks.file import Mount, RunSwarm
from tests.swop.lab import Project

NONE, APPTAINER = ContainerKind.NONE, ContainerKind.APPTAINER


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def profile(project: Project) -> Profile:
    return read_profile(project.profile)


def body(project: Project, **changes: object) -> RunSwarm:
    model = Mount(source=str(project.folder / "model"), target="/tmp/test/model", is_volume=False)
    values: dict[str, object] = {
        "entrypoint": "python3",
        "command": "model/train.py --data /tmp/test/value",
        "working_dir": "/tmp/test",
        "private_content": "/tmp/test/",
        "shared_content": (model,),
        "env": {"DATA_DIR": "app-data", "OUT": "/tmp/test/out", "EPOCHS": "16", "MODEL": "model/train.py"},
    }
    return RunSwarm(**{**values, **changes})  # type: ignore[arg-type]


def words_of(one: RunSwarm, profile: Profile, kind: ContainerKind, folder: Path) -> list[str]:
    seen = run_swarm.seen_paths(one, profile.nodes[0], folder)
    return run_swarm.program(one, profile, profile.nodes[0], seen, kind, folder).command[3:]


def test_without_a_container_targets_are_where_they_lead_to(project: Project, profile: Profile, tmp_path: Path) -> None:
    one = body(project)
    data, model = project.data(0), project.folder / "model"
    program_words = ["python", f"{model}/train.py", "--data", f"{data}/value"]
    assert words_of(one, profile, NONE, tmp_path) == [str(data), "env", "DATA_DIR=app-data", *program_words]
    seen = run_swarm.seen_paths(one, profile.nodes[0], tmp_path)
    program = run_swarm.program(one, profile, profile.nodes[0], seen, NONE, tmp_path)
    assert program.env == {"OUT": f"{data}/out", "EPOCHS": "16", "MODEL": f"{model}/train.py"}


def test_in_a_container_words_stay_and_paths_are_bound(project: Project, profile: Profile, tmp_path: Path) -> None:
    one = body(project)
    said = ["env", "DATA_DIR=app-data", "python3", "model/train.py", "--data", "/tmp/test/value"]
    assert words_of(one, profile, APPTAINER, tmp_path) == ["/tmp/test", *said]
    seen = run_swarm.seen_paths(one, profile.nodes[0], tmp_path)
    made = run_swarm.container(ContainerConfig(kind=APPTAINER), "user-env", seen)
    assert made.image == "user-env"
    assert made.binds == [f"{project.data(0)}:/tmp/test:rw", f"{project.folder}/model:/tmp/test/model"]


def test_a_program_sees_no_file_of_the_site_because_its_command_names_it(
    project: Project, profile: Profile, tmp_path: Path
) -> None:
    secret = tmp_path / "home" / "key.pem"
    secret.parent.mkdir()
    secret.touch()
    one = body(project, command=f"model/train.py --data {secret}")
    seen = run_swarm.seen_paths(one, profile.nodes[0], tmp_path)
    program = run_swarm.program(one, profile, profile.nodes[0], seen, APPTAINER, tmp_path / "slot")
    made = run_swarm.container(ContainerConfig(kind=APPTAINER), "user-env", seen)
    binds = program_container(program, made, Image("user-env", Path("/i.sif"), False), tmp_path / "tmp").binds
    assert [bind.source for bind in binds] == [str(tmp_path / "slot"), *(str(one.source) for one in reversed(seen))]


def test_a_path_inside_another_one_has_a_place_there(project: Project, profile: Profile, tmp_path: Path) -> None:
    run_swarm.make_mount_points(run_swarm.seen_paths(body(project), profile.nodes[0], tmp_path))
    assert (project.data(0) / "model").is_dir()
    assert not (project.folder / "model" / "model").exists()


def test_shared_content_is_writable_where_the_program_works_in_it(project: Project, profile: Profile) -> None:
    one = body(project, working_dir="/tmp/test/model/run")
    assert [seen.writable for seen in run_swarm.seen_paths(one, profile.nodes[0], project.folder)] == [True, True]


def test_an_image_without_entrypoint_runs_what_it_runs_by_itself(
    project: Project, profile: Profile, tmp_path: Path
) -> None:
    one = body(project, entrypoint="", env={}, command="--epochs '1 6'")
    assert words_of(one, profile, APPTAINER, tmp_path)[1:] == ["/.singularity.d/runscript", "--epochs", "1 6"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"command": "it's"}, "Command"),
        ({"working_dir": "/no/such/folder"}, "WorkingDir: there is no folder /no/such/folder"),
        ({"shared_content": (Mount(source="gone", target="/x", is_volume=True),)}, "gone, which the program is to see"),
    ],
)
def test_what_cannot_be_started_is_said(
    project: Project, profile: Profile, tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        words_of(body(project, **changes), profile, NONE, tmp_path)


def test_a_volume_of_each_node_is_the_nodes_own(tmp_path: Path) -> None:
    for name in ("data-1", "data"):
        (tmp_path / name).mkdir()
    mounts = (Mount(source="data", target="/data", is_volume=True),)
    one = RunSwarm(command="x", entrypoint="", working_dir="/data", shared_content=mounts)
    sources = [run_swarm.seen_paths(one, NodeDefinition(index=i, identity={}), tmp_path)[0].source for i in (0, 1)]
    assert [source.name for source in sources] == ["data", "data-1"]


def test_hpes_variables_of_an_sl_are_rules_of_the_training() -> None:
    env = {"SL_LEADER_FAILURE_BASE_TIMEOUT": "600", "SL_RAM_INTENSIVE": "True"}
    rules = run_swarm.rules(RoundConfig(), env)
    assert (rules.leader_timeout_s, rules.quorum_wait_s) == (600, RoundConfig().quorum_wait_s)
    assert run_swarm.unmapped(env) == ["SL_RAM_INTENSIVE"]
    with pytest.raises(ConfigError, match="SL_WAIT_FOR_FULL_QUORUM_SECONDS"):
        run_swarm.rules(RoundConfig(), {"SL_WAIT_FOR_FULL_QUORUM_SECONDS": "soon"})


def test_a_node_brings_its_own_certificate_where_the_files_are_there(profile: Profile, tmp_path: Path) -> None:
    site = IdentityConfig(cert="c", key="k", bundle="b.json")
    assert run_swarm.identity(site, profile.nodes[0], tmp_path) == site
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    files = {IdentityKind.CERT: Place(f"{tmp_path}/cert.pem"), IdentityKind.KEY: Place(f"{tmp_path}/key.pem")}
    own = run_swarm.identity(site, NodeDefinition(index=0, identity=files), tmp_path)
    assert (own.cert, own.key, own.bundle) == (f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem", "b.json")
