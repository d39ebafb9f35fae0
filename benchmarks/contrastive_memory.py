"""What does one InfoNCE cost, whole and in chunks, beside other libraries?

Seconds and peak memory of one forward and backward pass of the losses of ``contrast_peers.py`` on N
queries and N keys of D features, in turn (A B C A B C). On a CPU each measurement is a process of
its own (Linux): the first step after a small one says how much memory is held at most beyond what
stood there before, inputs included. A step that takes less than half a second is then
repeated, and the median counts. On one thread of a CPU the ratios are those of the processor's
time, which stands still while other programs run; else those of the clock on the wall.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from contrast_peers import LOSSES, Contrast, installed
from measuring import peak, start_peak, write_result
from torch import Tensor

TEMPERATURE = 0.1
REPEATED = 0.5  # seconds: a shorter step is repeated for about as long
MOST = 20  # repetitions
FEW = 64  # rows of the first step

Measured = dict[str, Any]


# -- one measurement ---------------------------------------------------------------------------


def inputs(rows: int, dim: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys that are somewhat like them, and ids."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, dim, generator=generator)
    key = query + torch.randn(rows, dim, generator=generator)
    ids = torch.randint(max(1, rows // 4), (rows,), generator=generator)
    query, key = (x.to(device).requires_grad_() for x in (query, key))
    return query, key, ids.to(device)


def step(contrast: Contrast, query: Tensor, key: Tensor, ids: Tensor) -> float:
    query.grad = key.grad = None
    loss = contrast(query, key, ids)
    loss.backward()
    return loss.item()


def timed(contrast: Contrast, *operands: Tensor) -> tuple[float, float, float]:
    """Seconds of a step on the clock on the wall, those of the processor, and the loss."""
    start, busy = time.perf_counter(), time.process_time()
    loss = step(contrast, *operands)
    if operands[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy, loss


def measure(name: str, rows: int, dim: int, device: str) -> Measured:
    contrast = LOSSES[name].build(TEMPERATURE)
    step(contrast, *inputs(FEW, dim, device))
    operands = inputs(rows, dim, device)
    before = start_peak(device)
    steps = [timed(contrast, *operands)]
    extra = peak(device) - before
    if steps[0][0] < REPEATED:  # then the first, which finds nothing warm, does not count
        steps = [timed(contrast, *operands) for _ in range(3)]
        while sum(wall for wall, *_ in steps) < REPEATED and len(steps) < MOST:
            steps.append(timed(contrast, *operands))
    wall, busy, loss = (statistics.median(each) for each in zip(*steps, strict=True))
    return {
        "seconds": wall,
        "processor_seconds": busy,
        "steps": len(steps),
        "peak_extra_mib": extra / 2**20,
        "peak_to_logits": extra / (4 * rows**2),
        "loss": loss,
    }


def measured(name: str, rows: int, dim: int, options: argparse.Namespace) -> Measured | str:
    """In a process of its own where that is what tells the memory; or why there is no number."""
    if options.device != "cpu":
        try:
            return measure(name, rows, dim, options.device)
        except RuntimeError as error:
            return f"failed: {str(error).splitlines()[0]}"
    command = [sys.executable, __file__, "--alone", name, "--rows", str(rows), "--dims", str(dim)]
    command += ["--threads", str(options.threads)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        said = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        return f"failed: {said[-1]}"
    result: Measured = json.loads(run.stdout.splitlines()[-1])
    return result


# -- a setting ---------------------------------------------------------------------------------


def unfit(name: str, rows: int, largest_gib: float) -> str | None:
    """Why a loss is left out, if it is."""
    if installed(LOSSES[name].package) is None:
        return "not installed"
    needs = LOSSES[name].matrices(rows) * 4 * rows**2 / 2**30
    return f"would need about {needs:.1f} GiB" if needs > largest_gib else None


def setting(rows: int, dim: int, options: argparse.Namespace) -> dict[str, Any]:
    """All losses in turn."""
    reasons = {name: unfit(name, rows, options.largest_gib) for name in options.losses}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    rounds: list[dict[str, Measured]] = []
    slow: set[str] = set()
    for _ in range(options.rounds):
        these: dict[str, Measured] = {}
        for name in options.losses:
            if name in left_out or name in slow:
                continue
            found = measured(name, rows, dim, options)
            if isinstance(found, str):
                left_out[name] = found
                continue
            these[name] = found
            if found["seconds"] > options.slow:
                slow.add(name)
        rounds.append(these)
    return {
        "rows": rows,
        "dim": dim,
        "logits_mib": 4 * rows**2 / 2**20,
        "medians": medians(rounds, clock(options)),
        "left_out": left_out,
        "rounds": rounds,
    }


def clock(options: argparse.Namespace) -> str:
    alone = options.device == "cpu" and options.threads == 1
    return "processor_seconds" if alone else "seconds"


def medians(rounds: list[dict[str, Measured]], timed: str) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for name in dict.fromkeys(name for these in rounds for name in these):
        own = [these[name] for these in rounds if name in these]
        kinds = ("seconds", "processor_seconds", "peak_extra_mib", "peak_to_logits")
        found[name] = {kind: statistics.median(each[kind] for each in own) for kind in kinds}
        beside = LOSSES[name].beside
        pairs = [(these[name], these[beside]) for these in rounds if {name, beside} <= set(these)]
        if pairs and name != beside:
            ratios = [one[timed] / other[timed] for one, other in pairs]
            found[name]["time_to_whole"] = statistics.median(ratios)
    return found


def show(row: dict[str, Any]) -> None:
    title = f"N {row['rows']}, D {row['dim']}, logits {row['logits_mib']:.4g} MiB"
    print(f"\n{title:44} s   processor s      MiB  of logits  time to ours whole")
    for name, own in row["medians"].items():
        line = f"{name:34} {own['seconds']:11.4f} {own['processor_seconds']:13.4f}"
        line += f" {own['peak_extra_mib']:8.1f} {own['peak_to_logits']:10.3f}"
        print(line + (f" {own['time_to_whole']:18.2f}" if "time_to_whole" in own else ""))
    for name, why in row["left_out"].items():
        print(f"{name:34} {why}")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = [256, 1024, 4096, 8192, 16384, 32768, 65536]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help="N")
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 512], help="D")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow", type=float, default=60, help="seconds: measured in one round")
    parser.add_argument("--largest-gib", type=float, default=6, help="leave larger ones out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="contrastive_memory", help="name of the JSON file")
    parser.add_argument("--alone", choices=LOSSES, help="measure one loss here, print JSON")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(json.dumps(measure(options.alone, options.rows[0], options.dims[0], options.device)))
        return
    chosen = ("rounds", "slow", "largest_gib", "device", "threads")
    about = {
        "temperature": TEMPERATURE,
        **{name: getattr(options, name) for name in chosen},
        "versions": {loss.package: installed(loss.package) for loss in LOSSES.values()},
        "definitions": {name: LOSSES[name].definition for name in options.losses},
        "beside": {name: LOSSES[name].beside for name in options.losses},
    }
    rows = []
    for dim, number in itertools.product(options.dims, options.rows):
        rows.append(setting(number, dim, options))
        print(".", end="", flush=True)
        write_result(options.output, {**about, "settings": rows})
    print()
    for row in rows:
        show(row)


if __name__ == "__main__":
    main()
