"""Experts with stacked weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_choice, check_positive, check_shape

__all__ = ["Experts"]

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class Experts(nn.Module):
    r"""A bank of two-layer networks and their weighted sum (:cite:`shazeer2017moe`).

    .. math::
        \mathbf{y} = \sum_{k=1}^{E} g_k
        \left( \phi(\mathbf{x} \mathbf{W}_{1,k} + \mathbf{b}_{1,k}) \mathbf{W}_{2,k}
        + \mathbf{b}_{2,k} \right)

    where the weights :math:`g_k` come from a router and may have any sign and sum. The sum is
    taken inside: the hidden activations of all experts stand side by side, each scaled by its
    weight, so that the whole bank is two matrix products and no output of a single expert is
    ever stored. Leading dimensions of ``x`` and ``expert_weight`` broadcast: several routers may
    share one bank, whose hidden layer is then computed once.

    Args:
        num_experts: Number :math:`E` of experts.
        dim: Input width :math:`D`.
        hidden_dim: Hidden width :math:`F` of one expert.
        out_dim: Output width :math:`O`; ``None`` means ``dim``.
        activation: :math:`\phi`: ``"gelu"`` (:cite:`hendrycks2016gelu`), ``"relu"`` or
            ``"silu"``.
        bias: Whether the layers have a bias.

    Shape:
        - x: :math:`(\ldots, D)`
        - expert_weight: :math:`(\ldots, E)`
        - output: :math:`(\ldots, O)`

    Raises:
        ValueError: If a size is not positive, the activation is unknown, or shapes disagree.

    Example:
        >>> experts = Experts(4, dim=8, hidden_dim=16)
        >>> one_hot = torch.tensor([[0.0, 1.0, 0.0, 0.0]])  # only the second expert
        >>> experts(torch.randn(1, 8), one_hot).shape
        torch.Size([1, 8])
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden_dim: int,
        out_dim: int | None = None,
        *,
        activation: str = "gelu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        check_positive(num_experts=num_experts, dim=dim, hidden_dim=hidden_dim, out_dim=out_dim)
        check_choice("activation", activation, _ACTIVATIONS)
        self.num_experts = num_experts
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.activation = activation

        def stack(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(num_experts, *shape, device=device, dtype=dtype))

        self.in_weight = stack(dim, hidden_dim)
        self.out_weight = stack(hidden_dim, out_dim)
        self.in_bias = stack(hidden_dim) if bias else None
        self.out_bias = stack(out_dim) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier, each expert by itself), without bias."""
        for stacked in (self.in_weight, self.out_weight):
            for weight in stacked:
                nn.init.xavier_uniform_(weight)
        for bias in (self.in_bias, self.out_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self,
        x: Tensor,  # (..., D)
        expert_weight: Tensor,  # (..., E)
    ) -> Tensor:  # (..., O)
        """Return the weighted sum of the experts; shapes are given in the class docstring."""
        check_shape("x", x, self.dim)
        check_shape("expert_weight", expert_weight, self.num_experts)
        hidden = x @ rearrange(self.in_weight, "e d f -> d (e f)")
        if self.in_bias is not None:
            hidden = hidden + self.in_bias.flatten()
        hidden = _ACTIVATIONS[self.activation](hidden).unflatten(-1, (self.num_experts, -1))
        weighted = (hidden * expert_weight.unsqueeze(-1)).flatten(-2)
        output: Tensor = weighted @ rearrange(self.out_weight, "e f o -> (e f) o")
        return output if self.out_bias is None else output + expert_weight @ self.out_bias

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, dim={self.dim}, hidden_dim={self.hidden_dim}, "
            f"out_dim={self.out_dim}, activation={self.activation!r}"
        )
