"""What does a training step over a large catalogue take, by how its softmax is made?

A SASRec of one layer (D 64, no dropout) takes steps on batches of 100 histories of 20 items: 2,000
targets a step, whose items are drawn by a power law. A step is the forward and the backward pass;
the optimizer, whose state for the id embedding is as large as the catalogue in each case, is left
out. Each measurement is a process of its own (Linux): the median of some steps, after one that
warms up, in seconds of the processor, or on the wall for a GPU; and the peak memory beyond what
stood there before the first, which is the GPU's there. What would hold more than
``--largest-gib``, or take longer than ``--slow`` a step by the smaller catalogues, is left out, and
the results say so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import now, peak, start_peak, write_result
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "cammsr"))

from cammsr.baselines import sasrec
from cammsr.batches import Batch
from cammsr.config import ModelConfig, ObjectiveConfig
from cammsr.objective import Objective

KINDS = ("full", "chunked", "sampled", "in_batch")
ROWS, LENGTH, DIM = 100, 20, 64
SECONDS = 3.0  # of steps that are timed, three at least and at most six


def draw_items(items: int, number: int) -> Tensor:
    """Item j about as often as 1 / (j + 1): a few are in every batch, most in none."""
    return (items ** torch.rand(number, dtype=torch.float64) - 1).long().clamp(max=items - 1)


def make_batch(items: int, device: str) -> Batch:
    drawn = draw_items(items, ROWS * (LENGTH + 1)).view(ROWS, LENGTH + 1).to(device)
    valid = torch.ones(ROWS, LENGTH, dtype=torch.bool, device=device)
    return Batch(drawn[:, :-1], valid, drawn[:, 1:])


def measure(kind: str, items: int, options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(0)
    config = ModelConfig(dim=DIM, num_layers=1, dropout=0.0, max_length=LENGTH)
    model = sasrec({}, torch.zeros(items, 0, dtype=torch.bool), config)
    counts = torch.bincount(draw_items(items, 2 * items), minlength=items)
    settings = ObjectiveConfig(softmax=kind, num_sampled=options.num_sampled)
    objective = Objective(settings, counts=counts).to(options.device)
    model.to(options.device)
    before = start_peak(options.device)
    seconds: list[float] = []
    while len(seconds) < 4 or (sum(seconds[1:]) < SECONDS and len(seconds) < 7):
        model.zero_grad(set_to_none=True)
        batch = make_batch(items, options.device)
        start = now(options.device)
        losses = objective(model, batch)
        losses["loss"].backward()
        seconds.append(now(options.device) - start)
        if seconds[0] > 4 * SECONDS and len(seconds) == 2:
            break
    return {
        "seconds": statistics.median(seconds[1:]),
        "steps": len(seconds) - 1,
        "peak_extra_mib": (peak(options.device) - before) / 2**20,
        "loss": float(losses["next_item"]),
    }


def alone(kind: str, items: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--alone", kind, "--items", str(items)]
    command += ["--num-sampled", str(options.num_sampled), "--device", options.device]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def unfit(kind: str, items: int, found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Why a measurement is left out, or nothing."""
    matrices = 3 * ROWS * LENGTH if kind == "full" else 0  # scores, their softmax, its gradient
    needs = 4 * items * (matrices + 3 * DIM) / 2**30
    if needs > options.largest_gib:
        return f"would need about {needs:.0f} GiB"
    smaller = [row for row in found if kind in row["measured"]]
    if smaller and kind in {"full", "chunked"}:
        last = smaller[-1]
        seconds = last["measured"][kind]["seconds"] * items / last["items"]
        if seconds > options.slow:
            return f"would take about {seconds:.0f} s a step"
    return ""


def show(row: dict[str, Any]) -> None:
    print(f"\nV {row['items']:,}{'s a step':>22}{'to full':>10}{'MiB':>10}{'to full':>10}")
    for kind, values in row["measured"].items():
        line = f"{kind:12}{values['seconds']:18.3f}"
        full = row["measured"].get("full")
        for name, width in (("seconds", 0), ("peak_extra_mib", 10)):
            line += f"{values[name]:{width}.0f}" if width else ""
            line += f"{values[name] / full[name]:10.3f}" if full else f"{'-':>10}"
        print(line)
    for kind, why in row["left_out"].items():
        print(f"{kind:12} {why}")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes, help="V")
    parser.add_argument("--num-sampled", type=int, default=4096)
    parser.add_argument("--largest-gib", type=float, default=12)
    parser.add_argument("--slow", type=float, default=40, help="seconds a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="catalogue_softmax", help="name of the JSON file")
    parser.add_argument("--alone", choices=KINDS, help="measure one here, print JSON")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    if options.alone:
        print(json.dumps(measure(options.alone, options.items[0], options)))
        return
    found: list[dict[str, Any]] = []
    for items in options.items:
        why = {kind: unfit(kind, items, found, options) for kind in KINDS}
        chosen = [kind for kind in KINDS if not why[kind]]
        row = {
            "items": items,
            "measured": {kind: alone(kind, items, options) for kind in chosen},
            "left_out": {kind: reason for kind, reason in why.items() if reason},
        }
        found.append(row)
        show(row)
        about = {"tokens": ROWS * LENGTH, "dim": DIM, "num_sampled": options.num_sampled}
        about["device"] = options.device
        write_result(options.output, {**about, "settings": found})


if __name__ == "__main__":
    main()
