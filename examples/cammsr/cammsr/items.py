"""The catalogue as modality streams: projected once a step, then looked up by item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cammsr.config import ModelConfig
from mmfuse import FeatureTable, ModalityProjection
from mmfuse.types import Streams

__all__ = ["ID", "ItemStreams", "look_up", "make_items"]

ID = "id"
"""The modality that is the item itself: a learned embedding."""

BLOCK = 2**24  # numbers that are standardised at a time


class ItemStreams(nn.Module):
    """Every item of the catalogue as ``M`` vectors of one width (Eq. 2-4).

    The raw features are frozen; their projections and the id embedding are trained. Features are
    centred and scaled to unit variance over the items that have them, so that no encoder's scale
    decides which modality is loud at the start.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],  # modality -> (V, D_m)
        num_items: int,
        dim: int,
        *,
        use_id: bool = True,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        if ID in features:
            raise ValueError(
                f"Expected features of other names than {ID!r}, it is the item itself."
            )
        if not features and not use_id:
            raise ValueError("Expected at least one modality, got no features and use_id=False.")
        self.scale = scale
        self.embedding = nn.Embedding(num_items, dim) if use_id else None
        self.tables = nn.ModuleList(
            FeatureTable(standardise(raw), present=observed_rows(raw)) for raw in features.values()
        )
        self.names = (*((ID,) if use_id else ()), *features)
        widths = {name: raw.shape[1] for name, raw in features.items()}
        known = {ID: None, **widths} if use_id else widths
        self.projection = ModalityProjection(known, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw embeddings and projections so that every stream starts at the same scale."""
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=self.scale)
        for layer in self.projection.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=self.scale / layer.in_features**0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, items: Tensor | None = None) -> Streams:  # (N,)
        """The whole catalogue, or some items of it: x (V, M, D) and present (V, M)."""
        names = [name for name in self.names if name != ID]
        features: dict[str, Any] = {
            name: table.features for name, table in zip(names, self.tables, strict=True)
        }
        present: dict[str, Any] = {
            name: table.present for name, table in zip(names, self.tables, strict=True)
        }
        if self.embedding is not None:
            features[ID] = self.embedding.weight
        if items is not None:
            features = {name: F.embedding(items, values) for name, values in features.items()}
            present = {name: there[items] for name, there in present.items()}
        streams: Streams = self.projection(features, present)
        return streams


def make_items(
    features: Mapping[str, Tensor],  # modality -> (V, D_m)
    labels: Tensor,  # (V, C)
    config: ModelConfig,
) -> ItemStreams:
    """The item streams that a configuration describes."""
    return ItemStreams(
        features, len(labels), config.dim, use_id=config.use_id, scale=config.first_scale
    )


def standardise(raw: Tensor) -> Tensor:  # (V, D_m) -> (V, D_m)
    """Centre the columns and give their mean variance one, over rows that are not all zero."""
    places = observed_rows(raw).nonzero().flatten()
    scaled = torch.zeros_like(raw, dtype=torch.float32)
    if len(places) == 0:
        return scaled
    blocks = places.split(max(1, BLOCK // raw.shape[1]))  # float64 a block at a time
    total = raw.new_zeros(raw.shape[1], dtype=torch.float64)
    for rows in blocks:
        total += raw[rows].double().sum(0)
    mean, squares = total / len(places), total.new_zeros(())
    for rows in blocks:
        squares += (raw[rows].double() - mean).square().sum()
    scale = (squares / (len(places) * raw.shape[1])).clamp(min=1e-24).sqrt()
    for rows in blocks:
        scaled[rows] = ((raw[rows].double() - mean) / scale).float()
    return scaled


def observed_rows(raw: Tensor) -> Tensor:  # (V, D_m) -> (V,) bool
    """Which rows are not all zero."""
    return torch.cat([(rows != 0).any(-1) for rows in raw.split(max(1, BLOCK // raw.shape[1]))])


def look_up(catalogue: Streams, items: Tensor) -> Streams:  # items (...)
    """Streams (..., M, D) and presence (..., M) of some items."""
    num_items, modalities, dim = catalogue.x.shape
    rows = F.embedding(items, catalogue.x.reshape(num_items, modalities * dim))
    return Streams(rows.unflatten(-1, (modalities, dim)), catalogue.present[items])
