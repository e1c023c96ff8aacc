"""Runs recipes over several seeds, measures what they are worth, and writes recipes/README.md. Can be stopped and taken up again.

    python benchmarks/recipes.py                       every recipe, seeds 0 1 2
    python benchmarks/recipes.py --only mae-vit-fashion-mnist --seeds 0
    python benchmarks/recipes.py --render              only write the table again from recipes/results.json

Each run is a process of its own, so that its peak memory is its own. Numbers are read from the test split once, by `zoo evaluate`;
what was chosen (k, penalty) was chosen on validation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "recipes" / "results.json"
LABELS = (1.0, 0.01, 5)
COLUMNS = [("knn", 1.0), ("linear", 1.0), ("linear", 0.01), ("linear", 5)]


def run(recipe: Path, seed: int, out: Path) -> dict:
    """Pretrain (or take up what is there), evaluate, and return the facts of one run."""
    folder = out / f"{recipe.stem}-s{seed}"
    command = [sys.executable, "-m", "zoo.cli", "pretrain", str(recipe), "--seed", str(seed), "--out", str(folder), "--no-progress"]
    if not (folder / "checkpoint" / "zoo.json").is_file():
        subprocess.run(command + (["--resume"] if (folder / "recipe.yaml").is_file() else []), check=True)
    evaluate = [sys.executable, "-m", "zoo.cli", "evaluate", str(folder), "--save", "--json", "--labels", *map(str, LABELS)]
    subprocess.run(evaluate, check=True, stdout=subprocess.DEVNULL)
    card = json.loads((folder / "checkpoint" / "zoo.json").read_text())
    keys = ("steps", "samples_seen", "minutes", "peak_memory_mb", "parameters", "commit", "created", "machine", "metrics")
    return {"recipe": recipe.stem, "seed": seed, "task": card["task"]["name"], "data": card["data"]["name"]} | {key: card[key] for key in keys}


def render(results: list[dict]) -> str:
    """recipes/README.md from the facts of all runs."""
    lines = [(Path(__file__).parent / "recipes_header.md").read_text().rstrip()]
    for data in sorted({r["data"] for r in results}):
        runs = [r for r in results if r["data"] == data]
        lines += ["", f"## {data}", "", "| recipe | features | " + " | ".join(_title(*column) for column in COLUMNS) +
                  " | seeds | steps | minutes | peak memory |", "|---|---|" + "---:|" * (len(COLUMNS) + 4)]
        for recipe in sorted({r["recipe"] for r in runs}):
            same = [r for r in runs if r["recipe"] == recipe]
            for features in _features(same):
                if features in ("pixels",):
                    continue
                cells = [_cell(same, features, *column) for column in COLUMNS]
                last = ["", "", "", ""] if features == "random weights" else [
                    str(len(same)), f"{same[0]['steps']:,}", f"{statistics.mean(r['minutes'] for r in same):.1f}",
                    f"{max(r['peak_memory_mb'] for r in same) / 1000:.1f} GB"]
                name = f"[{recipe}](pretrain/{recipe}.yaml)" if features == "backbone" else ""
                lines.append("| " + " | ".join([name, features, *cells, *last]) + " |")
        cells = [_cell(runs[:1], "pixels", *column) for column in COLUMNS]
        lines.append("| " + " | ".join(["raw pixels", "pixels", *cells, "", "", "", ""]) + " |")
    commits = sorted({str(r["commit"]) for r in results})
    machines = sorted({f"{r['machine']['cpu']}, {r['machine']['cores']} cores, {r['machine']['threads']} threads" for r in results})
    dates = sorted({r["created"] for r in results})
    lines += ["", f"Machine: {'; '.join(machines)}. Commit: {', '.join(commits)}. Date: {', '.join(dates)}."]
    return "\n".join(lines) + "\n"


def _features(runs: list[dict]) -> list[str]:
    names = list(dict.fromkeys(m["features"] for r in runs for m in r["metrics"]))
    return sorted(names, key=lambda name: (name != "backbone", name == "random weights", name))


def _title(protocol: str, labels: float | int) -> str:
    amount = "all labels" if labels == 1.0 else f"{labels} labels a class" if isinstance(labels, int) else f"{100 * labels:g} % of labels"
    return f"{'kNN' if protocol == 'knn' else protocol}, {amount}"


def _cell(runs: list[dict], features: str, protocol: str, labels: float | int) -> str:
    """Mean and, over three runs or more, standard deviation of the runs' values; for baselines, their own spread."""
    found = [m for r in runs for m in r["metrics"] if (m["features"], m["protocol"]) == (features, protocol) and m["labels"] == labels
             and isinstance(m["labels"], int) == isinstance(labels, int)]
    if not found:
        return ""
    values = [m["value"] for m in found]
    if features in ("pixels", "random weights") or len(values) < 2:
        spread = found[0]["sd"]
    else:
        spread = statistics.stdev(values)
    return f"{statistics.mean(values):.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", help="recipes by name")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments.add_argument("--out", type=Path, default=ROOT / "runs")
    arguments.add_argument("--render", action="store_true", help="run nothing")
    given = arguments.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    done = {(r["recipe"], r["seed"]) for r in results}
    for seed in given.seeds if not given.render else ():
        for recipe in sorted((ROOT / "recipes" / "pretrain").glob("*.yaml")):
            if (given.only and recipe.stem not in given.only) or (recipe.stem, seed) in done:
                continue
            results.append(run(recipe, seed, given.out))
            results.sort(key=lambda r: (r["data"], r["recipe"], r["seed"]))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "recipes" / "README.md").write_text(render(results))


if __name__ == "__main__":
    main()
