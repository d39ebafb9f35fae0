"""What does expert routing cost?

Forward and forward + backward of a mixture of experts on the CPU (and on a GPU, where there is
one), beside the limit (one network on the same number of rows) and beside other libraries. All
mixtures of a setting are timed in turn, A B C A B C ..., so that a drift of the machine touches
all; what counts is the ratio to the limit within a round.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import write_result
from routing_peers import DROPLESS, MIXTURES, Setting
from torch import nn

from mmfuse import Experts, TopKRouter
from mmfuse.experts import combine_rows, expert_rows, gather_rows, plan_dispatch


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


def in_turn(runs: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, Any]:
    """Median, quartiles, and the median of the ratio to the limit, round by round."""
    for run in runs.values():
        seconds(run, device)
        seconds(run, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {
        name: {
            "median_ms": 1e3 * statistics.median(own),
            "fastest_ms": 1e3 * min(own),
            "quartiles_ms": [1e3 * q for q in statistics.quantiles(own, n=4)[::2]],
            "ratio_to_limit": statistics.median(
                a / b for a, b in zip(own, times["limit"], strict=True)
            ),
        }
        for name, own in times.items()
    }


def measure(tokens: int, setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    dim, hidden, experts, _ = setting
    device, runs = arguments.device, {}
    x = torch.randn(tokens, dim, device=device, requires_grad=True)
    gradient = torch.randn(tokens, dim, device=device)
    for name, build in MIXTURES.items():
        if name == "mmfuse dense" and tokens * experts * hidden > 2**28:
            continue  # more than a gigabyte of hidden activations
        model = build(*setting)
        if model is not None:
            runs[name] = partial(step, model.to(device), x, gradient, arguments.backward)
    return in_turn(runs, arguments.rounds, device)


def parts(tokens: int, setting: Setting, rounds: int) -> dict[str, float]:
    """Where the time goes: forward and backward of each part by itself, medians in ms."""
    dim, hidden, experts, top_k = setting
    router, bank = TopKRouter(dim, experts, top_k), Experts(experts, dim, hidden)
    x = torch.randn(tokens, dim, requires_grad=True)
    weight, _, index, *_ = router(x)
    plan = plan_dispatch(index, experts)
    rows = torch.randn(tokens * top_k, dim, requires_grad=True)
    weight = weight.detach().requires_grad_()
    layers = (bank.in_weight, bank.in_bias, bank.out_weight, bank.out_bias)

    def route() -> None:
        routed = router(x)
        (routed.expert_weight.square().sum() + routed.losses["balance"]).backward()

    given, back = torch.randn(tokens * top_k, dim), torch.randn(tokens, dim)
    runs = {
        "router": route,
        "sort": lambda: plan_dispatch(index, experts),
        "gather": lambda: gather_rows(x, plan).backward(given),
        "products": lambda: expert_rows(rows, plan.offsets, *layers).backward(given),
        "combine": lambda: combine_rows(rows, weight, plan).backward(back),
    }

    def median(run: Callable[[], None]) -> float:
        taken = []
        for _ in range(rounds + 2):
            for tensor in (x, rows, weight, *router.parameters(), *bank.parameters()):
                tensor.grad = None
            taken.append(seconds(run, "cpu"))
        return 1e3 * statistics.median(taken[2:])

    found = {name: median(run) for name, run in runs.items()}
    found["overhead_share"] = 1 - found["products"] / sum(found.values())
    return found


def peak_mib(name: str, tokens: int, setting: Setting) -> float:
    """Peak memory of one training step in a fresh process, beyond that of a tiny one."""

    def peak(count: int) -> float:
        words = [sys.executable, __file__, "--memory-of", name, *map(str, (count, *setting))]
        return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    return peak(tokens) - peak(50)


def one_step(name: str, tokens: int, setting: Setting) -> None:
    model = MIXTURES[name](*setting)
    assert model is not None
    x = torch.randn(tokens, setting[0], requires_grad=True)
    step(model, x, torch.randn_like(x), True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 12800, 51200])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 192, 512])
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--forward", dest="backward", action="store_false")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory too (slow)")
    parser.add_argument("--memory-of", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--output", default="expert_routing", help="name of the JSON file")
    arguments = parser.parse_args()
    if arguments.memory_of:
        name, tokens, *setting = arguments.memory_of
        one_step(name, int(tokens), tuple(map(int, setting)))
        return
    rows = []
    grid = itertools.product(arguments.tokens, arguments.dims, arguments.experts, arguments.top_k)
    for wanted, dim, experts, top_k in grid:
        if top_k > experts:
            continue
        setting = (dim, 4 * dim, experts, top_k)
        tokens = wanted - wanted % 50  # whole sequences for the slots
        row = {"T": tokens, "D": dim, "F": 4 * dim, "E": experts, "K": top_k}
        row["mixtures"] = measure(tokens, setting, arguments)
        if arguments.backward and arguments.device == "cpu":
            row["parts_ms"] = parts(tokens, setting, arguments.rounds)
        if arguments.memory:
            row["peak_mib"] = {
                name: peak_mib(name, tokens, setting)
                for name in ("limit", "mmfuse auto", *DROPLESS)
            }
        rows.append(row)
        shown = {name: round(own["ratio_to_limit"], 2) for name, own in row["mixtures"].items()}
        print({key: row[key] for key in "TDEK"}, shown, row.get("parts_ms", ""), flush=True)
        values = {"commit": commit(), "backward": arguments.backward, "rows": rows}
        write_result(arguments.output, values)


if __name__ == "__main__":
    main()
