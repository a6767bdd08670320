"""Deals scikit-learn's digits (1797 images of 8x8 pixels) out to sites that each lack most examples of some classes.

Writes OUT_DIR/<site>/{train,test}.npz, and OUT_DIR/pooled/ with the training data of all sites together. The held-out
test set is the same everywhere.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

NAMES = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
COMMON = 0.2  # this share of every class is dealt to all sites; the rest goes to the class's home site
HELD_OUT = 0.2


def home_classes(num_sites: int) -> list[range]:
    """The ten digits in as many runs as there are sites; for four: 0-2, 3-4, 5-7, 8-9."""
    edges = [int(site * 10 / num_sites + 0.5) for site in range(num_sites + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def split(label: np.ndarray, num_sites: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Indices of each site's training examples (disjoint), and of the test set."""
    rng = np.random.default_rng(seed)
    home: list[list[int]] = [[] for _ in range(num_sites)]
    common: list[int] = []
    test: list[int] = []
    for site, classes in enumerate(home_classes(num_sites)):
        for digit in classes:
            index = rng.permutation(np.flatnonzero(label == digit))
            num_test, num_common = int(HELD_OUT * len(index)), int(COMMON * (1 - HELD_OUT) * len(index))
            test.extend(index[:num_test])
            common.extend(index[num_test : num_test + num_common])
            home[site].extend(index[num_test + num_common :])
    # in proportion to what a site has of its own, so that COMMON is the share at every site
    ends = np.cumsum([len(own) for own in home]) / sum(len(own) for own in home) * len(common)
    shares = np.split(rng.permutation(common), ends[:-1].astype(int))
    return [np.sort(np.concatenate([own, share])) for own, share in zip(home, shares, strict=True)], np.sort(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--sites", type=int, default=4, choices=range(2, 9), metavar="2..8")
    parser.add_argument("--names", default="", help="names of the sites, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.names.split(",") if args.names else NAMES[: args.sites]
    if len(names) != args.sites:
        parser.error(f"--names: {len(names)} names for {args.sites} sites")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("scikit-learn, which holds the digits, is missing: pip install 'swarm-hpc[demo]'")

    digits = load_digits()
    image, label = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    train, test = split(label, args.sites, args.seed)
    for name, index in [*zip(names, train, strict=True), ("pooled", np.concatenate(train))]:
        folder = args.out_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "train.npz", x=image[index], y=label[index])
        np.savez(folder / "test.npz", x=image[test], y=label[test])
        print(f"{name}: {len(index)} images, per digit {np.bincount(label[index], minlength=10).tolist()}")


if __name__ == "__main__":
    main()
