"""The tables of all fusions, read from the code: docstrings, parameters, what they return."""

from __future__ import annotations

import inspect
import re
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmfuse.fusion import available, build

__all__ = ["cheat_sheet"]

DIM, NUM_MODALITIES, LENGTH = 64, 3, 50
MASKS = {"rows": ["present"], "sequences": ["present", "valid"]}
MOST_TRIED = 8

Kind = Literal["rows", "sequences"]


def cheat_sheet(kind: Kind) -> str:
    """One row a fusion of a kind, as a reStructuredText table."""
    one = "row" if kind == "rows" else "position"
    head: tuple[str, ...] = ("name", "fusion", "formula", "parameters", f"multiply-adds a {one}")
    if kind == "rows":
        head += ("context", "weights", "M")
    widths = "12 20 36 11 13 10 8 6" if kind == "rows" else "12 20 50 11 13"
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for first, *others in (head, *(row(name, kind) for name in available(kind))):
        lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join(lines)


def row(name: str, kind: Kind) -> tuple[str, ...]:
    fusion = build(name, DIM, NUM_MODALITIES).eval()
    description = inspect.getdoc(type(fusion)) or ""
    parameters = sum(parameter.numel() for parameter in fusion.parameters())
    lead = (1,) if kind == "rows" else (1, LENGTH)
    x = torch.randn(*lead, NUM_MODALITIES, DIM)
    weighs = fusion(x).weights is not None
    cells = (
        f"``{name}``",
        f":class:`~mmfuse.fusion.{type(fusion).__name__}`{paper(description)}",
        formula(description),
        f"{parameters:,}",
        f"{multiply_adds(fusion, x):,}",
    )
    more = (context(description), "yes" if weighs else "no", numbers_of_modalities(name))
    assert masks(fusion) == MASKS[kind], f"the page says which masks {name} takes"
    if kind == "rows":
        return cells + more
    assert more == ("no", "no", "any"), f"the page says so of {name}"
    return cells


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
    takes = inspect.signature(fusion.forward).parameters
    return [name for name in MASKS["sequences"] if name in takes]


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


def multiply_adds(fusion: nn.Module, x: Tensor) -> int:
    """Of the matrix products, a row or position; a flop counter counts two for each.

    Attention counts as the products that it is made of, which a fused kernel would hide.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fusion(x)
    flops: int = counter.get_total_flops()
    return round(flops / 2 / x.shape[:-2].numel())
