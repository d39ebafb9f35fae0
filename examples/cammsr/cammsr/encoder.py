"""A causal Transformer over one stream."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cammsr.config import ModelConfig, Norm
from mmfuse import DynamicTanh

__all__ = ["StreamEncoder", "make_encoder"]


def make_encoder(config: ModelConfig) -> StreamEncoder:
    """The encoder that a configuration describes."""
    return StreamEncoder(
        config.dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
        norm=config.norm,
    )


class StreamEncoder(nn.Module):
    """``Transformer(Dropout(norm(s)))`` of Eq. 14, every position at once.

    Position l sees positions up to l. Sequences are padded on the right, so no real position ever
    sees padding and no mask is needed; what comes out at padding is meaningless.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        dropout: float,
        norm: Norm = "affine_dyt",
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, hidden_dim, dropout, norm) for _ in range(num_layers)
        )

    def forward(
        self,
        stream: Tensor,  # (B, L, D)
        last: Tensor | None = None,  # (B,)
    ) -> Tensor:  # (B, L, D), or (B, D) where last is given
        """What each position knows of the sequence so far.

        Whoever needs one position a row names it by ``last``: the final layer then computes there
        alone.
        """
        state: Tensor = self.dropout(self.norm(stream))
        *inner, final = self.layers
        for layer in inner:
            state = layer(state)
        output: Tensor = final(state, last)
        return output


class EncoderLayer(nn.Module):
    """Causal self-attention and a feed-forward network, each with residual and norm behind it."""

    def __init__(
        self, dim: int, num_heads: int, hidden_dim: int, dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"Expected dim divisible by num_heads, got {dim} and {num_heads}.")
        self.num_heads = num_heads
        self.joint = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim)
        )
        self.attention_norm, self.output_norm = make_norm(norm, dim), make_norm(norm, dim)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        state: Tensor,  # (B, L, D)
        last: Tensor | None = None,  # (B,)
    ) -> Tensor:  # (B, L, D), or (B, D) where last is given
        """One layer, at every position or at one position a row."""
        attended = self._attend(state, last)
        if last is not None:
            state = state[torch.arange(len(state), device=state.device), last]
        state = self.attention_norm(state + self.dropout(attended))
        output: Tensor = self.output_norm(state + self.dropout(self.feed_forward(state)))
        return output

    def _attend(self, state: Tensor, last: Tensor | None) -> Tensor:
        heads = rearrange(self.joint(state), "b l (k h d) -> k b h l d", k=3, h=self.num_heads)
        query, key, value = heads
        if last is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            whole: Tensor = self.out(rearrange(mixed, "b h l d -> b l (h d)"))
            return whole
        query = query[torch.arange(len(query), device=query.device), :, last].unsqueeze(2)
        seen = torch.arange(key.shape[2], device=last.device) <= last.view(-1, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        single: Tensor = self.out(mixed.flatten(1))
        return single


def make_norm(norm: Norm, dim: int) -> nn.Module:
    """Dynamic tanh (Eq. 13), the same with a learned scale and shift, or LayerNorm."""
    return nn.LayerNorm(dim) if norm == "layernorm" else DynamicTanh(dim, affine=norm != "dyt")
