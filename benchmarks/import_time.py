"""What does ``import mmfuse`` cost beyond ``import torch``?

Fresh interpreters in turn, A B A B ..., so that a drift of the machine touches both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from measuring import write_result

HEAVY = ("torch_geometric", "lightning", "matplotlib", "polars")


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs the code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    seconds("import mmfuse")  # warm up
    pairs = [(seconds("import torch"), seconds("import mmfuse")) for _ in range(runs)]
    ratios = sorted(ours / theirs for theirs, ours in pairs)
    loaded = f"import sys, mmfuse; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", loaded], check=True, capture_output=True, text=True
    )
    result = {
        "torch_seconds_median": statistics.median(theirs for theirs, _ in pairs),
        "mmfuse_seconds_median": statistics.median(ours for _, ours in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "heavy_modules_loaded": found.stdout.strip(),
        "pairs": pairs,
    }
    for name, value in result.items():
        if name != "pairs":
            print(f"{name}: {value}")
    print(write_result("import_time", result).name)


if __name__ == "__main__":
    main()
