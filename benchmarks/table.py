"""One table over all pretext tasks at an equal budget. Can be stopped and taken up again: what is measured is kept in
recipes/table.json.

    python benchmarks/table.py                          every task on both sets, seed 0; seeds 1, 2 where it is close
    python benchmarks/table.py --only mae simclr --data emoji --seeds 0 1 2
    python benchmarks/table.py --render                 only write the headers of the recipes and the pictures again
    python benchmarks/recipes.py --render               write the table of recipes/README.md

The budget is 600 steps of 256 pictures, two to three minutes of SimCLR with timm's test_resnet on one thread of a CPU.
Each task keeps its recipe's arguments, optimizer and ViT; convolutional backbones are all test_resnet with
output_stride 8. A task that has recipes for both kinds of backbone has a row of each. Pictures are 28 pixels, emoji
too. Features are measured on fixed lists of at most 10,000 training, 5,000 validation and 10,000 test pictures;
everything is chosen on validation, and test is read once. Two of these may run at once, each with its own --only,
--data or --seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from filelock import FileLock

from zoo.data.dataset import Dataset
from zoo.data.datasets import data_info
from zoo.data.module import ZooData, create_data
from zoo.evaluate.banks import OWN, Bank, Candidate, extract
from zoo.evaluate.baselines import NETWORKS, PIXELS, RANDOM, random_task, raw_pixels
from zoo.evaluate.table import measure
from zoo.recipe import flat, read, resolve
from zoo.registry import find_task, list_tasks
from zoo.tasks.load import load_task

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "recipes" / "table.json"
SETS = ("fashion-mnist", "emoji")
LISTS = {"train": 10_000, "validation": 5_000, "test": 10_000}
STEPS, BATCH, SIZE = 600, 256, 28
CONV = {"name": "test_resnet", "output_stride": 8}
PAIRS = [("knn", 1.0), ("linear", 1.0), ("finetune", 0.01)]
TITLES = {"knn": "kNN", "linear": "linear", "finetune": "fine-tuned, 1 % of labels"}
SMALL = 3.0  # points over random weights, below which a row gets three seeds


def is_vit(backbone: dict) -> bool:
    return "patch_size" in backbone


def kind_of(backbone: dict) -> str:
    return f"ViT, patches of {backbone['patch_size']}" if is_vit(backbone) else backbone["name"]


def files_of(task: str, data: str) -> list[Path]:
    """Its recipe for a convolutional backbone and its recipe for a ViT, as far as there are such; the first that the
    table's budget fits best.
    """
    files = [
        path
        for path in sorted((ROOT / "recipes" / "pretrain").glob(f"{task}-*.yaml"))
        if read(path)["task"]["name"] == task
    ]
    files.sort(key=lambda path: ("test-resnet" not in path.name, data not in path.name))
    kinds = {is_vit(read(path)["backbone"]): path for path in reversed(files)}
    return [kinds[vit] for vit in (False, True) if vit in kinds]


def recipes_of(task: str, data: str) -> list[dict]:
    """The task's recipes at the table's budget, resolved; none if the data aren't for it."""
    if find_task(task).needs_colour and data_info(data).channels == 1:
        return []
    changed = {
        "data.name": data,
        "data.size": SIZE,
        "data.batch_size": BATCH,
        "trainer.max_steps": STEPS,
        "trainer.validate_every": 0,
        "trainer.accumulate": 1,
    }
    found = [read(path) for path in files_of(task, data)]
    for recipe in found:
        if not is_vit(recipe["backbone"]):
            recipe["backbone"] = CONV
    return [resolve(recipe, dict(flat(changed))) for recipe in found]


def listed(data: ZooData) -> ZooData:
    """The same set with its splits cut to the fixed lists."""
    whole = data.dataset
    splits = {
        name: rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: LISTS[name]].sort().values]
        for name, rows in whole.splits.items()
    }
    return ZooData(Dataset(whole.info, whole.fields, splits, whole.fingerprint))


