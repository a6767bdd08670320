"""The benchmark of merging still runs, and says what it measured."""

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
