"""Benchmarks that nothing else runs still run, and say what they measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
def test_the_benchmark_of_merges_prints_a_row_per_method_and_backend():
    command = [sys.executable, BENCHMARKS / "bench_merge.py", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    rows = json.loads(done.stdout)["rows"]
    assert {row["method"] for row in rows} == {"mean", "coordmedian", "trimmedmean", "geomedian", "krum"}
    assert {"numpy", "torch.stack"} < {row["backend"] for row in rows}
    for row in rows:
        assert (row["num_peers"], row["num_parameters"], row["dtype"], row["threads"]) == (4, 1_000_000, "F32", 1)
        assert row["times_limit"] > 0


@pytest.mark.slow
@pytest.mark.netns
def test_the_benchmark_of_links_prints_a_row_per_way_with_the_traffic_of_a_node():
    words = ["--nodes", "4", "--millions", "1", "--methods", "mean", "--rounds", "1", "--json", "--no-save"]
    command = [sys.executable, BENCHMARKS / "bench_links.py", *words, "--ways", "leader,sharded,int8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    leader, sharded, rounded = json.loads(done.stdout)["rows"]
    assert (leader["way"], sharded["way"], rounded["way"]) == ("leader", "sharded", "int8")
    # a leader gets three models; a node with a shard gets and sends 2 (4 - 1) / 4, and what else is said
    assert leader["received_models"] > 2.5
    assert leader["sent_models"] > sharded["sent_models"]
    assert 1.4 < sharded["sent_models"] < 2
    assert 1.4 < sharded["received_models"] < 2
    # of each of three peers a quarter
    assert 0.7 < rounded["received_models"] < 1
    assert min(leader["round_s"], sharded["round_s"], rounded["round_s"]) > 0
