"""Frozen features of a catalogue, looked up by item."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_mask
from mmfuse.types import TableOutput

__all__ = ["FeatureTable"]


class FeatureTable(nn.Module):
    r"""Look up the features of items.

    .. math::
        \mathbf{f} = \mathbf{F}_i, \qquad p = [\mathbf{F}_i \neq \mathbf{0}]

    An all-zero row means that the item lacks this modality, unless ``present`` says which items
    have it. That is settled once: training a row does not change whether it is present, and an
    absent row is not trained.

    Args:
        features: One row an item, :math:`(V, D_m)`, finite, of a floating dtype.
        trainable: Whether the rows are parameters; otherwise they are a buffer.
        present: Which items have the modality, :math:`(V)`, boolean; ``None`` means those whose
            row is not all zero.

    Shape:
        - items: :math:`(\ldots)`, int64
        - features: :math:`(\ldots, D_m)`; present: :math:`(\ldots)`

    Returns:
        :class:`~mmfuse.types.TableOutput`.

    Raises:
        ValueError: If ``features`` is not a matrix of finite floating numbers, ``present`` does
            not fit it, or ``items`` are not integers.

    Example:
        >>> table = FeatureTable(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        >>> table(torch.tensor([1, 0])).present
        tensor([False,  True])
    """

    features: Tensor
    present: Tensor

    def __init__(
        self,
        features: Tensor,  # (V, D_m)
        trainable: bool = False,
        *,
        present: Tensor | None = None,  # (V,)
    ) -> None:
        super().__init__()
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(
                "Expected features of shape (V, D_m) and a floating dtype, "
                f"got {tuple(features.shape)} and {features.dtype}."
            )
        broken = ~features.isfinite().all(-1)
        if not features.is_meta and broken.any():
            row = int(broken.nonzero()[0])
            raise ValueError(f"Expected finite features, got NaN or infinity in row {row}.")
        self.trainable = trainable
        if trainable:
            self.features = nn.Parameter(features.detach().clone())
        else:
            self.register_buffer("features", features.detach().clone())
        present = (features != 0).any(-1) if present is None else present.clone()
        check_mask("present", present, features.shape[:1])
        self.register_buffer("present", present)

    def forward(self, items: Tensor) -> TableOutput:  # (...) -> (..., D_m), (...)
        """Return rows and presence; shapes are given in the class docstring."""
        if items.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"Expected items of dtype torch.int64, got {items.dtype}.")
        present = F.embedding(items, self.present.unsqueeze(-1)).squeeze(-1)
        rows = F.embedding(items, self.features)
        if self.trainable:
            rows = rows * present.unsqueeze(-1)
        return TableOutput(rows, present)

    def extra_repr(self) -> str:
        items, width = self.features.shape
        return f"{items}, {width}, trainable={self.trainable}"
