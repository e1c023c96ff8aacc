"""Exact kNN of 10,000 queries against 50,000 features of 512 dimensions, beside scikit-learn's in the same run.

python benchmarks/knn.py [--queries N] [--bank N] [--features D] [--neighbours K]
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.neighbors import KNeighborsClassifier

from zoo.evaluate.knn import knn


def features(count: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten overlapping Gaussian classes in a 32-dimensional part of the space, as representations tend to be."""
    draw = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(0)
    centres, basis = torch.randn(10, 32, generator=shared), torch.randn(32, size, generator=shared)
    labels = torch.randint(0, 10, (count,), generator=draw)
    return (centres[labels] + torch.randn(count, 32, generator=draw)) @ basis + 0.5 * torch.randn(
        count, size, generator=draw
    ), labels


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def timed(function) -> tuple[object, float, float]:
    before, start = peak_mb(), time.perf_counter()
    result = function()
    return result, time.perf_counter() - start, peak_mb() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("queries", 10_000), ("bank", 50_000), ("features", 512), ("neighbours", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    bank, labels = features(a.bank, a.features, 1)
    queries, _ = features(a.queries, a.features, 2)
    unit = {
        "train": torch.nn.functional.normalize(bank.double(), dim=1).numpy(),
        "query": torch.nn.functional.normalize(queries.double(), dim=1).numpy(),
    }
    knn(bank[:1000], labels[:1000], queries[:100])  # warm-up
    table = Table(
        title=f"{a.queries:,} queries, {a.bank:,} features of {a.features}, k {a.neighbours}, "
        f"{torch.get_num_threads()} threads"
    )
    for column in (
        "metric",
        "zoo s",
        "scikit-learn s",
        "times faster",
        "zoo MB more",
        "scikit-learn MB more",
        "same predictions",
    ):
        table.add_column(column, justify="right")
    for metric in ("cosine", "euclidean"):
        mine, seconds, memory = timed(lambda: knn(bank, labels, queries, a.neighbours, metric=metric, vote="majority"))
        # cosine order is the Euclidean order of unit vectors, scikit-learn's faster way; its own rounding needs float64
        train, query = (
            (unit["train"], unit["query"]) if metric == "cosine" else (bank.double().numpy(), queries.double().numpy())
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = KNeighborsClassifier(a.neighbours, algorithm="brute").fit(train, labels.numpy())
            theirs, their_seconds, their_memory = timed(lambda: model.predict(query))
        same = int(np.sum(mine.numpy() == theirs))
        table.add_row(
            metric,
            f"{seconds:.2f}",
            f"{their_seconds:.2f}",
            f"{their_seconds / seconds:.2f}",
            f"{memory:.0f}",
            f"{their_memory:.0f}",
            f"{same:,} of {a.queries:,}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