def run(recipe: dict, seed: int, out: Path) -> dict:
    """Pretrain in a process of its own (its peak memory is its own), measure here; the facts of one row."""
    task, data = recipe["task"]["name"], recipe["data"]["name"]
    name = f"table-{task}-{data}" if recipes_of(task, data)[0] == recipe else f"table-{task}-vit-{data}"
    folder, file = out / f"{name}-s{seed}", out / f"{name}.yaml"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe | {"seed": seed}, sort_keys=False))
    if not (folder / "checkpoint" / "zoo.json").is_file():
        resume = ["--resume"] if (folder / "last.ckpt").is_file() else []
        subprocess.run(
            [
                sys.executable,
                "-m",
                "zoo.cli",
                "pretrain",
                str(file),
                "--out",
                str(folder),
                "--no-progress",
                "--logger",
                "csv",
                *resume,
            ],
            check=True,
        )
    card = json.loads((folder / "checkpoint" / "zoo.json").read_text())
    pictures = listed(create_data(data, size=SIZE))
    made = load_task(folder / "checkpoint")
    bank = extract(made, pictures)[OWN]
    return {
        "data": data,
        "task": task,
        "seed": seed,
        "backbone": card["backbone"],
        "uses_labels": made.uses_labels,
        "minutes": card["minutes"],
        "peak_memory_mb": card["peak_memory_mb"],
        "commit": card["commit"],
        "created": card["created"],
        "cpu": f"{card['machine']['cpu']}, {card['machine']['threads']} thread(s)",
        **values([Candidate(OWN, [bank], [made])], pictures),
    }


def baseline(backbone: dict | None, data: str) -> dict:
    """The row of random weights of a backbone, or, without one, of raw pixels."""
    pictures = listed(create_data(data, size=SIZE))
    if backbone is None:
        candidate = Candidate(PIXELS, [raw_pixels(pictures)], [])
    else:
        card = {"backbone": backbone, "task": {"name": "simclr"}, "data": {"size": SIZE}, "parameters": 0}
        tasks = [random_task(card, draw) for draw in range(NETWORKS)]
        banks: list[Bank] = [extract(task, pictures)[OWN] for task in tasks]
        candidate = Candidate(RANDOM, banks, tasks)
    return {"data": data, "task": candidate.name, "seed": 0, "backbone": backbone, **values([candidate], pictures)}


def values(candidates: list[Candidate], pictures: ZooData) -> dict:
    return {row["protocol"]: {"value": row["value"], "sd": row["sd"]} for row in measure(candidates, pictures, PAIRS)}


# ---- keeping -------------------------------------------------------------------------------------


def known() -> list[dict]:
    return json.loads(TABLE.read_text()) if TABLE.is_file() else []


def _key(row: dict) -> tuple:
    return row["data"], row["task"], row["seed"], json.dumps(row["backbone"], sort_keys=True)


def record(row: dict) -> None:
    """Add a row to table.json, which another process may be writing too."""
    with FileLock(TABLE.with_suffix(".lock")):
        rows = [other for other in known() if _key(other) != _key(row)] + [row]
        TABLE.write_text("[\n" + ",\n".join(json.dumps(row) for row in sorted(rows, key=_key)) + "\n]\n")
    TABLE.with_suffix(".lock").unlink(missing_ok=True)


def find(rows: list[dict], **facts) -> dict | None:
    return next((row for row in rows if all(row[key] == value for key, value in facts.items())), None)


def margin(rows: list[dict], task: str, data: str, backbone: dict) -> float:
    """Points over random weights of the same backbone, by seed 0: the least of all columns."""
    row, floor = (find(rows, data=data, task=name, seed=0, backbone=backbone) for name in (task, RANDOM))
    return min(row[kind]["value"] - floor[kind]["value"] for kind in TITLES)


def fill(given: argparse.Namespace) -> None:
    tasks = [
        entry.name for entry in list_tasks() if entry.origin == "zoo" and (not given.only or entry.name in given.only)
    ]
    for data in given.data:
        if find(known(), data=data, task=PIXELS) is None:
            record(baseline(None, data))
    for seed in given.seeds:
        for data in given.data:
            for task in tasks:
                for recipe in recipes_of(task, data):
                    backbone = recipe["backbone"]
                    if find(known(), data=data, task=RANDOM, backbone=backbone) is None:
                        record(baseline(backbone, data))
                    if find(known(), data=data, task=task, seed=seed, backbone=backbone) is not None:
                        continue
                    if seed and not given.all_seeds and margin(known(), task, data, backbone) >= SMALL:
                        continue
                    print(f"{task} on {data}, {backbone['name']}, seed {seed}", flush=True)
                    record(run(recipe, seed, given.out))


