"""Do memory and speed hold when a set of shards grows a hundredfold?  python benchmarks/scale.py [SIZES ...] [--folder
DIR]

Shards of 10,000 generated samples, one JPEG of 32 pixels each (2 KB of tar), all shards with equal content. Each set is
read in fresh processes: once to make the index, once for a whole epoch in batches of 256 as one process alone takes
them, and once for the part of the 38th of a hundred (a set that is too small for a hundred parts: a dash). `private` is
memory that the process owns; `mapped` are pages of files that it has touched, which the system takes back. `first` is
the time from opening the set to the first batch, in the middle of an epoch, as after a resume.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CHILD = """
import itertools, sys, time, torch
from benchmarks.folder_memory import Watch
from zoo.data import decode, module, shards
torch.set_num_threads(1)
path, rank, world, batches = sys.argv[1], *map(int, sys.argv[2:])
decode._formats()                                   # Pillow's own imports are no part of it
with Watch() as watch:
    begun = time.perf_counter()
    data = shards.load_shards(path, 32)
    opened = time.perf_counter() - begun
    rows, pictures, seen, first, rate = data.splits["train"], data.fields["image"], 0, 0.0, 0.0
    if world and (all_batches := len(rows) // (256 * world)):
        next(pictures.ahead(shards.in_windows(rows, (0, 0), 256, rank, world, all_batches // 2)))
        first = time.perf_counter() - begun
        start = time.perf_counter()
        for _, images in itertools.islice(pictures.ahead(shards.in_windows(rows, (0, 0), 256, rank, world)), batches or None):
            seen += len(images)
        rate = seen / (time.perf_counter() - start)
import json
print(json.dumps({"private": watch.private, "mapped": watch.mapped, "opened": opened, "first": first, "rate": rate, "seen": seen}))
"""  # noqa: E501
IN_SHARD = 10_000


def write(folder: Path, samples: int) -> None:
    """Shards of equal content, made once and copied."""
    import numpy as np
    from PIL import Image

    out, picture = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(picture, "JPEG", quality=60)
    data = picture.getvalue()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(IN_SHARD):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    have = len(list(folder.glob("*.tar")))
    for number in range(have, -(-samples // IN_SHARD)):
        (folder / f"{number:06d}.tar").write_bytes(out.getbuffer())


def child(folder: Path, home: Path, *numbers: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), *map(str, numbers)],
        env=os.environ | {"ZOO_HOME": str(home)},
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "sizes",
        nargs="*",
        type=int,
        default=[10_000, 100_000, 1_000_000],
        help="samples of each set, in steps of 10,000",
    )
    parser.add_argument("--folder", help="where to write (2 GB for a million); default a temporary one")
    parser.add_argument("--batches", type=int, default=0, help="batches that are read, at most an epoch; default all")
    given = parser.parse_args()
    print(
        "| samples | shards, MB | index, s | index, MB | opened again, s | images/s | first, s | private, MB | "
        "mapped, MB | of 100: images/s | "
        "first, s | private, MB |\n|" + "---:|" * 12
    )
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        folder, home = Path(work) / "set", Path(work) / "home"
        folder.mkdir()
        for samples in sorted(given.sizes):
            write(folder, samples)
            made = child(folder, home, 0, 0, 0)
            alone, one = child(folder, home, 0, 1, given.batches), child(folder, home, 37, 100, given.batches)
            size = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
            many = f"{one['rate']:,.0f} | {one['first']:.2f} | {one['private']:.0f}" if one["seen"] else "- | - | -"
            print(
                f"| {samples:,} | {size:,.0f} | {made['opened']:.1f} | {made['private']:.0f} | {alone['opened']:.3f} "
                f"| {alone['rate']:,.0f} | "
                f"{alone['first']:.2f} | {alone['private']:.0f} | {alone['mapped']:.0f} | {many} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
