"""GRU4Rec: the id alone, through a recurrent network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cammsr.config import ModelConfig
from cammsr.items import ItemStreams
from cammsr.model import RecommenderOutput
from mmfuse.types import Streams

__all__ = ["GRU4Rec"]


class GRU4Rec(nn.Module):
    """GRU4Rec (Hidasi et al., 2016): a GRU reads the ids, one after the other.

    The GRU has ``config.hidden_dim`` units in each of ``config.num_layers`` layers; a linear map
    leads back to the width of the items. Loop and loss are those of the others, instead of the
    paper's sampled ranking losses.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],  # ignored
        labels: Tensor,  # (V, C), ignored but for its length
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.items = ItemStreams({}, len(labels), config.dim, scale=config.first_scale)
        # Others find here how many items a model reads. A GRU needs none, so they are empty.
        self.positions = nn.Parameter(torch.empty(config.max_length, 0), requires_grad=False)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.dim,
            config.hidden_dim,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.out = nn.Linear(config.hidden_dim, config.dim)
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight"):
                for gate in parameter.data.chunk(3):  # reset, update, new
                    nn.init.xavier_uniform_(gate)
            else:
                nn.init.zeros_(parameter)

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        catalogue: Streams | None = None,  # (V, 1, D)
    ) -> RecommenderOutput:
        """Read histories, padded on the right; ``catalogue`` spares looking it up again."""
        ids = (self.items() if catalogue is None else catalogue).x.squeeze(-2)  # (V, D)
        hidden, _ = self.gru(self.dropout(F.embedding(items, ids)))
        return RecommenderOutput(self.out(hidden), ids, {}, None, None)
