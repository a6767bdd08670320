"""The merges of other projects, from their own packages: `bench_merge.py` runs this in their environment.

    python merge_peers.py --size 25000000 --peers 4 --repeats 3

Prints a JSON list of rows. Each project gets its models in the form that it takes without copying.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
from timing import make_models, measure

Merge = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    models = make_models(options.peers, options.size)
    # what they print must not get between the JSON
    with contextlib.redirect_stdout(sys.stderr):
        rows = [
            measure(models, merge, options.repeats, method=method, backend=backend, weights=weights)
            for method, backend, weights, merge in merges(models)
        ]
    print(json.dumps(rows))


def merges(models: list[np.ndarray]) -> Iterator[tuple[str, str, str, Merge]]:
    from flwr.server.strategy import aggregate as flower
    from geom_median.numpy import compute_geometric_median
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    flwr, nvflare, geom_median = (f"{name}-{version(name)}" for name in ("flwr", "nvflare", "geom-median"))
    equal = [([model], 1) for model in models]
    unequal = [([model], 1 + peer) for peer, model in enumerate(models)]

    def accumulate() -> object:
        helper = WeightedAggregationHelper()
        for peer, model in enumerate(models):
            helper.add({"w": model}, 1.0 + peer, f"site-{peer}", 0)
        return helper.get_result()

    yield "mean", flwr, "unequal", lambda: flower.aggregate(unequal)
    yield "mean", nvflare, "unequal", accumulate
    yield "coordmedian", flwr, "equal", lambda: flower.aggregate_median(equal)
    yield "trimmedmean", flwr, "equal", lambda: flower.aggregate_trimmed_avg(equal, 0.25)
    yield "krum", flwr, "equal", lambda: flower.aggregate_krum(equal, 1, 0)
    yield "geomedian", geom_median, "equal", lambda: compute_geometric_median(models, skip_typechecks=True)


if __name__ == "__main__":
    main()
