"""What does expert routing cost?

Forward, and forward + backward, of a mixture of experts on the CPU, and on a GPU where there is
one, beside the limit (one network on the same number of rows) and beside other libraries. All
mixtures of a setting are timed in turn, A B C A B C ..., so that a drift of the machine touches
all; what counts is the ratio to the limit within a round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import write_result
from routing_peers import MIXTURES, Setting
from torch import nn

from mmfuse import Experts, TopKRouter
from mmfuse.experts import combine_rows, expert_rows, gather_rows, plan_dispatch

SLOW = 12.0  # times the limit: shown by the first step, and not timed again
DENSE_FLOATS = 2**28  # hidden activations of more than a gigabyte


def step(model: nn.Module, x: torch.Tensor, gradient: torch.Tensor, backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            model(x)
        return
    model.zero_grad()
    x.grad = None
    model(x).backward(gradient)


def seconds(run: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(runs: dict[str, Callable[[], None]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Median, quartiles, and the median of the ratio to the limit, round by round."""
    found: dict[str, Any] = {}
    first = {}
    for name, run in runs.items():
        first[name] = min(seconds(run, arguments.device) for _ in range(2))
    for name, taken in first.items():
        if taken > SLOW * first["limit"]:
            found[name] = {"first_ms": 1e3 * taken, "ratio_to_limit": taken / first["limit"]}
    runs = {name: run for name, run in runs.items() if name not in found}
    affordable = arguments.seconds / sum(first[name] for name in runs)
    rounds = max(3, min(arguments.rounds, int(affordable)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, arguments.device))
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["limit"], strict=True)]
        found[name] = {
            "rounds": rounds,
            "median_ms": 1e3 * statistics.median(own),
            "fastest_ms": 1e3 * min(own),
            "quartiles_ms": [1e3 * q for q in statistics.quantiles(own, n=4)[::2]],
            "ratio_to_limit": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        }
    return found


def measure(tokens: int, setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    dim, hidden, experts, _ = setting
    where = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    x = torch.randn(tokens, dim, **where, requires_grad=True)
    gradient = torch.randn(tokens, dim, **where)
    models = {}
    for name in arguments.mixtures:
        too_large = name == "mmfuse dense" and tokens * experts * hidden > DENSE_FLOATS
        model = None if too_large else MIXTURES[name](*setting)
        if model is not None:
            models[name] = model.to(**where)
    found = {}
    for way, backward in (("forward", False), ("forward_backward", True)):
        if way in arguments.ways:
            runs = {name: partial(step, m, x, gradient, backward) for name, m in models.items()}
            found[way] = in_turn(runs, arguments)
    return found


def parts(tokens: int, setting: Setting, arguments: argparse.Namespace) -> dict[str, float]:
    """Where the time goes: forward and backward of each part by itself, medians in ms."""
    dim, hidden, experts, top_k = setting
    where = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    router, bank = TopKRouter(dim, experts, top_k, **where), Experts(experts, dim, hidden, **where)
    x = torch.randn(tokens, dim, **where, requires_grad=True)
    weight, _, index, *_ = router(x)
    plan = plan_dispatch(index, experts)
    rows = torch.randn(tokens * top_k, dim, **where, requires_grad=True)
    weight = weight.detach().requires_grad_()
    layers = (bank.in_weight, bank.in_bias, bank.out_weight, bank.out_bias)

    def route() -> None:
        routed = router(x)
        (routed.expert_weight.square().sum() + routed.losses["balance"]).backward()

    given, back = torch.randn_like(rows), torch.randn_like(x)
    runs = {
        "router": route,
        "sort": lambda: plan_dispatch(index, experts),
        "gather": lambda: gather_rows(x, plan).backward(given),
        "products": lambda: expert_rows(rows, plan.offsets, *layers).backward(given),
        "combine": lambda: combine_rows(rows, weight, plan).backward(back),
    }

    def median(run: Callable[[], None]) -> float:
        taken: list[float] = []
        while len(taken) < 5 or (sum(taken) < 1 and len(taken) < arguments.rounds + 2):
            for tensor in (x, rows, weight, *router.parameters(), *bank.parameters()):
                tensor.grad = None
            taken.append(seconds(run, arguments.device))
        return 1e3 * statistics.median(taken[2:])

    found = {name: median(run) for name, run in runs.items()}
    found["overhead_share"] = 1 - found["products"] / sum(found.values())
    return found


def peak_mib(name: str, tokens: int, setting: Setting) -> float:
    """Peak memory of one training step in a fresh process, beyond what stood there before it."""
    words = [sys.executable, __file__, "--memory-of", name, *map(str, (tokens, *setting))]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def one_step(name: str, tokens: int, setting: Setting) -> None:
    model = MIXTURES[name](*setting)
    assert model is not None
    for count in (400, tokens):  # the first one lets libraries set themselves up
        x = torch.randn(count, setting[0], requires_grad=True)
        gradient = torch.randn_like(x)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from here
        before = resident("VmRSS")
        step(model, x, gradient, True)
    print((resident("VmHWM") - before) / 1024)


def resident(what: str) -> int:
    """Memory of this process in KiB: now (VmRSS), or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def settings(arguments: argparse.Namespace) -> Iterator[tuple[int, Setting]]:
    grid = (arguments.tokens, arguments.dims, arguments.experts, arguments.top_k)
    for wanted, dim, experts, top_k in itertools.product(*grid):
        tokens = wanted - wanted % 50  # whole sequences for the slots
        if top_k <= experts and tokens * dim**2 * top_k <= arguments.largest:
            yield tokens, (dim, 4 * dim, experts, top_k)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 12800, 51200])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 192, 512])
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--mixtures", nargs="+", choices=MIXTURES, default=list(MIXTURES))
    parser.add_argument(
        "--ways", nargs="+", choices=["forward", "forward_backward"], default=["forward_backward"]
    )
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="of one setting and way, about")
    parser.add_argument(
        "--largest", type=float, default=float("inf"), help="T * D * D * K: leave larger ones out"
    )
    parser.add_argument("--device", default=None, help="every device there is by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--memory", action="store_true", help="peak memory too (slow, CPU)")
    parser.add_argument("--memory-of", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--output", default="expert_routing", help="name of the JSON file")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.memory_of:
        name, tokens, *setting = arguments.memory_of
        one_step(name, int(tokens), tuple(map(int, setting)))
        return
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    devices = [arguments.device] if arguments.device else there
    rows = []
    for device, (tokens, setting) in itertools.product(devices, list(settings(arguments))):
        arguments.device = device
        row: dict[str, Any] = {"device": arguments.device, "T": tokens}
        row |= dict(zip("DFEK", setting, strict=True))
        row |= measure(tokens, setting, arguments)
        row["parts_ms"] = parts(tokens, setting, arguments)
        if arguments.memory:
            row["peak_mib"] = {
                name: peak_mib(name, tokens, setting) for name in row[arguments.ways[-1]]
            }
        rows.append(row)
        for way in arguments.ways:
            ratios = {name: round(own["ratio_to_limit"], 2) for name, own in row[way].items()}
            print({key: row[key] for key in "TDEK"}, way, ratios, flush=True)
        shown = {name: round(value, 2) for name, value in row["parts_ms"].items()}
        print("    ", shown, row.get("peak_mib", ""), flush=True)
        options = {"commit": commit(), "dtype": arguments.dtype, "slow": SLOW}
        write_result(arguments.output, {**options, "rows": rows})


if __name__ == "__main__":
    main()
