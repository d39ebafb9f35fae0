"""What do exact nearest neighbours of a catalogue cost, beside scikit-learn's brute force?

A graph of the 10 nearest neighbours of 50,000 items with 384 features. Each measurement is a fresh
process: seconds of the search, after a small one, on the clock and of all cores together (which
matters where others use the machine), and the peak memory beyond what stood there before it,
features included (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import write_result

from mmfuse.graph import knn_graph

K = 10
SAMPLE = 200  # items whose neighbours are compared with a search in float64


def features(items: int, width: int) -> torch.Tensor:
    return torch.randn(items, width, generator=torch.Generator().manual_seed(0))


def by_mmfuse(x: torch.Tensor) -> torch.Tensor:
    return knn_graph(x, K).edge_index[0].reshape(-1, K)


def by_sklearn(x: torch.Tensor) -> torch.Tensor:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(x.numpy())
    return torch.from_numpy(search.kneighbors(return_distance=False))  # of the others


SEARCHES = {"mmfuse": by_mmfuse, "scikit-learn": by_sklearn}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def found(x: torch.Tensor, index: torch.Tensor) -> float:
    """Share of the true neighbours, by a search in float64, that are found for some items."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    rows = torch.linspace(0, len(x) - 1, SAMPLE).long()
    scores = unit[rows] @ unit.T
    scores[torch.arange(SAMPLE), rows] = -torch.inf
    true = scores.topk(K).indices
    return (index[rows].unsqueeze(-1) == true.unsqueeze(-2)).any(-1).double().mean().item()


def measure(name: str, items: int, width: int) -> dict[str, Any]:
    """Run in a process of its own: a peak never falls again."""
    search = SEARCHES[name]
    search(features(500, width))
    before = resident_bytes()
    x = features(items, width)
    start, busy = time.perf_counter(), time.process_time()
    index = search(x)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "processor_seconds": busy,
        "peak_extra_mib": (peak - before) / 2**20,
        "peak_mib": peak / 2**20,
        "share_of_true_neighbours": found(x, index),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--output", default="item_graph")
    parser.add_argument("--alone", choices=SEARCHES, help="measure one search here, print JSON")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options.alone, options.items, options.width)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in options.searches}
    for _ in range(options.rounds):  # in turn, A B A B ...
        for name, measured in rounds.items():
            size = ["--items", str(options.items), "--width", str(options.width)]
            command = [sys.executable, __file__, "--alone", name, *size]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append(json.loads(run.stdout.splitlines()[-1]))
            print(name, measured[-1], flush=True)
    setting = {"items": options.items, "width": options.width, "k": K}
    versions = {name: version(name) for name in rounds if name != "mmfuse"}
    write_result(options.output, {"setting": setting, "versions": versions, "rounds": rounds})


if __name__ == "__main__":
    main()
