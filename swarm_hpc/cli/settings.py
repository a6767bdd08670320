"""From YAML and the words of the command line to a command's settings. The only file that knows hydra."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from swarm_hpc.errors import ConfigError

T = TypeVar("T")
CONF: Final = Path(__file__).resolve().parents[1] / "conf"
"""The YAML files that are installed with the program."""
EXAMPLES: Final = CONF.parent / "examples"
"""The training programs that are installed with it."""
PROGRAMS: Final = frozenset({"swci"})
"""Commands that are programs of their own."""
_SIXTIES: Final = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+")
"""What YAML 1.1 takes for a number, counted in sixties."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """One job of a sweep."""

    words: tuple[str, ...]
    """Its settings, with one value each."""
    swept: tuple[tuple[str, str], ...]
    """Key, and its word: those of `words` that differ between the jobs."""
    named: frozenset[str]
    """Every key that the user has given a value, or several."""


def load(cls: type[T], name: str, overrides: Sequence[str], config_dir: str = "") -> T:
    """The settings of a command: conf/<name>.yaml, the groups it draws on, and what the user typed.

    ConfigError, in one line, for an unknown key or choice (with the nearest that exists), a missing or a bad value.
    """
    from swarm_hpc import config

    return config.load(cls, compose(name, overrides, config_dir))


def compose(name: str, overrides: Sequence[str], config_dir: str = "") -> dict[str, Any]:
    """As `load`, but plain values."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    words = list(overrides)
    if config_dir:
        folder = Path(config_dir).resolve()
        if not os.path.isdir(folder) or not os.access(folder, os.R_OK | os.X_OK):  # noqa: PTH112 - raises nothing
            raise ConfigError(f"--config-dir: {config_dir} is not a folder that can be read")
        _check_sixties(folder, groups_of(name))
        words.append(f"hydra.searchpath=['file://{_quoted(str(folder))}']")
    if text := _wrong_word(name, overrides, config_dir):
        raise ConfigError(text)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                composed = hydra_compose(name, overrides=words)
            except (HydraException, ValueError) as exc:  # ValueError: from words such as =3
                text = ""
                if isinstance(exc, OverrideParseException):
                    text = f"{exc.override}: {str(exc).splitlines()[0]}"
                if not text:
                    chosen = [word for word in words if _chosen(word, name, config_dir)]
                    known = _keys(OmegaConf.to_container(hydra_compose(name, overrides=chosen)))
                    text = _unknown_key(name, overrides, known)
                raise ConfigError(text or str(exc)) from exc
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as exc:
        raise ConfigError(f"{exc.full_key}: no value; give {exc.full_key}=... ({program(name)} --help)") from exc
    except OmegaConfBaseException as exc:
        raise ConfigError(f"{exc.full_key or name}: {str(exc).splitlines()[0]}") from exc
    except YAMLError as exc:
        raise ConfigError(f"not valid YAML: {exc}") from exc
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def program(name: str) -> str:
    """What is typed to run the command with these settings."""
    return name if name in PROGRAMS else f"swarm-hpc {name}"


