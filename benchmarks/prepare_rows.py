"""How many rows a second does ``prepare.py`` take, and how much memory?

A log of generated rows (text identifiers, a skewed choice of users and items, random times) is
written to a temporary folder; then ``prepare.py table`` makes a dataset folder of it in a fresh
process, whose largest resident memory is the operating system's own record (Linux).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from measuring import write_result

SCRIPT = Path(__file__).parents[1] / "examples" / "cammsr" / "prepare.py"
CHUNK = 1_000_000


def generate(rows: int, users: int, items: int, seed: int):
    """Chunks of rows; some users and items are much more frequent than others."""
    random = np.random.default_rng(seed)
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        numbers = {
            "user": (users * random.random(size) ** 1.5).astype(np.int64) * 7919 % 1_000_003_000,
            "item": (items * random.random(size) ** 2).astype(np.int64),
            "timestamp": random.integers(1_300_000_000, 1_700_000_000, size),
        }
        yield pl.DataFrame(numbers).with_columns(
            user=pl.format("A{}XQZ", pl.col("user").cast(pl.String).str.zfill(10)),
            item=pl.format("B{}", pl.col("item").cast(pl.String).str.zfill(9)),
        )


def write(path: Path, chunks) -> None:
    if path.suffix == ".parquet":
        writer = None
        for chunk in chunks:
            table = chunk.to_arrow()
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        writer.close()
        return
    with path.open("wb") as file:
        for number, chunk in enumerate(chunks):
            chunk.write_csv(file, include_header=number == 0)


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds, processor seconds, and the GiB of the largest resident set of a fresh process."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20  # Linux: KiB


def prepare(folder: Path, log: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    items = folder / "items.csv"  # a single title, so that there is something to encode
    items.write_text("item,title\nB000000000,The first item\n")
    command = [sys.executable, str(SCRIPT), "table", "--interactions_file", str(log)]
    command += ["--items_file", str(items), "--item_columns.title", "title"]
    command += ["--text_encoder", "hash", "--k_core", str(arguments.k_core)]
    command += ["--output", str(folder / "dataset"), "--cache", str(folder / "cache")]
    seconds, processor, peak = measure(command)
    written = pl.scan_parquet(folder / "dataset" / "interactions.parquet")
    return {
        "rows": arguments.rows,
        "users": arguments.users,
        "items": arguments.items,
        "k_core": arguments.k_core,
        "format": arguments.format,
        "bytes": log.stat().st_size,
        "rows_written": written.select(pl.len()).collect().item(),
        "seconds": seconds,
        "processor_seconds": processor,
        "rows_a_second": arguments.rows / seconds,
        "rows_a_processor_second": arguments.rows / processor,
        "load_before": os.getloadavg()[0],
        "peak_gib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=2_500_000)
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--k-core", type=int, default=0)
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="prepare_rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / f"log.{arguments.format}"
        write(log, generate(arguments.rows, arguments.users, arguments.items, arguments.seed))
        result = prepare(Path(name), log, arguments)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(write_result(arguments.output, result).name)


if __name__ == "__main__":
    main()
