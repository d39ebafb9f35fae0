"""Draw what ``expert_routing.py`` measured, for the manual."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from measuring import RESULTS

IMAGES = Path(__file__).parent.parent / "docs" / "_static"
PARTS = ("products", "router", "sort", "gather", "combine")
STYLE = {"limit": ":", "mmfuse auto": "-"}


def ratios(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """The ratio to the limit over the number of experts, a curve a mixture, a panel a width."""
    dims = sorted({row["D"] for row in rows})
    figure, panels = plt.subplots(1, len(dims), figsize=(4 * len(dims), 3.6), sharey=True)
    panels = [panels] if len(dims) == 1 else panels
    names = list(dict.fromkeys(name for row in rows for name in row["forward_backward"]))
    for panel, dim in zip(panels, dims, strict=True):
        for name in sorted(names):
            own = [row for row in rows if row["D"] == dim and name in row["forward_backward"]]
            heights = [row["forward_backward"][name]["ratio_to_limit"] for row in own]
            panel.plot([row["E"] for row in own], heights, STYLE.get(name, "--"), label=name)
        panel.set(xscale="log", yscale="log", xlabel="experts E", title=f"D {dim}, F {4 * dim}")
        panel.set_xticks(experts := sorted({row["E"] for row in rows}), map(str, experts))
        panel.minorticks_off()
        panel.set_yticks(marks := [0.5, 1, 2, 4, 8, 16, 32], map(str, marks))
    panels[0].set_ylabel("time / time of the limit")
    panels[-1].legend(fontsize="x-small")
    save(figure, title, path)


def shares(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Where the time goes, a bar a setting."""
    figure, panel = plt.subplots(figsize=(0.55 * len(rows) + 2, 3.6))
    labels = [f"D {row['D']}\nE {row['E']}" for row in rows]
    below = [0.0] * len(rows)
    for part in PARTS:
        times = [sum(row["parts_ms"][name] for name in PARTS) for row in rows]
        heights = [
            100 * row["parts_ms"][part] / time for row, time in zip(rows, times, strict=True)
        ]
        panel.bar(labels, heights, bottom=below, label=part)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    panel.set_ylabel("% of the time")
    panel.tick_params(axis="x", labelsize="x-small")
    panel.legend(fontsize="x-small", loc="lower left")
    save(figure, title, path)


def save(figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default="expert_routing_widths", help="name of the JSON file")
    parser.add_argument("--tokens", type=int, default=12800)
    parser.add_argument("--top-k", type=int, default=2)
    arguments = parser.parse_args()
    mpl.use("agg")
    every = json.loads((RESULTS / f"{arguments.input}.json").read_text())["rows"]
    rows = [row for row in every if (row["T"], row["K"]) == (arguments.tokens, arguments.top_k)]
    title = f"{arguments.tokens} tokens, K {arguments.top_k}, forward + backward, CPU"
    rows = [row for row in rows if row["device"] == "cpu"]
    ratios(rows, title, IMAGES / "expert_routing_ratio.png")
    shares(rows, f"mmfuse: {title}", IMAGES / "expert_routing_parts.png")


if __name__ == "__main__":
    main()
