"""How long a person waits for lists and help, each time in a new process; and proof that none of them imports torch.

    python benchmarks/listing.py [--runs 15]

Wall time from starting the process to its end, Python's own start included, which the first row shows alone. Compiled
bytecode is there, as it is after pip install: a first run, which isn't counted, leaves it. `processor` is the least
processor time of a run, which wall time comes near on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

COMMANDS = ("list", "--help", "info simclr", "pretrain --help", "list tasks", "list backbones")
HEAVY = ("torch", "torchvision", "timm", "lightning", "sklearn", "matplotlib", "numpy", "jsonargparse", "rich")
CHILD = f"""
import sys
from zoo.cli import main
code = main(sys.argv[1:])
print(" ".join(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


def processor() -> float:
    """Seconds of processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: list[str], runs: int) -> tuple[list[float], float]:
    """Wall seconds of each run after the first, and the least processor seconds of one."""
    walls, busy = [], []
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as bytecode:
        for _ in range(1 + runs):
            before, start = processor(), time.perf_counter()
            subprocess.run(
                command, env=environment | {"PYTHONPYCACHEPREFIX": bytecode}, stdout=subprocess.DEVNULL, check=True
            )
            walls.append(time.perf_counter() - start)
            busy.append(processor() - before)
    return walls[1:], min(busy[1:])


def imported(words: list[str]) -> str:
    """Which of the heavy packages a command has imported by its end, asked of the process itself."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True
    )
    return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    table = Table(title=f"seconds, {runs} processes each, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for column in ("command", "min", "median", "max", "processor", "heavy imports"):
        table.add_column(column, justify="left" if column in ("command", "heavy imports") else "right")
    rows = {"python -c pass": [sys.executable, "-c", "pass"]} | {
        f"zoo {words}": [sys.executable, "-m", "zoo.cli", *words.split()] for words in COMMANDS
    }
    for name, command in rows.items():
        walls, busy = measure(command, runs)
        heavy = imported(command[3:]) if name.startswith("zoo") else ""
        table.add_row(
            name, *(f"{value:.3f}" for value in (min(walls), statistics.median(walls), max(walls), busy)), heavy
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