# ---- showing -------------------------------------------------------------------------------------


def cell(rows: list[dict], kind: str) -> str:
    found = [row[kind] for row in rows if kind in row]
    if not found:
        return ""
    spread = statistics.stdev(v["value"] for v in found) if len(found) > 1 else found[0]["sd"]
    return f"{statistics.mean(v['value'] for v in found):.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def linked(row: dict) -> str:
    """The task's name, with its recipe behind it."""
    files = (
        []
        if row["task"] in (RANDOM, PIXELS)
        else [p for p in files_of(row["task"], row["data"]) if is_vit(read(p)["backbone"]) == is_vit(row["backbone"])]
    )
    return f"[{row['task']}](pretrain/{files[0].name})" if files else row["task"]


def render(rows: list[dict]) -> str:
    lines = [
        "## Every task at an equal budget",
        "",
        f"{STEPS} steps of {BATCH} pictures of {SIZE} pixels, each task with its own recipe's arguments and optimizer. "
        "kNN and linear probe on 10,000 labelled",
        "pictures (5,162 of emoji), fine-tuning on 1 % of them; test accuracy in percent, everything chosen on "
        "validation. ± is "
        "one standard deviation over seeds,",
        "with one seed over draws of the labels, of random weights over three networks. A task that seed 0 puts less "
        "than "
        f"{SMALL:g} points above random",
        "weights in any column gets seeds 1 and 2 too. Tasks marked * learn from labels. `python benchmarks/table.py` "
        "fills the "
        "table.",
        "",
    ]
    for data in SETS:
        here = [row for row in rows if row["data"] == data]
        if not here:
            continue
        lines += [
            f"### {data}",
            "",
            f"![accuracy against minutes](table-{data}.svg)",
            "",
            "| task | backbone | " + " | ".join(TITLES.values()) + " | seeds | minutes | peak memory |",
            "|---|---|" + "---:|" * (len(TITLES) + 3),
        ]
        groups: dict[tuple, list[dict]] = {}
        for row in here:
            groups.setdefault((row["task"], json.dumps(row["backbone"], sort_keys=True)), []).append(row)
        order = sorted(groups.values(), key=lambda group: -statistics.mean(row["linear"]["value"] for row in group))
        for group in order:
            first = group[0]
            name = linked(first) + ("*" if first.get("uses_labels") else "")
            backbone = "" if first["backbone"] is None else kind_of(first["backbone"])
            costs = (
                [
                    f"{statistics.mean(r['minutes'] for r in group):.1f}",
                    f"{max(r['peak_memory_mb'] for r in group) / 1000:.1f} GB",
                ]
                if "minutes" in first
                else ["", ""]
            )
            bold = "**" if first["task"] in (RANDOM, PIXELS) else ""
            lines.append(
                "| "
                + " | ".join(
                    [
                        f"{bold}{name}{bold}",
                        backbone,
                        *(cell(group, kind) for kind in TITLES),
                        str(len(group)) if "minutes" in first else "",
                        *costs,
                    ]
                )
                + " |"
            )
        lines.append("")
    trained = [row for row in rows if "commit" in row]
    if trained:
        lines += [
            f"Machine: {'; '.join(sorted({row['cpu'] for row in trained}))}, beside other work on the machine. "
            "Commits: "
            f"{', '.join(sorted({str(row['commit']) for row in trained}))}. Dates: "
            f"{', '.join(sorted({row['created'] for row in trained}))}.",
            "",
        ]
    return "\n".join(lines)


