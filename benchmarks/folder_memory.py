"""Does memory stay flat when a folder of pictures grows tenfold?  python benchmarks/folder_memory.py

Two folders of generated JPEG files, one ten times the other, each read in a fresh process: once to build the
cache, once to take 200 random batches of 256 from it. `private` is memory that the process owns; `mapped` are
pages of files that it has touched (libraries, and the cache itself), which the system takes back when
somebody needs the room.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CHILD = """
import sys, torch
from benchmarks.folder_memory import Watch
from zoo.data.folder import load_folder
torch.set_num_threads(1)
with Watch() as watch:
    data = load_folder(sys.argv[1])
    if sys.argv[2] == "iterate":
        image = data.fields["image"]
        for _ in range(200):
            image[torch.randint(len(image), (256,))].float()
watch.report()
"""


class Watch:
    """Peak memory while inside, in MB, read from /proc every 5 ms; and the seconds it took."""

    def __enter__(self) -> Watch:
        self.private = self.mapped = 0.0
        self.begun, self.over = time.perf_counter(), threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(0.005):
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.private = max(self.private, int(fields["RssAnon"].split()[0]) / 1024)
            self.mapped = max(self.mapped, int(fields["RssFile"].split()[0]) / 1024)

    def __exit__(self, *error) -> None:
        self.over.set()
        self.thread.join()
        self.seconds = time.perf_counter() - self.begun

    def report(self) -> None:
        print(json.dumps({"private": self.private, "mapped": self.mapped, "seconds": self.seconds}))


def generate(folder: Path, count: int) -> None:
    """`count` JPEG files of 240 x 180 up to 480 x 360 pixels."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for k in range(count):
        path = folder / f"class{k % 5}" / f"{k:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        side = int(random.integers(240, 481))
        coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(path, quality=85)


def measure(folder: Path, home: Path, what: str) -> dict:
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"ZOO_HOME": str(home), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), what], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=500, help="in the small folder; the other has tenfold")
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as place:
        sizes, rows = (count, 10 * count), {}
        for size in sizes:
            generate(Path(place) / str(size), size)
            for what in ("build", "iterate"):
                rows[size, what] = measure(Path(place) / str(size), Path(place) / "home", what)
    print(f"{'':10}{'images':>9}{'seconds':>10}{'images/s':>10}{'private MB':>13}{'mapped MB':>12}")
    for what in ("build", "iterate"):
        for size in sizes:
            row = rows[size, what]
            done = size if what == "build" else 200 * 256
            print(
                f"{what:10}{size:>9,}{row['seconds']:>10.2f}{done / row['seconds']:>10,.0f}"
                f"{row['private']:>13.1f}{row['mapped']:>12.1f}"
            )
        small, large = (rows[size, what] for size in sizes)
        print(
            f"{what:10}{'ratio':>9}{'':>20}{large['private'] / small['private']:>13.2f}"
            f"{large['mapped'] / small['mapped']:>12.2f}\n"
        )


if __name__ == "__main__":
    main()
