"""The table of all fusions, read from the code: docstrings, parameters, what they return."""

from __future__ import annotations

import inspect
import re

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmfuse.fusion import available, build

__all__ = ["cheat_sheet"]

DIM, NUM_MODALITIES = 64, 3
MASKS = ("present", "valid")
MOST_TRIED = 8


def cheat_sheet() -> str:
    """One row a fusion, as a reStructuredText table."""
    head = (
        "name",
        "fusion",
        "formula",
        "parameters",
        "multiply-adds",
        "masks",
        "context",
        "weights",
        "M",
    )
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 12 20 36 10 10 8 10 8 6", ""]
    for first, *others in (head, *map(row, available())):
        lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join(lines)


def row(name: str) -> tuple[str, ...]:
    fusion = build(name, DIM, NUM_MODALITIES).eval()
    description = inspect.getdoc(type(fusion)) or ""
    parameters = sum(parameter.numel() for parameter in fusion.parameters())
    weighs = fusion(torch.randn(1, NUM_MODALITIES, DIM)).weights is not None
    return (
        f"``{name}``",
        f":class:`~mmfuse.fusion.{type(fusion).__name__}`{paper(description)}",
        formula(description),
        f"{parameters:,}",
        f"{multiply_adds(fusion):,}",
        ", ".join(f"``{mask}``" for mask in masks(fusion)),
        context(description),
        "yes" if weighs else "no",
        numbers_of_modalities(name),
    )


def paper(description: str) -> str:
    """The citation in the first sentence, if there is one."""
    cited = re.search(r":cite:`([^`]+)`", description.split("\n\n", maxsplit=1)[0])
    return f" :cite:p:`{cited[1]}`" if cited else ""


def formula(description: str) -> str:
    """The first formula, on one line."""
    block = re.search(r"\.\. math::\n((?:    .*\n|\n)+)", description)
    assert block is not None
    return f":math:`{' '.join(block[1].split())}`"


def masks(fusion: nn.Module) -> list[str]:
    """What says which values count: the modalities present, and the positions that are real."""
    return [name for name in inspect.signature(fusion.forward).parameters if name in MASKS]


def context(description: str) -> str:
    """What the class says of its context, without its shape, up to a comma."""
    said = re.search(r"- context: (?::math:`[^`]*`, )?(.*?)(?:[,;]|\n)", description)
    assert said is not None
    return "no" if said[1] == "ignored" else said[1]


def numbers_of_modalities(name: str) -> str:
    """Tried, not claimed: a size guard may refuse many."""
    for count in range(1, MOST_TRIED + 1):
        try:
            fusion = build(name, DIM, count).eval()
        except ValueError:
            return f"to {count - 1}"
        fusion(torch.randn(1, count, DIM))
    return "any"


def multiply_adds(fusion: nn.Module) -> int:
    """Of the matrix products for one row; a flop counter counts two for each."""
    with FlopCounterMode(display=False) as counter:
        fusion(torch.randn(1, NUM_MODALITIES, DIM))
    return counter.get_total_flops() // 2
