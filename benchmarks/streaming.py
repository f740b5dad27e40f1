"""Rows per second and memory of reading a public set, beside ``datasets`` and Pillow on the same files; and a million rows.

    python benchmarks/streaming.py FOLDER [--rows 2000] [--rounds 5] [--million]

FOLDER takes what is read: Pick-a-Pic v2 in miniature, drawn here, in several sizes and row groups. Both ways decode both pictures of
every row to RGB, each in a process of its own, and take turns, ``--rounds`` times; medians are shown. CPU time is there because it
says more than the rate on a machine that does other things too. Memory is the most that was resident, less what was before the
first row. ``--million`` instead streams a million rows of small pictures (a file of 10,000 rows under 100 names) through a data
module and prints what is resident after every 100,000.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

CASES = {
    "32 pixels, groups of 1,000": (32, 1000),
    "512 pixels, groups of 100": (512, 100),
    "512 pixels, groups of 1,000": (512, 1000),
}
"""Width and height of the pictures, and rows per row group: ``datasets`` writes 100 for pictures today, and wrote 1,000."""


def draw(index: int, size: int) -> bytes:
    """A JPEG with as much in it as a photograph has: noise at several scales."""
    rng = np.random.default_rng(index)
    image = np.zeros((size, size, 3))
    for scale in (4, 16, 64):
        small = Image.fromarray(rng.integers(0, 256, (max(2, size // scale), max(2, size // scale), 3), dtype=np.uint8))
        image += np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
    buffer = io.BytesIO()
    Image.fromarray((image / 3 + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)).save(
        buffer, format="JPEG", quality=90
    )
    return buffer.getvalue()


def write(path: Path, rows: int, size: int, group: int) -> None:
    """A file with the columns of Pick-a-Pic v2 that are read; 64 pictures take turns, each made a stranger to the others."""
    import pyarrow
    import pyarrow.parquet

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = [draw(index, size) for index in range(64)]
    schema = pyarrow.schema(
        {
            **{
                "caption": pyarrow.string(),
                "label_0": pyarrow.float64(),
                "label_1": pyarrow.float64(),
                "has_label": pyarrow.bool_(),
            },
            **{"jpg_0": pyarrow.binary(), "jpg_1": pyarrow.binary()},
        }.items()
    )
    partial = path.with_suffix(".part")
    with pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for start in range(0, rows, group):
            numbers = range(start, min(start + group, rows))
            # what follows a JPEG's end is no part of it, and makes every cell different, as real ones are
            cells = [[stored[(i + shift) % 64] + i.to_bytes(8, "big") for i in numbers] for shift in (0, 32)]
            columns = [
                [f"prompt {i}" for i in numbers],
                [1.0] * len(numbers),
                [0.0] * len(numbers),
                [True] * len(numbers),
                *cells,
            ]
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pyarrow.table(arrays, schema=schema), row_group_size=group)
    partial.rename(path)


def ours(folder: Path) -> Iterator[object]:
    """Both pictures of every pair, as a stage opens them."""
    from rationalrewards.components.records import open_pictures
    from rationalrewards.datamodules import PreferenceDataModule
    from rationalrewards.datamodules.readers import PreferenceSet

    data = PreferenceDataModule(sets=[PreferenceSet("yuvalkirstain/pickapic_v2", root=str(folder))])
    return (open_pictures(pair, pair.candidates) for batch in data.predict_dataloader() for pair in batch)


def bare(folder: Path) -> Iterator[object]:
    """Both pictures of every row, as ``datasets`` streams it and Pillow decodes it."""
    import datasets

    files = sorted(map(str, (folder / "data").glob("*.parquet")))
    rows: Iterable[dict[str, bytes]] = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    names = ("jpg_0", "jpg_1")
    return (tuple(Image.open(io.BytesIO(row[name])).convert("RGB") for name in names) for row in rows)


WAYS = {"ours": ours, "datasets + Pillow": bare}


def measure(way: str, folder: Path) -> dict[str, float]:
    """Read everything once, in this process."""
    rows = WAYS[way](folder)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start, busy = time.perf_counter(), time.process_time()
    count = sum(1 for _ in rows)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return {"rows": count, "rate": count / seconds, "busy": 1000 * busy / count, "memory": (peak - before) / 2**20}


def compare(folder: Path, rows: int, rounds: int) -> None:
    """Let the ways take turns on every case, and print a table."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    print(f"{'':28} {'':18} {'rows/s':>7} {'CPU ms/row':>11} {'memory MB':>10}   rate, and 1 / CPU, of the other's")
    for case, (size, group) in CASES.items():
        place = folder / f"{size}-{group}-{rows}"
        write(place / "data" / "train-00000.parquet", rows, size, group)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                command = [sys.executable, __file__, str(place), "--measure", way]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        mine, theirs = found.values()
        ratios = [
            [one["rate"] / other["rate"] for one, other in zip(mine, theirs, strict=True)],
            [other["busy"] / one["busy"] for one, other in zip(mine, theirs, strict=True)],
        ]
        for way, results in found.items():
            assert all(result["rows"] == rows for result in results)
            rate, busy, memory = (statistics.median(result[key] for result in results) for key in ("rate", "busy", "memory"))
            spreads = ", ".join(f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})" for ratio in ratios)
            note = f"   {spreads}" if way == "ours" else ""
            print(f"{case:28} {way:18} {rate:7.0f} {busy:11.2f} {memory:10.0f}{note}", flush=True)


def million(folder: Path) -> None:
    """Stream a million rows and print what is resident on the way."""
    place = folder / "million"
    first = place / "data" / "train-00000.parquet"
    write(first, 10_000, 32, 1000)
    for part in range(1, 100):
        name = first.with_name(f"train-{part:05}.parquet")
        if not name.exists():
            os.link(first, name)
    rows = ours(place)
    start = time.perf_counter()
    for count, _ in enumerate(rows, start=1):
        if count == 1000 or count % 100_000 == 0:
            resident = psutil.Process().memory_info().rss / 2**20
            print(f"{count:9,} rows {resident:7.0f} MB resident {count / (time.perf_counter() - start):7.0f} rows/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.folder)))
    elif given.million:
        million(given.folder)
    else:
        compare(given.folder, given.rows, given.rounds)


if __name__ == "__main__":
    main()
