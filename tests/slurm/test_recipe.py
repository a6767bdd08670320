"""What images are made of: the key changes with each part of it, and with nothing else."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc import __version__
from swarm_hpc.errors import ConfigError
from swarm_hpc.slurm import recipe
from swarm_hpc.slurm.recipe import DEFINITIONS, RECIPES, TESTS, Source, find_source, hash_file, recipe_key

SOURCE = Source(checkout=None, version="0.1.0", commit="c", fingerprint="f")
PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
PROJECT = """
[project]
name = "swarm-hpc"
dependencies = ["numpy"]
[tool.setuptools.package-data]
swarm_hpc = ["conf/*.yaml"]
[tool.ruff]
line-length = 120
"""


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    for name in ("swarm_hpc/__init__.py", "swarm_hpc/sn/node.py", "conf/sn.yaml", "runs/digits/key.pem"):
        put(folder / name, name)
    put(folder / "pyproject.toml", PROJECT)
    (folder / "swarm_hpc/conf").symlink_to("../conf")
    return folder


@pytest.fixture
def definitions(tmp_path, monkeypatch):
    """A copy that a test may change."""
    folder = tmp_path / "apptainer"
    for file in (*DEFINITIONS.glob("*.def"), DEFINITIONS / "constraints.txt", *TESTS.glob("*.py")):
        put(folder / file.relative_to(DEFINITIONS), file.read_text())
    for name, path in {
        "DEFINITIONS": folder,
        "CONSTRAINTS": folder / "constraints.txt",
        "TESTS": folder / "tests",
    }.items():
        monkeypatch.setattr(recipe, name, path)
    return folder


def key(name: str = "sl-pytorch", *, source: Source = SOURCE, **changes) -> str:
    return recipe_key(RECIPES[name], source, **{"base_digest": "b", "programs": {}, "level": 1, **changes})


def fingerprint(checkout: Path) -> str:
    return find_source(checkout / "swarm_hpc").fingerprint


def test_the_key_changes_with_each_file_that_goes_in(definitions):
    before = key()
    for name in ("sl-pytorch.def", "constraints.txt", "tests/sl_pytorch.py", "tests/merging.py"):
        file = definitions / name
        text = file.read_text()
        file.write_text(f"{text}\n")
        assert key() != before, name
        file.write_text(text)
    for name in ("sl-keras.def", "base.def", "tests/sl_keras.py", "tests/sn.py"):
        (definitions / name).write_text("something else")
    assert key() == before


def test_the_key_changes_with_base_source_level_and_programs(tmp_path):
    program = tmp_path / "geth"
    program.write_bytes(b"one")
    keys = [key(), key(base_digest="c"), key(source=replace(SOURCE, fingerprint="g")), key(level=3), key("sl-keras")]
    keys.append(key(programs={"geth": program}))
    program.write_bytes(b"two")
    keys.append(key(programs={"geth": program}))
    assert len(set(keys)) == len(keys)
    assert key() == key(source=replace(SOURCE, commit="another", version="0.1.0"))


def test_the_source_is_another_one_when_a_file_of_the_package_is(checkout):
    before = fingerprint(checkout)
    for name in ("swarm_hpc/sn/node.py", "conf/sn.yaml"):
        put(checkout / name, "changed")
        assert fingerprint(checkout) != before, name
        put(checkout / name, name)
    put(checkout / "swarm_hpc/sn/more.py", "")
    assert fingerprint(checkout) != before
    (checkout / "swarm_hpc/sn/more.py").unlink()
    put(checkout / "pyproject.toml", PROJECT.replace("numpy", "numpy>2"))
    assert fingerprint(checkout) != before


def test_the_source_is_the_same_whatever_else_lies_in_the_checkout(checkout):
    before = fingerprint(checkout)
    put(checkout / "runs/digits/key.pem", "another key")
    put(checkout / "swarm_hpc/sn/__pycache__/node.py", "")
    put(checkout / "conf/secret.pem", "")
    put(checkout / "pyproject.toml", PROJECT.replace("120", "100"))
    assert fingerprint(checkout) == before


def test_what_came_from_a_wheel_is_the_released_version(tmp_path):
    source = find_source(tmp_path / "site-packages" / "swarm_hpc")
    assert (source.checkout, source.version, source.commit) == (None, __version__, "unknown")
    assert source.fingerprint == f"swarm-hpc=={__version__}"


def test_each_recipe_has_its_files_and_extras():
    known = set(PYPROJECT["optional-dependencies"])
    pinned = set(re.findall(r"^([\w.-]+)==", recipe.CONSTRAINTS.read_text(), re.MULTILINE))
    for one in RECIPES.values():
        assert one.definition.is_file()
        assert all((TESTS / name).is_file() for name in one.tests)
        assert set(one.extras) <= known
        assert set(one.packages) <= pinned


def test_a_login_node_needs_no_torch():
    assert not [name for name in PYPROJECT["dependencies"] if name.startswith(("torch", "tensorflow"))]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing: cannot be read \(No such file"):
        hash_file(tmp_path / "nothing")
