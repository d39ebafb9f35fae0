"""Scoring as a program of :mod:`torch.export`, which runs without this code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cammsr.ranking import Reader, Reading, best_of, window

__all__ = ["Scoring", "write_program"]


class Scoring(nn.Module):
    """From histories of any length to the best items, in one module: what is exported."""

    def __init__(self, reader: Reader, k: int, *, unseen: bool = True) -> None:
        super().__init__()
        self.reader = reader
        self.k = k
        self.unseen = unseen

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        times: Tensor | None = None,  # (B, L)
    ) -> tuple[Tensor, Tensor]:  # a plain tuple: programs are saved without classes of ours
        """Scores and items, (B, k), for histories padded on the right."""
        length = self.reader.max_length
        if times is not None:
            times, _ = window(times, valid, length)
        reading: Reading = self.reader(*window(items, valid, length), times)
        seen = torch.where(valid, items, -1) if self.unseen else None
        scores, best = best_of(reading, self.k, seen=seen)
        return scores, best


@torch.no_grad()
def write_program(path: str | Path, scoring: Scoring) -> None:
    """Export scoring for any number of histories of any length.

    The program takes ``items`` and ``valid``, and ``times`` as well if the model reads times.
    """
    example = torch.zeros(3, 5, dtype=torch.int64, device=scoring.reader.x.device)
    inputs = [example, example == 0]
    if scoring.reader.reads_times:
        inputs.append(example.clone())  # one tensor given twice would be traced as one input
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    shapes = [{0: batch, 1: length}] * len(inputs)
    program = torch.export.export(scoring, tuple(inputs), dynamic_shapes=tuple(shapes))
    torch.export.save(program, path)