def split_sweep(name: str, overrides: Sequence[str], config_dir: str = "") -> list[Combination]:
    """One combination per job of a sweep, in hydra's own grammar: a=1,2  b=choice(x,y)  c=range(1,4)  merge=glob(*).

    Words without several values are in each of them as they were typed. ConfigError.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.utils import create_config_search_path
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    words = list(overrides)
    folders = create_config_search_path(str(CONF))
    if config_dir:  # glob(*) finds what is there, too
        folders.append("user", f"file://{Path(config_dir).resolve()}")
    try:
        parsed = OverridesParser.create(config_loader=ConfigLoaderImpl(folders)).parse_overrides(words)
        swept = [one for one in parsed if one.is_sweep_override()]
        rows = BasicSweeper.split_arguments(swept, None)[0]
    except (HydraException, ValueError) as exc:
        text = _wrong_word(name, [word for word in words if "=" not in word], config_dir)
        raise ConfigError(text or " ".join(str(exc).split())) from exc
    given = [one.get_key_element() for one in parsed]
    keys = [one.get_key_element() for one in swept]
    if twice := [key for key in keys if given.count(key) > 1]:
        raise ConfigError(f"{twice[0]}: given twice, once with several values; leave one of them out")
    if not rows:
        raise ConfigError(f"{', '.join(keys)}: no values to choose from")
    kept = [word for word, one in zip(words, parsed, strict=True) if not one.is_sweep_override()]
    named = frozenset(one.key_or_group for one in parsed)
    return [Combination(words=(*kept, *row), swept=tuple(zip(keys, row, strict=True)), named=named) for row in rows]


def _check_sixties(folder: Path, groups: Iterable[str]) -> None:
    """ConfigError names a time without quotes in the user's files: 1:30:00 would arrive as 5400, minutes to Slurm."""
    import yaml

    for file in sorted(file for group in groups for file in (folder / group).glob("*.yaml")):
        try:
            text = file.read_text(encoding="utf-8")
            plain = [one for one in yaml.parse(text) if isinstance(one, yaml.ScalarEvent) and one.implicit[0]]
        except (OSError, ValueError, yaml.YAMLError):
            continue  # hydra says what is wrong, if the file is wanted
        for one in plain:
            if _SIXTIES.fullmatch(one.value):
                where = f"{file}, line {one.start_mark.line + 1}" if one.start_mark else str(file)
                raise ConfigError(f'{where}: {one.value} is a number to YAML: put it in quotes, "{one.value}"')


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _chosen(word: str, name: str, config_dir: str) -> bool:
    """Whether an override chooses, correctly, from a config group (or is our own search path)."""
    key, _, value = word.partition("=")
    group = key.removeprefix("+")
    known = group in groups_of(name) or key.startswith("+")
    return key == "hydra.searchpath" or (known and value in choices_of(group, config_dir))


def _keys(values: object, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return []
    return [full for key, value in values.items() for full in [f"{prefix}{key}", *_keys(value, f"{prefix}{key}.")]]


def _wrong_word(name: str, overrides: Sequence[str], config_dir: str) -> str:
    """What is wrong with a word that is no setting, or that chooses what is not there; empty if nothing is."""
    groups = groups_of(name)
    for word in overrides:
        key, equals, value = word.partition("=")
        if not key or (not equals and not key.startswith("~")):
            return f"{word!r} is not a setting: write KEY=VALUE{nearest(word, groups)}"
        if key in groups and value not in (choices := choices_of(key, config_dir)):
            return f"{word}: no such choice{nearest(value, choices)}; {key} is one of {', '.join(choices)}"
    return ""


def _unknown_key(name: str, overrides: Sequence[str], known: Sequence[str]) -> str:
    """Which override names no setting, with the nearest that there is; empty if all do."""
    groups = groups_of(name)
    for word in overrides:
        key = word.partition("=")[0].removeprefix("~")
        if key in known or key in groups or key.startswith("+"):
            continue
        if key.rpartition(".")[0].endswith("env"):
            return f"{key}: no such variable yet; add it with +{word}"
        if choice := _choice_with(key, groups):
            return f"{key}: goes with {choice}; give that, too"
        near = nearest(key, [*known, *groups])
        return f"{key}: {program(name)} has no such setting{near} ({program(name)} --help lists them)"
    return ""


def _choice_with(key: str, groups: Iterable[str]) -> str:
    """GROUP=CHOICE where the setting belongs to a choice that was not made; else empty."""
    group, _, rest = key.partition(".")
    for choice in choices_of(group) if group in groups else []:
        lines = (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
        if any(line.startswith(f"{rest}:") for line in lines):
            return f"{group}={choice}"
    return ""


def groups_of(name: str) -> dict[str, str]:
    """The config groups in the defaults list of conf/<name>.yaml, with the choice made there."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): (\w+)$", text, flags=re.MULTILINE))


def choices_of(group: str, config_dir: str = "") -> list[str]:
    """What can be chosen from a config group, the user's own included."""
    folders = [CONF / group] + ([Path(config_dir) / group] if config_dir else [])
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with what comes closest to `word`, in full or in its last part; else empty."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:
        last = word.rpartition(".")[2]
        by_last = {name.rpartition(".")[2]: name for name in names}
        near = [by_last[key] for key in difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)]
    return f"; did you mean {near[0]}?" if near else ""
