"""What does it take to evaluate a model over a catalogue of a million items?

A CAMMSR with random weights (id, text and image; M 3, D 64, so states and candidates of width 192)
over random items ranks the targets of random histories, among all items and among unseen ones
(``cammsr.blockwise``). Each measurement is a process of its own (Linux), and memory is that of the
whole process, torch and the catalogue included: its peak while the model is made, and while it
ranks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import of_process, peak, start_peak, write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "cammsr"))

from cammsr.blockwise import model_ranks
from cammsr.config import ModelConfig
from cammsr.metrics import summarise
from cammsr.model import CAMMSR
from cammsr.ranking import Reader
from cammsr.split import Ragged, Target

WIDTHS = {"text": 64, "image": 64}
CATEGORIES = 20


def make_reader(items: int, dim: int) -> Reader:
    """A model over random items; raw features are let go once they are projected."""
    torch.manual_seed(0)
    features = {name: torch.randn(items, width) for name, width in WIDTHS.items()}
    labels = torch.arange(items).unsqueeze(1) % CATEGORIES == torch.arange(CATEGORIES)
    config = ModelConfig(dim=dim, num_layers=1, hidden_dim=2 * dim)
    return Reader(CAMMSR(features, labels, config).eval()).eval()


def make_target(users: int, items: int) -> Target:
    """Histories of 5 to 50 items."""
    lengths = torch.randint(5, 51, (users,))
    history = Ragged.from_lengths(torch.randint(0, items, (int(lengths.sum()),)), lengths)
    return Target(history, torch.randint(0, items, (users,)))


def measure(options: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    start = peak("cpu")
    reader = make_reader(options.items, options.dim)
    made, held = peak("cpu"), of_process("VmRSS")
    target = make_target(options.users, options.items)
    start_peak("cpu")
    wall, busy = time.perf_counter(), time.process_time()
    ranks = model_ranks(reader, target, batch_size=batch_size, block=options.block)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    ranking = peak("cpu")
    return {
        "batch_size": batch_size,
        "peak_mib": max(made, ranking) / 2**20,
        "peak_making_mib": made / 2**20,
        "peak_ranking_mib": ranking / 2**20,
        "held_before_ranking_mib": held / 2**20,
        "torch_alone_mib": start / 2**20,
        "seconds": wall,
        "processor_seconds": busy,
        "users_a_second": options.users / wall,
        "users_a_processor_second": options.users / busy,
        "mean_rank": float(ranks.plain.mean()),
        "chance": (options.items + 1) / 2,
        "metrics": summarise(ranks),
        "rank_checksum": float(ranks.plain.sum() + ranks.masked.sum()),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="V")
    parser.add_argument("--dim", type=int, default=64, help="D; the width is 3 D")
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--block", type=int, default=16384, help="items scored at a time")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="evaluation_memory", help="name of the JSON file")
    parser.add_argument("--alone", type=int, help="measure one batch size here, print JSON")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(json.dumps(measure(options, options.alone)))
        return
    measured = []
    for batch_size in options.batch_sizes:
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", str(batch_size)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        measured.append(json.loads(run.stdout.splitlines()[-1]))
        row = measured[-1]
        print(
            f"batch {batch_size:5}: peak {row['peak_making_mib']:.0f} MiB making, "
            f"{row['peak_ranking_mib']:.0f} MiB ranking, {row['users_a_second']:.1f} users/s "
            f"({row['users_a_processor_second']:.1f} a processor second), "
            f"mean rank {row['mean_rank']:.0f} "
            f"(chance {row['chance']:.0f})",
            flush=True,
        )
    same = len({row["rank_checksum"] for row in measured}) == 1
    print(f"the same ranks for every batch size: {same}")
    about = {"width": 3 * options.dim, "features": WIDTHS, "same_ranks": same}
    write_result(options.output, {**vars(options), **about, "measured": measured})


if __name__ == "__main__":
    main()
