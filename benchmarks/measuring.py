"""What benchmarks measure memory and time with, and what they write beside their numbers."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

__all__ = ["RESULTS", "now", "of_process", "peak", "start_peak", "write_result"]

RESULTS = Path(__file__).parent / "results"


def of_process(field: str) -> int:
    """Bytes, from what Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def start_peak(device: str) -> int:
    """Forget the largest memory so far, of the process or of the GPU; bytes that are held now."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return of_process("VmRSS")


def peak(device: str) -> int:
    """The largest memory since then."""
    return of_process("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def now(device: str) -> float:
    """Seconds of the processor; or on the wall, when the GPU has done all it was told."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def write_result(question: str, values: dict[str, Any]) -> Path:
    """Write the numbers with the machine and the versions that they belong to."""
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    path = RESULTS / f"{question}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **values}, indent=2) + "\n")
    return path