def write_headers(rows: list[dict]) -> None:
    """The headers of recipes that benchmarks/recipes.py hasn't run at their own length."""
    results = ROOT / "recipes" / "results.json"
    whole = {row["recipe"] for row in json.loads(results.read_text())} if results.is_file() else set()
    for path in sorted((ROOT / "recipes" / "pretrain").glob("*.yaml")):
        if path.stem in whole:
            continue
        recipe = read(path)
        same = (
            recipe["task"]["name"],
            recipe["data"]["name"],
            recipe["backbone"],
        )  # a task may have a recipe for another backbone
        found = [row for row in rows if "minutes" in row and (row["task"], row["data"], row["backbone"]) == same]
        costs = measured = "not yet"
        if found:
            cpu, _, threads = found[0]["cpu"].rpartition(", ")
            own = (recipe["trainer"].get("max_steps"), recipe["data"]["batch_size"]) == (STEPS, BATCH)
            costs = costs_of(found, f"{threads} of {cpu}") + ("" if own else f", for {STEPS} steps of {BATCH}")
            numbers = ", ".join(f"{TITLES[kind]} {cell(found, kind)}" for kind in TITLES)
            labelled = min(LISTS["train"], data_info(recipe["data"]["name"]).splits["train"])
            measured = f"{numbers}, with {labelled:,} labelled pictures, {STEPS} steps of {BATCH}, {seeds_of(found)}"
        write_header(path, costs, measured)


def seeds_of(runs: list[dict]) -> str:
    """How many, of which commits and days."""
    return (
        f"{len(runs)} seed(s) "
        f"({', '.join(sorted({str(run['commit']) for run in runs}) + sorted({run['created'] for run in runs}))})"
    )


def costs_of(runs: list[dict], where: str) -> str:
    return (
        f"{statistics.mean(run['minutes'] for run in runs):.1f} minutes and "
        f"{max(run['peak_memory_mb'] for run in runs) / 1000:.1f} GB on {where}"
    )


def write_header(path: Path, costs: str, measured: str) -> None:
    """The lines `# Costs:` and `# Measured:` of a recipe, below its first, in place of those that are there."""
    first, _, rest = re.sub(r"^# (Costs|Measured):.*\n", "", path.read_text(), flags=re.MULTILINE).partition("\n")
    path.write_text(f"{first}\n# Costs: {costs}.\n# Measured: {measured}.\n{rest}")


def draw(rows: list[dict], data: str) -> None:
    """Linear accuracy against minutes, with the baselines as lines."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "zoo"
    import matplotlib.pyplot as plt

    here = [row for row in rows if row["data"] == data]
    figure, axis = plt.subplots(figsize=(8, 5))
    trained: dict[tuple, list[dict]] = {}
    for row in here:
        if "minutes" in row:
            trained.setdefault((row["task"], is_vit(row["backbone"])), []).append(row)
    for (task, vit), group in trained.items():
        at = statistics.mean(r["minutes"] for r in group), statistics.mean(r["linear"]["value"] for r in group)
        axis.plot(*at, "s" if vit else "o", color="tab:orange" if vit else "tab:blue", markersize=5)
        axis.annotate(task, at, xytext=(4, 3), textcoords="offset points", fontsize=7)
    for row in here:
        if row["task"] in (PIXELS, RANDOM):
            vit = row["backbone"] and is_vit(row["backbone"])
            colour = "grey" if row["task"] == PIXELS else "tab:orange" if vit else "tab:blue"
            axis.axhline(row["linear"]["value"], color=colour, linestyle=":", linewidth=1)
            name = "raw pixels" if row["task"] == PIXELS else f"random {kind_of(row['backbone'])}"
            axis.annotate(
                name,
                (0.995, row["linear"]["value"]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7,
                color=colour,
            )
    axis.set(
        xlabel="minutes of pretraining",
        ylabel="linear probe, test accuracy, %",
        title=f"{data}: {STEPS} steps of {BATCH}",
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(ROOT / "recipes" / f"table-{data}.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", help="tasks by name")
    arguments.add_argument("--data", nargs="*", default=list(SETS), choices=SETS)
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments.add_argument("--all-seeds", action="store_true", help="also where the margin is large")
    arguments.add_argument("--out", type=Path, default=ROOT / "runs")
    arguments.add_argument("--render", action="store_true", help="run nothing")
    given = arguments.parse_args()
    if not given.render:
        fill(given)
    rows = known()
    write_headers(rows)
    for data in SETS:
        if any(row["data"] == data for row in rows):
            draw(rows, data)


if __name__ == "__main__":
    main()
