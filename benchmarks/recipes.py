"""Runs recipes over several seeds, measures what they are worth, and writes recipes/README.md. Can be stopped and taken
up again.

    python benchmarks/recipes.py                       every recipe, seeds 0 1 2
    python benchmarks/recipes.py --only mae-vit-fashion-mnist --seeds 0
    python benchmarks/recipes.py --render              only write table and headers again from recipes/results.json

Each run is a process of its own, so that its peak memory is its own. Numbers are read from the test split once, by
`zoo.evaluate`; what was chosen (k, penalty) was chosen on validation. The baselines are those of the first seed. Two of
these may run at once, each with its own --only or --seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from filelock import FileLock
from table import costs_of, known, seeds_of, write_header
from table import render as table_of_tasks

from zoo.evaluate.banks import OWN
from zoo.evaluate.baselines import PIXELS, RANDOM
from zoo.evaluate.table import evaluate

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "recipes" / "results.json"
LABELS = (1.0, 0.01, 5)
COLUMNS = [("knn", 1.0), ("linear", 1.0), ("linear", 0.01), ("linear", 5)]


def run(recipe: Path, seed: int, out: Path) -> dict:
    """Pretrain (or take up what is there), evaluate, and return the facts of one run."""
    folder = out / f"{recipe.stem}-s{seed}"
    command = [
        sys.executable,
        "-m",
        "zoo.cli",
        "pretrain",
        str(recipe),
        "--seed",
        str(seed),
        "--out",
        str(folder),
        "--no-progress",
    ]
    if not (folder / "checkpoint" / "zoo.json").is_file():
        subprocess.run(command + (["--resume"] if (folder / "recipe.yaml").is_file() else []), check=True)
    evaluate(folder, labels=LABELS, save=True, baselines=seed == 0)
    card = json.loads((folder / "checkpoint" / "zoo.json").read_text())
    keys = (
        "steps",
        "samples_seen",
        "minutes",
        "peak_memory_mb",
        "parameters",
        "commit",
        "created",
        "machine",
        "metrics",
    )
    return {"recipe": recipe.stem, "seed": seed, "task": card["task"]["name"], "data": card["data"]["name"]} | {
        key: card[key] for key in keys
    }


def render(results: list[dict]) -> str:
    """recipes/README.md from the facts of all runs."""
    commits = sorted({str(r["commit"]) for r in results})
    machines = sorted(
        {
            f"{r['machine']['cpu']}, {r['machine']['threads']} thread(s) of {r['machine']['cores']} cores"
            for r in results
        }
    )
    dates = sorted({r["created"] for r in results})
    lines = [(Path(__file__).parent / "recipes_header.md").read_text().rstrip()]
    for data in sorted({r["data"] for r in results}, reverse=True):
        lines += ["", f"## {data}", "", *table([r for r in results if r["data"] == data], "")]
    lines += ["", f"Machine: {'; '.join(machines)}. Commit: {', '.join(commits)}. Date: {', '.join(dates)}.", ""]
    return "\n".join([*lines, table_of_tasks(known())]) if known() else "\n".join(lines)


def write_readme() -> None:
    """recipes/README.md, from what both benchmarks have measured."""
    (ROOT / "recipes" / "README.md").write_text(render(json.loads(RESULTS.read_text())))


def table(runs: list[dict], folder: str, every: bool = True) -> list[str]:
    """Lines of one data set's table; with `every`, of every representation and with its costs. Recipes are linked below
    `folder`.
    """
    costs = ("seeds", "steps", "minutes", "peak memory") if every else ("minutes",)
    lines = [
        "| " + " | ".join(["recipe", "features", *(_title(*column) for column in COLUMNS), *costs]) + " |",
        "|---|---|" + "---:|" * (len(COLUMNS) + len(costs)),
    ]
    for recipe in sorted({r["recipe"] for r in runs}):
        same = [r for r in runs if r["recipe"] == recipe]
        facts = [
            str(len(same)),
            f"{same[0]['steps']:,}",
            f"{statistics.mean(r['minutes'] for r in same):.1f}",
            f"{max(r['peak_memory_mb'] for r in same) / 1000:.1f} GB",
        ]
        for features in _features(same):
            if features == PIXELS or (features not in (OWN, RANDOM) and not every):
                continue
            cells = [_cell(same, features, *column) for column in COLUMNS]
            last = [""] * len(costs) if features != OWN else facts if every else facts[2:3]
            name = f"[{recipe}]({folder}pretrain/{recipe}.yaml)" if features == OWN else ""
            lines.append("| " + " | ".join([name, features, *cells, *last]) + " |")
    cells = [_cell(runs, PIXELS, *column) for column in COLUMNS]
    return [*lines, "| " + " | ".join(["raw pixels", PIXELS, *cells, *[""] * len(costs)]) + " |"]


def write_summary(results: list[dict]) -> None:
    """The short table between the two marks in the README."""
    path, marks = ROOT / "README.md", ("<!-- results -->", "<!-- end of results -->")
    before, _, rest = path.read_text().partition(marks[0])
    lines = []
    for data in sorted({r["data"] for r in results}, reverse=True):
        lines += [
            "",
            f"Accuracy on the test split of {data}, %:",
            "",
            *table([r for r in results if r["data"] == data], "recipes/", every=False),
        ]
    path.write_text("\n".join([before + marks[0], *lines, "", marks[1]]) + rest.partition(marks[1])[2])


def _features(runs: list[dict]) -> list[str]:
    names = list(dict.fromkeys(m["features"] for r in runs for m in r["metrics"]))
    return sorted(names, key=lambda name: (name != OWN, name == RANDOM, name))


def _title(protocol: str, labels: float | int) -> str:
    amount = (
        "all labels"
        if labels == 1.0
        else f"{labels} labels a class"
        if isinstance(labels, int)
        else f"{100 * labels:g} % of labels"
    )
    return f"{'kNN' if protocol == 'knn' else protocol}, {amount}"


def _cell(runs: list[dict], features: str, protocol: str, labels: float | int) -> str:
    """Mean and, over three runs or more, standard deviation of the runs' values; for baselines, their own spread."""
    found = [
        m
        for r in runs
        for m in r["metrics"]
        if (m["features"], m["protocol"]) == (features, protocol)
        and m["labels"] == labels
        and isinstance(m["labels"], int) == isinstance(labels, int)
    ]
    if not found:
        return ""
    values = [m["value"] for m in found]
    if features in (PIXELS, RANDOM) or len(values) < 2:
        spread = found[0]["sd"]
    else:
        spread = statistics.stdev(values)
    return f"{statistics.mean(values):.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def write_headers(results: list[dict]) -> None:
    """The lines `# Costs:` and `# Measured:` of each recipe that was run."""
    for path in sorted((ROOT / "recipes" / "pretrain").glob("*.yaml")):
        runs = [r for r in results if r["recipe"] == path.stem]
        if not runs:
            continue
        machine = runs[0]["machine"]
        values = ", ".join(f"{_title(*column)} {_cell(runs, OWN, *column)}" for column in COLUMNS)
        write_header(
            path, costs_of(runs, f"{machine['threads']} thread(s) of {machine['cpu']}"), f"{values}; {seeds_of(runs)}"
        )


def record(result: dict) -> None:
    """Add one run's facts to results.json, which another process may be writing too."""
    with FileLock(RESULTS.with_suffix(".lock")):
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
        results = [r for r in results if (r["recipe"], r["seed"]) != (result["recipe"], result["seed"])] + [result]
        results.sort(key=lambda r: (r["data"], r["recipe"], r["seed"]))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".lock").unlink(missing_ok=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", help="recipes by name")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments.add_argument("--out", type=Path, default=ROOT / "runs")
    arguments.add_argument("--render", action="store_true", help="run nothing")
    given = arguments.parse_args()
    measured = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    done = {(r["recipe"], r["seed"]) for r in measured}
    for seed in given.seeds if not given.render else ():
        for recipe in sorted((ROOT / "recipes" / "pretrain").glob("*.yaml")):
            if (not given.only or recipe.stem in given.only) and (recipe.stem, seed) not in done:
                record(run(recipe, seed, given.out))
    results = json.loads(RESULTS.read_text())
    write_readme()
    write_headers(results)
    write_summary(results)


if __name__ == "__main__":
    main()
