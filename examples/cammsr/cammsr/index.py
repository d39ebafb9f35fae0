"""An approximate index over the candidates, for catalogues too large to score item by item."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cammsr.ranking import TopK, top_k
from cammsr.saved import ServingError

__all__ = ["Index", "IndexKind", "recall"]

IndexKind = Literal["hnsw", "ivf"]

LINKS = 32  # neighbours of an item in the graph of HNSW
BUILD_EFFORT = 200  # items compared where an item is put in


class Index:
    """Candidates in a faiss index, searched by inner product.

    Args:
        candidates: one an item.
        kind: ``ivf`` looks into the nearest of about the square root of V cells; ``hnsw`` walks a
            graph of neighbours (Malkov and Yashunin, 2020).
        effort: how many items (``hnsw``) or cells (``ivf``) a search looks at; more finds more and
            takes longer.
    """

    def __init__(
        self,
        candidates: Tensor,  # (V, W)
        kind: IndexKind = "ivf",
        *,
        effort: int = 64,
    ) -> None:
        if kind not in get_args(IndexKind):
            raise ServingError(f"Expected an index among {get_args(IndexKind)}, got {kind!r}.")
        if effort < 1:
            raise ServingError(f"Expected effort >= 1, got {effort}.")
        faiss = _faiss()
        rows = candidates.detach().cpu().float().contiguous().numpy()
        num_items, width = rows.shape
        self.kind = kind
        self.num_items = num_items
        self.faiss: Any
        if kind == "hnsw":
            self.faiss = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
            self.faiss.hnsw.efConstruction = BUILD_EFFORT
            self.faiss.hnsw.efSearch = effort
        else:
            cells = max(1, round(num_items**0.5))
            flat = faiss.IndexFlatIP(width)
            self.faiss = faiss.IndexIVFFlat(flat, width, cells, faiss.METRIC_INNER_PRODUCT)
            self.faiss.cp.min_points_per_centroid = 1  # small catalogues need no warning
            self.faiss.nprobe = min(effort, cells)
            self.faiss.train(rows)
        self.faiss.add(rows)

    def top_k(
        self,
        states: Tensor,  # (B, W)
        k: int,
        *,
        seen: Tensor | None = None,  # (B, S), -1 is nothing
    ) -> TopK:
        """About the k greatest products; where fewer are found, -inf and -1."""
        hidden = 0 if seen is None else seen.shape[1]
        wanted = min(k + hidden, self.num_items)
        found, rows = self.faiss.search(states.detach().cpu().float().contiguous().numpy(), wanted)
        scores, items = torch.from_numpy(found), torch.from_numpy(rows)
        out = items < 0
        if seen is not None:
            out = out | (items.unsqueeze(-1) == seen.cpu().unsqueeze(1)).any(-1)
        scores, items = scores.masked_fill(out, -torch.inf), items.masked_fill(out, -1)
        order = items.argsort(dim=1, stable=True)  # of equal scores the lower number first
        scores, items = scores.gather(1, order), items.gather(1, order)
        order = scores.argsort(dim=1, stable=True, descending=True)[:, : min(k, self.num_items)]
        return TopK(scores.gather(1, order), items.gather(1, order))


def recall(
    index: Index,
    states: Tensor,  # (B, W)
    candidates: Tensor,  # (V, W)
    k: int = 10,
) -> float:
    """The share of the exact k best items that the index finds."""
    exact = top_k(states, candidates, k).items.cpu()
    near = index.top_k(states, k).items
    return float((exact.unsqueeze(-1) == near.unsqueeze(1)).any(-1).double().mean())


def _faiss() -> ModuleType:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ServingError(
            "An index needs faiss. Install the extra 'ann': pip install -e '.[ann]'"
        ) from error
