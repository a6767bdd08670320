"""`swarm-hpc local` as a newcomer runs it: on real data, then verified, then tampered with."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]


def swarm_hpc(*words):
    return subprocess.run([sys.executable, "-m", "swarm_hpc.cli", *words], capture_output=True, text=True)


def run_digits(tmp_path, *words):
    run_dir = tmp_path / "run"
    done = swarm_hpc("local", "experiment=digits", f"run_dir={run_dir}", *words, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((run_dir / "summary.json").read_text())
    return run_dir, summary


def change_one_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("merge", "transfer", "how", "merged_by"),
    [
        ("mean", "gateway", "plan=leader", "mean"),
        ("geomedian", "direct", "wire=int8", "geomedian wire=int8 whole_every=10"),
        ("coordmedian", "gateway", "plan=sharded", "coordmedian plan=sharded"),
    ],
)
def test_every_site_gains_from_the_swarm_and_the_ledger_can_be_verified(tmp_path, merge, transfer, how, merged_by):
    run_dir, summary = run_digits(tmp_path, f"merge={merge}", f"transfer={transfer}", f"merge.{how}")
    assert (summary["experiment"], summary["merge"], summary["metric"]) == ("digits", merged_by, "accuracy")
    assert [site["site"] for site in summary["sites"]] == ["alpha", "beta", "gamma", "delta"]
    assert all(site["alone"] < 0.91 for site in summary["sites"])
    assert all(site["swarm"] >= summary["pooled"] - 0.02 for site in summary["sites"])
    assert len(summary["merged_hashes"]) == summary["rounds"] > 0
    assert summary["ledger"]["transactions"] >= summary["rounds"] * 6  # 4 check-ins, a claim, a publication
    assert (run_dir / "results.png").read_bytes().startswith(b"\x89PNG")

    done = swarm_hpc("verify", str(run_dir), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rounds_checked"], report["mismatches"], report["details"]) == (summary["rounds"], 0, [])

    # the third round's result, changed by one byte in one of its copies
    copy = next(path for path in run_dir.rglob(summary["merged_hashes"][2]) if path.is_file())
    change_one_byte(copy)
    done = swarm_hpc("verify", str(run_dir), "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["mismatches"] == 1
    assert (report["details"][0]["contract"], report["details"][0]["round"]) == ("digits", 3)
    table = swarm_hpc("verify", str(run_dir))
    assert table.returncode == 1
    assert "1 mismatch" in table.stdout


def test_every_site_gains_from_the_swarm_on_thyroid_patients(tmp_path):
    done = swarm_hpc("local", "experiment=thyroid", f"run_dir={tmp_path / 'run'}", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert min(site["alone"] for site in summary["sites"]) < 0.80
    assert all(site["swarm"] >= summary["pooled"] - 0.015 for site in summary["sites"])


def test_a_run_folder_that_is_in_use_is_not_touched(tmp_path):
    (tmp_path / "precious").write_text("data")
    done = swarm_hpc("local", "experiment=digits", f"run_dir={tmp_path}")
    assert done.returncode == 2
    assert f"{tmp_path} is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
