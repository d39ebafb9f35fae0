"""A comparison as text, for Markdown and for LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["HEAD", "TABLES", "Row", "cells"]


@dataclass(frozen=True)
class Row:
    """A model beside the reference, which has no difference to itself."""

    model: str
    mean: float
    std: float
    difference: float | None = None
    half_width: float = math.nan
    p_value: float = math.nan
    wins: str = ""


HEAD = ("model", "mean", "std", "difference", "95 %", "p (Holm)", "wins")


def _text(title: str, rows: Sequence[Row]) -> str:
    wide = max(22, *(len(row.model) for row in rows))
    lines = [title, _line(("", *HEAD[1:]), wide)]
    return "\n".join([*lines, *(_line(cells(row), wide) for row in rows)])


def _line(texts: Sequence[str], wide: int) -> str:
    widths = (9, 9, 13, 11, 10, 9)
    numbers = "".join(f"{cell:>{width}}" for cell, width in zip(texts[1:], widths, strict=True))
    return f"{texts[0]:{wide}}{numbers}".rstrip()


def _markdown(title: str, rows: Sequence[Row]) -> str:
    lines = [HEAD, ("---", *("--:",) * (len(HEAD) - 1)), *(cells(row) for row in rows)]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _latex(title: str, rows: Sequence[Row]) -> str:
    """Needs the package booktabs."""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(HEAD) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escape, HEAD)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_escape, cells(row))) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([f"% {title}", *lines])


def _escape(text: str) -> str:
    for plain, written in (("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("±", r"$\pm$")):
        text = text.replace(plain, written)
    return f"${text}$" if text.startswith(("+", "-")) else text


def cells(row: Row) -> tuple[str, ...]:
    """A row under ``HEAD``, as text."""
    known = (row.model, f"{row.mean:.4f}", "" if math.isnan(row.std) else f"{row.std:.4f}")
    if row.difference is None:
        return (*known, "", "", "", "")
    if math.isinf(row.half_width):  # of one seed
        return (*known, f"{row.difference:+.4f}", "", "", row.wins)
    width = "± " + format(row.half_width, ".4f")
    return (*known, f"{row.difference:+.4f}", width, f"{row.p_value:.3g}", row.wins)


TABLES: dict[str, Callable[[str, Sequence[Row]], str]] = {
    "txt": _text,
    "md": _markdown,
    "tex": _latex,
}
