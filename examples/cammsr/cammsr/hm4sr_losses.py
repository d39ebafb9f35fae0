"""What HM4SR learns beside the next item: two contrasts and the categories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse import info_nce
from mmfuse.types import Streams

__all__ = ["category_loss", "choose_positions", "id_contrast", "placeholder_contrast"]

ID_TEMPERATURE = 0.2
PLACEHOLDER_TEMPERATURE = 1.0
REPLACED = 0.3  # of the positions of a sequence


def id_contrast(
    state: Tensor,  # (B, D), the last of the id stream
    ids: Tensor,  # (V, D), the embeddings
    target: Tensor,  # (B,)
    valid: Tensor | None = None,  # (B,) bool, which rows are users
) -> Tensor:
    """InfoNCE between a user's last id state and the embedding of the item that came next.

    Users with the same target are not each other's negatives; those of all processes are.
    """
    loss: Tensor = info_nce(
        state, ids[target], temperature=ID_TEMPERATURE, ids=target, valid=valid, gather=True
    )
    return loss


def choose_positions(valid: Tensor) -> Tensor:  # (B, L) -> (B, L) bool
    """Draw 30 % of the real positions of every row, rounded down."""
    count = (REPLACED * valid.sum(-1, keepdim=True)).floor()
    drawn = torch.rand(valid.shape, device=valid.device).masked_fill(~valid, 2.0)
    return drawn.argsort(-1).argsort(-1) < count


def placeholder_contrast(
    given: Streams,  # x (B, L, S, D) and present (B, L, S), of the modalities beside the id
    states: Tensor,  # (B, S, D), the last ones of the streams as they are
    placeholders: Tensor,  # (B, L, S, D), made of the time alone
    encode: Callable[[Tensor, int], Tensor],  # (B, L, D) and which stream -> (B, D)
    *,
    chosen: Tensor,  # (B, L) bool
    valid: Tensor,  # (B, L)
    target: Tensor,  # (B,)
) -> Tensor:
    """InfoNCE between a stream's last state, and that with placeholders at the chosen positions.

    The mean over the streams. A position without the modality is not replaced, and who lacks it
    throughout takes no part in its contrast.
    """
    streams, present = given
    replace = (chosen.unsqueeze(-1) & present).unsqueeze(-1)
    changed = torch.where(replace, placeholders, streams)
    losses = [
        info_nce(
            states[:, s],
            encode(changed[..., s, :], s),
            temperature=PLACEHOLDER_TEMPERATURE,
            ids=target,
            valid=(present[..., s] & valid).any(-1),
            gather=True,
        )
        for s in range(streams.shape[-2])
    ]
    return torch.stack(losses).mean()


def category_loss(
    head: nn.Module,  # (T, M D) -> (T, C)
    streams: Tensor,  # (V, M, D), the catalogue
    labels: Tensor,  # (V, C) bool
    items: Tensor,  # (B, L)
    valid: Tensor,  # (B, L)
) -> Tensor:
    """Binary cross entropy of the categories of the items read; unknown ones are left out."""
    read = items[valid & labels.any(-1)[items]]
    logits: Tensor = head(F.embedding(read, streams.flatten(-2)))
    truth = labels[read].to(logits.dtype)
    summed = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    return summed / max(logits.numel(), 1)
