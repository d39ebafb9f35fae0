"""What every benchmark writes beside its numbers."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["RESULTS", "write_result"]

RESULTS = Path(__file__).parent / "results"


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
