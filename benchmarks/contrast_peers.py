"""Contrastive losses of N queries and N keys to compare with: ours, and those of other libraries.

A builder takes a temperature and returns a function of queries (N, D), keys (N, D) and ids (N),
which only those of ours named for them read. All take the mean over the rows, and unit vectors.
``definition`` says how a loss differs from ours; where it does not, both return the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

import mmfuse
from mmfuse import info_nce

__all__ = ["LOSSES", "Contrast", "Loss", "installed"]

Contrast = Callable[[Tensor, Tensor, Tensor], Tensor]


class Loss(NamedTuple):
    """A loss, what it holds, and the one of ours that its time is divided by."""

    package: str
    beside: str  # a name of LOSSES
    build: Callable[[float], Contrast]
    matrices: Callable[[int], float]  # N -> N x N matrices of float32 held at once, as measured
    definition: str


def installed(package: str) -> str | None:
    """Its version, if it is there; ours is, also where it is only on the path."""
    if package == "mmfuse":
        return mmfuse.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def of_ours(*, ids: bool = False, **options: Any) -> Callable[[float], Contrast]:
    def build(temperature: float) -> Contrast:
        def contrast(query: Tensor, key: Tensor, same: Tensor) -> Tensor:
            known = same if ids else None
            return info_nce(query, key, temperature=temperature, ids=known, **options)

        return contrast

    return build


def pytorch_metric_learning(temperature: float) -> Contrast:
    losses = import_module("pytorch_metric_learning.losses")
    loss = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature), symmetric=False)
    return lambda query, key, ids: loss(query, key)


def lightly(temperature: float) -> Contrast:
    loss = import_module("lightly.loss").NTXentLoss(temperature)
    return lambda query, key, ids: loss(query, key)


def open_clip(temperature: float) -> Contrast:
    loss = import_module("open_clip.loss").ClipLoss()

    def contrast(query: Tensor, key: Tensor, ids: Tensor) -> Tensor:
        units = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        found: Tensor = loss(*units, 1 / temperature)
        return found

    return contrast


def ours(beside: str, number: float, definition: str, **options: Any) -> Loss:
    return Loss("mmfuse", beside, of_ours(**options), lambda n: number, definition)


ONE = "from queries to keys"
BOTH = "mean of both directions"
IDS = "from queries to keys; keys of the same id, about four a row, are no negatives"

LOSSES = {
    "mmfuse": ours("mmfuse", 4.5, ONE),
    "mmfuse chunked": ours("mmfuse", 0, ONE, chunk_size="auto"),
    "pytorch-metric-learning": Loss(
        "pytorch-metric-learning",
        "mmfuse",
        pytorch_metric_learning,
        lambda n: 4.5 * n,
        f"NTXentLoss in SelfSupervisedLoss(symmetric=False): {ONE}, the same as ours. It compares"
        " all N (N - 1) negative pairs with all N positive ones, so it holds N x N (N - 1) entries",
    ),
    "mmfuse symmetric": ours("mmfuse symmetric", 5.5, BOTH, symmetric=True),
    "mmfuse symmetric chunked": ours(
        "mmfuse symmetric", 0, BOTH, symmetric=True, chunk_size="auto"
    ),
    "open_clip": Loss(
        "open_clip_torch",
        "mmfuse symmetric",
        open_clip,
        lambda n: 4.5,
        f"ClipLoss of unit vectors with logit_scale = 1 / temperature: {BOTH}, the same as ours. It"
        " makes the matrix once for each direction",
    ),
    "lightly": Loss(
        "lightly",
        "mmfuse symmetric",
        lightly,
        lambda n: 17,
        "NTXentLoss, SimCLR's: each of 2 N vectors against all others, so the other queries are"
        " negatives of a query too: 2 N x (2 N - 1) logits",
    ),
    "mmfuse ids": ours("mmfuse ids", 5, IDS, ids=True),
    "mmfuse ids chunked": ours("mmfuse ids", 0, IDS, ids=True, chunk_size="auto"),
}
