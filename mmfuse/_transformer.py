"""Attention and a Transformer layer, for the fusions that are made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_divides, check_positive, check_probability

__all__ = [
    "Attention",
    "SideAttention",
    "TransformerLayer",
    "attend",
    "make_layer",
    "sinusoids",
    "through",
]


def attend(
    query: Tensor,  # (..., H, L, d)
    key: Tensor,  # (..., H, S, d)
    value: Tensor,  # (..., H, S, v)
    seen: Tensor | None = None,  # (..., S), which keys are there
    *,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:  # (..., H, L, v)
    """Scaled dot-product attention; a query that sees no key reads zeros."""
    if seen is None:
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=causal, scale=scale
        )
    mask = seen[..., None, None, :]
    if causal:
        length = key.shape[-2]
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
    somebody = mask.any(-1, keepdim=True)
    read = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask | ~somebody, dropout_p=dropout, scale=scale
    )
    return torch.where(somebody, read, torch.zeros((), dtype=read.dtype, device=read.device))


class Attention(nn.Module):
    """Queries of one sequence, keys and values of the same or of another one."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_divides(num_heads=num_heads, dim=dim)
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.told = nn.Linear(dim, 2 * dim, device=device, dtype=dtype)  # keys and values
        self.out = nn.Linear(dim, dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        for part in (self.query, self.told, self.out):
            part.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, D)
        source: Tensor | None = None,  # (..., S, D); the same by default
        *,
        seen: Tensor | None = None,  # (..., S)
        causal: bool = False,
    ) -> Tensor:  # (..., L, D)
        """What each position reads."""
        query = _heads(self.query(x), 1, self.num_heads)[0]
        key, value = _heads(self.told(x if source is None else source), 2, self.num_heads)
        rate = self.dropout if self.training else 0.0
        read = attend(query, key, value, seen, causal=causal, dropout=rate)
        output: Tensor = self.out(read.movedim(-3, -2).flatten(-2))
        return output


class SideAttention(nn.Module):
    """Where to look is the sum of several attention maps; what is seen is ``x`` alone.

    The maps are those of the sides, and with one map more than sides, that of ``x`` before them.
    Without biases a side of zeros adds nothing to the scores.
    """

    def __init__(
        self,
        num_maps: int,
        dim: int,
        num_heads: int,
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_divides(num_heads=num_heads, dim=dim)
        self.num_heads = num_heads
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(num_maps, 2 * dim, dim, device=device, dtype=dtype))
        self.value = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        for pair in self.weight:
            nn.init.xavier_uniform_(pair)
        self.value.reset_parameters()
        self.out.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, D)
        sides: Tensor,  # (..., L, A, D)
        *,
        seen: Tensor | None = None,  # (..., L)
        causal: bool = False,
    ) -> Tensor:  # (..., L, D)
        """What each position of x reads in x."""
        if sides.shape[-2] < len(self.weight):
            sides = torch.cat([x.unsqueeze(-2), sides], dim=-2)
        joint = torch.einsum("...lad,aod->...lao", sides, self.weight)
        joint = joint.unflatten(-1, (2, self.num_heads, -1)).movedim((-3, -2), (-5, -4))
        query, key = joint.flatten(-2).unbind(-4)  # (..., H, L, A * D / H): scores add up
        value = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
        rate = self.dropout if self.training else 0.0
        scale = value.shape[-1] ** -0.5
        read = attend(query, key, value, seen, causal=causal, dropout=rate, scale=scale)
        output: Tensor = self.out(read.transpose(-3, -2).flatten(-2))
        return output


class TransformerLayer(nn.Module):
    """Attention, then a network; each reads what a LayerNorm made and adds to what was there."""

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        hidden_dim: int,
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_positive(hidden_dim=hidden_dim)
        check_probability(dropout=dropout)
        self.attention = attention
        self.attention_norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.hidden = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        parts: Any = (self.attention, self.attention_norm, self.norm, self.hidden, self.out)
        for part in parts:
            part.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, D)
        source: Tensor | None = None,  # what the attention takes beside x
        *,
        seen: Tensor | None = None,  # (..., S)
        causal: bool = False,
    ) -> Tensor:  # (..., L, D)
        """What went in and what was added."""
        read = self.attention(self.attention_norm(x), source, seen=seen, causal=causal)
        x = x + self.dropout(read)
        inner = self.out(self.dropout(F.gelu(self.hidden(self.norm(x)))))
        output: Tensor = x + self.dropout(inner)
        return output


def make_layer(
    dim: int,
    num_heads: int,
    hidden_dim: int | None,
    dropout: float,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> TransformerLayer:
    """A layer with plain attention; ``hidden_dim`` is ``4 * dim`` by default."""
    attention = Attention(dim, num_heads, dropout, device=device, dtype=dtype)
    hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
    return TransformerLayer(attention, dim, hidden_dim, dropout, device=device, dtype=dtype)


def through(
    layers: Iterable[nn.Module],
    x: Tensor,  # (..., L, D)
    source: Tensor | None = None,  # what each layer takes beside x
    *,
    seen: Tensor | None = None,  # (..., S)
    causal: bool = False,
) -> Tensor:  # (..., L, D)
    """One layer after the other."""
    for layer in layers:
        x = layer(x, source, seen=seen, causal=causal)
    return x


def sinusoids(length: int, dim: int, *, device: torch.device | None = None) -> Tensor:  # (L, D)
    """Positions as sines and cosines (Vaswani et al., 2017, Section 3.5), float32."""
    place = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(-1)
    even = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    angle = place * torch.exp(even * (-math.log(10000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[:, :dim]


def _heads(rows: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """``(..., L, parts * D)`` as so many tensors ``(..., H, L, D / H)``."""
    heads = rows.unflatten(-1, (parts, num_heads, -1)).movedim(-4, -2)
    return tuple(heads.unbind(-4))
