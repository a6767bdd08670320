"""Strict YAML: places in errors, keys that are there twice, aliases that explode, and whatever else comes along."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.tasks import yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(9)
)


def root(text):
    return yaml.parse(text, "f.yaml").root


def test_a_key_that_is_there_twice_counts_as_written_last_with_a_warning():
    document = yaml.parse("a: 1\nb: 2\na: 3\n", "f.yaml")
    assert document.root.map()["a"].text() == "3"
    assert document.warnings == ("f.yaml:3: a is there twice; what is written last counts",)


def test_numbers_and_truth_values_are_text_as_they_are_written():
    found = root("[A: 016, B: False, C: 1.50, D: ~, E: 'x y']").variables()
    assert found == {"A": "016", "B": "False", "C": "1.50", "D": "", "E": "x y"}


def test_an_unknown_key_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"f.yaml:1: usrenvars: there is no such key.*did you mean usrenvvars\?"):
        root("usrenvars: ~").fields((), ("usrenvvars", "slenvvars"))


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"f.yaml:1: the file: Body is missing"):
        root("Name: x").fields(("Name", "Body"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("a: [", "f.yaml:1: is not YAML"),
        ("a: !!python/object:os.system x", "tag"),
        ("<<: {a: 1}", "merge key"),
        ("? [a]\n: b", "plain text"),
        ('a: "\\0"', "control character"),
        ('a: "\\ud800"', "control character"),
        ('a: "\\UFFFFFFFF"', "is not YAML"),
        (BOMB, "too many values"),
        ("a: &a [*a]", "is not YAML|too deeply"),
        # by how deep Python itself may go
        pytest.param("[" * 2000, "too deeply|is not YAML", marks=pytest.mark.slow),
        ("[" * 60 + "]" * 60, "too deeply"),
        ("x" * 200_000, "larger"),
        ("a: 1\n---\nb: 2", "is not YAML"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(text, reason):
    with pytest.raises(ConfigError, match=reason):
        root(text)


def test_an_alias_is_what_it_stands_for():
    assert root("a: &p [x: 1]\nb: *p").map()["b"].variables() == {"x": "1"}


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        yaml.read(tmp_path / "f.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        yaml.read(tmp_path / "none.yaml")


@given(st.text())
@example("\x85: \u2028")
def test_any_text_is_a_document_or_an_error_of_ours(text):
    with contextlib.suppress(SwarmError):
        root(text).map()
