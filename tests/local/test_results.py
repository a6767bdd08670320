"""Table, figure and summary of a finished run."""

import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc.cli.command import console
from swarm_hpc.config import TransferMode
from swarm_hpc.local import results
from swarm_hpc.local.results import Outcome, Summary
from swarm_hpc.records import CheckIn, LedgerStatus, Merge
from tests.lab.rounds import published


def round_(number, losses, metric=None):
    check_ins = tuple(
        CheckIn(node=f"{site}/sl/sl-1", blob="0" * 64, weight=1, loss=loss, metric=metric)
        for site, loss in losses.items()
    )
    return published(number, f"{number:064x}", check_ins=check_ins, leader="alpha/sl/sl-1")


def summary(run_dir, *, alone=0.8, pooled=0.96, rounds=()):
    return Summary(
        experiment="digits",
        title="",
        merge=Merge(),
        transfer=TransferMode.GATEWAY,
        metric="accuracy",
        sites=(Outcome(site="alpha", alone=alone, swarm=0.95), Outcome(site="beta", alone=alone, swarm=0.94)),
        pooled=pooled,
        seconds=12.5,
        ledger=LedgerStatus(kind="embedded", chain_id=1, height=9, transactions=7, blocks=9, genesis="0x0"),
        rounds=tuple(rounds),
        run_dir=run_dir,
    )


def shown(one):
    with redirect_stdout(io.StringIO()) as out:
        results.show(one, console())
    return out.getvalue()


def test_the_json_object_has_what_scripts_rely_on():
    rounds = [round_(1, {"alpha": 1.0, "beta": None}), round_(2, {"alpha": 0.5, "beta": 0.7})]
    assert summary(Path("/run"), rounds=rounds).as_json() == {
        "experiment": "digits",
        "merge": "mean",
        "metric": "accuracy",
        "rounds": 2,
        "sites": [
            {"site": "alpha", "alone": 0.8, "swarm": 0.95},
            {"site": "beta", "alone": 0.8, "swarm": 0.94},
        ],
        "pooled": 0.96,
        "seconds": 12.5,
        "ledger": {"kind": "embedded", "transactions": 7, "blocks": 9},
        "merged_hashes": [f"{1:064x}", f"{2:064x}"],
        "run_dir": "/run",
    }


def test_the_table_names_sites_figures_folder_and_what_to_try_next():
    text = shown(summary(Path("/run")))
    for expected in ("alpha", "0.800", "0.950", "0.960", "/run", "swarm-hpc verify /run", "transfer=direct", "thyroid"):
        assert expected in text


def test_names_and_folders_are_shown_as_they_stand():
    text = shown(replace(summary(Path("/runs [old]/1")), metric="f1 [macro]", title="Digits [small]"))
    assert all(
        part in text for part in ("Digits [small]\n", " f1 [macro] ", "/runs [old]/1\n", "verify /runs [old]/1\n")
    )


def test_without_baselines_the_table_has_gaps_instead_of_figures():
    text = shown(summary(Path("/run"), alone=None, pooled=None))
    assert "0.940" in text
    assert " - " in text


@pytest.mark.slow
def test_a_run_is_saved_with_and_without_losses_metrics_and_baselines(tmp_path):
    for number, one in enumerate(
        [
            summary(tmp_path / "0", rounds=[round_(1, {"alpha": 1.0, "beta": None}), round_(2, {"beta": 0.5})]),
            summary(tmp_path / "1", alone=None, pooled=None),
            summary(tmp_path / "2", alone=7.5, rounds=[round_(1, {"alpha": None}, metric=0.5)]),
        ]
    ):
        one.run_dir.mkdir()
        results.save(one)
        assert json.loads((tmp_path / str(number) / "summary.json").read_text()) == one.as_json()
        assert (tmp_path / str(number) / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_saved_and_shown_without_matplotlib_which_is_an_extra(tmp_path, monkeypatch, caplog):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    one = summary(tmp_path)
    results.save(one)
    assert "no figure: that needs matplotlib" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert "0.950" in shown(one)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["one site", "everywhere"])
def test_a_run_whose_metric_is_no_finite_number_is_saved_and_shown(tmp_path, value, where):
    one = summary(tmp_path, rounds=[round_(1, {"alpha": 1.0, "beta": 2.0})])
    diverged = [replace(site, alone=value, swarm=value) for site in one.sites]
    sites = (diverged[0], one.sites[1]) if where == "one site" else tuple(diverged)
    one = replace(one, sites=sites, pooled=value)
    results.save(one)
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (found["sites"][0], found["pooled"]) == ({"site": "alpha", "alone": None, "swarm": None}, None)
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert f" {value:.3f} " in shown(one)


@pytest.mark.parametrize("values", [[-3.0, -1.0], [-0.5, -0.5], [-1.0, 2.0], [3.0, 7.5], [0.8, 0.96]])
def test_every_bar_ends_within_the_figure(values):
    lower, upper = results._limits(values)
    assert lower < min(values)
    assert max(values) < upper
