"""Routers without a choice: every expert for every token, or slots that mix tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32, unit, without_autocast
from mmfuse._routing import linear_scores
from mmfuse.layers import mask_absent, masked_softmax
from mmfuse.losses import cv_squared_loss, router_z_loss
from mmfuse.types import RouterOutput, SoftSlots

__all__ = ["SlotRouter", "SoftRouter"]


class SoftRouter(nn.Module):
    r"""Weigh all experts for every token (:cite:`jacobs1991adaptive`).

    .. math::
        \mathbf{g} = \operatorname{softmax}(\mathbf{W} \mathbf{x} / \tau)

    Nothing is discrete: every expert computes, and every expert learns from every token.

    Args:
        dim: Size :math:`D` of a token.
        num_experts: Number :math:`E` of experts.
        temperature: Softmax temperature :math:`\tau > 0`.

    Shape:
        - x: :math:`(\ldots, D)`
        - valid: :math:`(\ldots)`, boolean, false at padding
        - context: ignored; here so that routers can be exchanged
        - expert_weight: :math:`(\ldots, E)`, zero at padding

    Returns:
        :class:`~mmfuse.types.RouterOutput` with the losses ``"importance"``
        (:func:`~mmfuse.losses.cv_squared_loss`) and ``"z"`` (:func:`~mmfuse.losses.router_z_loss`).

    Raises:
        ValueError: If a size or the temperature is not positive, or shapes disagree.

    Example:
        >>> router = SoftRouter(8, num_experts=4)
        >>> router(torch.zeros(1, 8)).expert_weight.detach()
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_experts=num_experts, temperature=temperature)
        self.dim = dim
        self.num_experts = num_experts
        self.temperature = temperature
        self.weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier)."""
        nn.init.xavier_uniform_(self.weight)

    def forward(
        self,
        x: Tensor,  # (..., D)
        valid: Tensor | None = None,  # (...)
        context: Tensor | None = None,
    ) -> RouterOutput:
        """Return a weight for every expert; shapes are given in the class docstring."""
        logits = linear_scores(x, self.weight, valid) / self.temperature
        probs = mask_absent(torch.softmax(logits, dim=-1), valid)
        losses = {"importance": cv_squared_loss(probs, valid), "z": router_z_loss(logits, valid)}
        return RouterOutput(probs.to(x.dtype), losses, None, logits, probs)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_experts={self.num_experts}, temperature={self.temperature}"


class SlotRouter(nn.Module):
    r"""Fill the slots of experts with mixtures of tokens (:cite:`puigcerver2024softmoe`).

    .. math::
        \boldsymbol{\ell}_{les} = \beta \left\langle
        \frac{\mathbf{x}_l}{\lVert \mathbf{x}_l \rVert},
        \frac{\boldsymbol{\phi}_{es}}{\lVert \boldsymbol{\phi}_{es} \rVert} \right\rangle, \qquad
        D_{les} = \frac{\exp \ell_{les}}{\sum_{l'} \exp \ell_{l'es}}, \qquad
        C_{les} = \frac{\exp \ell_{les}}{\sum_{e's'} \exp \ell_{le's'}}

    A slot is the mixture of all tokens of its sequence by :math:`D`; a token gets back the mixture
    of all slots by :math:`C`. Every token takes part and every expert gets the same work. Padding
    enters no slot and gets nothing back.

    .. note::
        A token's output depends on later tokens of its sequence: not for causal models.

    Args:
        dim: Size :math:`D` of a token.
        num_experts: Number :math:`E` of experts.
        slots_per_expert: Number :math:`S` of slots of one expert.

    Shape:
        - x: :math:`(\ldots, L, D)`
        - valid: :math:`(\ldots, L)`, boolean, false at padding
        - context: ignored; here so that routers can be exchanged
        - slots.dispatch, slots.combine: :math:`(\ldots, L, E, S)`, zero at padding
        - expert_weight: :math:`(\ldots, L, E)`, what a token gets back from each expert

    Returns:
        :class:`~mmfuse.types.RouterOutput` without losses: the load is even by construction.

    Raises:
        ValueError: If a size is not positive, or shapes disagree.

    Example:
        >>> router = SlotRouter(8, num_experts=4, slots_per_expert=2)
        >>> router(torch.randn(3, 5, 8)).slots.dispatch.shape
        torch.Size([3, 5, 4, 2])
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        slots_per_expert: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_experts=num_experts, slots_per_expert=slots_per_expert)
        self.dim = dim
        self.num_experts = num_experts
        self.slots_per_expert = slots_per_expert
        slots = num_experts * slots_per_expert
        self.weight = nn.Parameter(torch.empty(slots, dim, device=device, dtype=dtype))
        self.scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier); the scale starts at one."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.ones_(self.scale)

    def forward(
        self,
        x: Tensor,  # (..., L, D)
        valid: Tensor | None = None,  # (..., L)
        context: Tensor | None = None,
    ) -> RouterOutput:
        """Return what enters and leaves the slots; shapes are given in the class docstring."""
        check_shape("x", x, "L", self.dim)
        if valid is not None:
            check_mask("valid", valid, x.shape[:-1])
        wide = at_least_float32(x)
        with without_autocast(x.device):
            direction = unit(mask_absent(x, valid).to(wide))
            logits = self.scale.to(wide) * F.linear(direction, unit(self.weight.to(wide)))
        present = None if valid is None else valid.unsqueeze(-2).expand(logits.mT.shape)
        dispatch = masked_softmax(logits.mT, present).mT
        combine = mask_absent(torch.softmax(logits, dim=-1), valid)
        shape = (self.num_experts, self.slots_per_expert)
        parts = SoftSlots(
            dispatch.unflatten(-1, shape).to(x.dtype), combine.unflatten(-1, shape).to(x.dtype)
        )
        return RouterOutput(parts.combine.sum(-1), {}, slots=parts)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, "
            f"slots_per_expert={self.slots_per_expert}"
        )
