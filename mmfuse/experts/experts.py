"""Experts with stacked weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mmfuse._activation import ACTIVATIONS
from mmfuse._checks import check_choice, check_floating, check_index, check_positive, check_shape
from mmfuse._precision import without_autocast
from mmfuse._routing import spread
from mmfuse.experts.dispatch import combine_rows, gather_rows, plan_dispatch
from mmfuse.experts.rows import expert_rows
from mmfuse.layers import mask_absent

__all__ = ["Experts"]

_BACKENDS = ("auto", "dense", "loop", "grouped")
#: What the sparse backends ask of :func:`expert_rows`.
GROUPED: Mapping[str, bool | None] = {"auto": None, "dense": None, "loop": False, "grouped": True}
# Measured on two cores, float32, forward and backward: sorting pays once the dense backend would
# multiply more often than this. Few tokens count as eight: all weights are read all the same.
_CHEAP = 2**25
_LEAST_TOKENS = 8


class Experts(nn.Module):
    r"""A bank of two-layer networks and their weighted sum (:cite:`shazeer2017moe`).

    .. math::
        \mathbf{y} = \sum_{k} g_k
        \left( \phi(\mathbf{x} \mathbf{W}_{1,k} + \mathbf{b}_{1,k}) \mathbf{W}_{2,k}
        + \mathbf{b}_{2,k} \right)

    where the weights :math:`g_k` come from a router and may have any sign and sum. Without
    ``expert_index`` the sum runs over all experts, with it over the K chosen ones. In a gated
    activation :math:`\phi`, the first layer is twice as wide and
    :math:`\phi([\mathbf{u}; \mathbf{v}]) = \phi'(\mathbf{u}) \odot \mathbf{v}`
    (:cite:`shazeer2020glu`).

    Three backends give the same numbers:

    * ``"dense"`` computes every expert for every token: the hidden layers of all experts stand
      side by side, each scaled by its weight, so that the bank is two matrix products. The
      readable reference, the fastest where most experts are chosen, and differentiable twice.
      Leading dimensions broadcast: several routers may share one bank.
    * ``"loop"`` sorts the choices by expert and computes one product an expert. Any dtype.
    * ``"grouped"`` lets one call of :func:`torch.nn.functional.grouped_mm` do that, and falls back
      to the loop for what the call does not take (float64, odd widths).

    ``"auto"`` takes the dense backend where there is no index, and where all its products together
    cost less than sorting (few tokens, small experts); otherwise the loop on the CPU and the
    grouped one elsewhere. Under :func:`torch.compile` it does not look at the number of tokens, and
    takes the dense one where at least four of five experts are chosen. No choice is ever dropped.
    The output has the dtype of ``x``, under autocast as well.

    Args:
        num_experts: Number :math:`E` of experts.
        dim: Input width :math:`D`.
        hidden_dim: Hidden width :math:`F` of one expert.
        out_dim: Output width :math:`O`; ``None`` means ``dim``.
        activation: :math:`\phi`: ``"gelu"`` (:cite:`hendrycks2016gelu`), ``"relu"``, ``"silu"``,
            or gated ``"geglu"``, ``"reglu"``, ``"swiglu"``.
        bias: Whether the layers have a bias.
        backend: ``"auto"``, ``"dense"``, ``"loop"`` or ``"grouped"``.

    Shape:
        - x: :math:`(\ldots, D)`
        - expert_weight: :math:`(\ldots, E)`, or :math:`(\ldots, K)` beside an index
        - expert_index: :math:`(\ldots, K)`, int64; -1 is nobody
        - output: :math:`(\ldots, O)`

    Raises:
        ValueError: If a size is not positive, a word is not among the choices, ``x`` is not of
            floating point, (on the CPU) an index is no expert's, or shapes disagree.

    Example:
        >>> experts = Experts(4, dim=8, hidden_dim=16)
        >>> x = torch.randn(1, 8)
        >>> one_hot = torch.tensor([[0.0, 1.0, 0.0, 0.0]])  # only the second expert
        >>> chosen = experts(x, torch.ones(1, 1), torch.tensor([[1]]))
        >>> torch.allclose(experts(x, one_hot), chosen, atol=1e-6)
        True
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
        backend: Literal["auto", "dense", "loop", "grouped"] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        check_positive(num_experts=num_experts, dim=dim, hidden_dim=hidden_dim, out_dim=out_dim)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("backend", backend, _BACKENDS)
        self.num_experts = num_experts
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.activation = activation
        self.backend = backend
        wide = 2 * hidden_dim if ACTIVATIONS[activation].gated else hidden_dim

        def stack(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(num_experts, *shape, device=device, dtype=dtype))

        self.in_weight = stack(dim, wide)
        self.out_weight = stack(hidden_dim, out_dim)
        self.in_bias = stack(wide) if bias else None
        self.out_bias = stack(out_dim) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier, each projection of each expert by itself), without bias."""
        for expert in self.in_weight.detach():
            for projection in expert.split(self.hidden_dim, dim=-1):
                nn.init.xavier_uniform_(projection)
        for expert in self.out_weight.detach():
            nn.init.xavier_uniform_(expert)
        for bias in (self.in_bias, self.out_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self,
        x: Tensor,  # (..., D)
        expert_weight: Tensor,  # (..., E) or (..., K)
        expert_index: Tensor | None = None,  # (..., K)
    ) -> Tensor:  # (..., O)
        """Return the weighted sum of the experts; shapes are given in the class docstring."""
        check_shape("x", x, self.dim)
        check_floating("x", x)
        dtype = _product_dtype(x)
        tokens, expert_weight = x.to(dtype), expert_weight.to(dtype)
        if expert_index is None:
            check_shape("expert_weight", expert_weight, self.num_experts)
            with without_autocast(x.device):
                return self._dense(tokens, expert_weight).to(x.dtype)
        check_shape("expert_index", expert_index, *x.shape[:-1], "K", leading=False)
        check_shape("expert_weight", expert_weight, *expert_index.shape, leading=False)
        check_index("expert_index", expert_index, "num_experts", self.num_experts)
        somebody = expert_index >= 0
        expert_weight = torch.where(somebody, expert_weight, 0)
        with without_autocast(x.device):
            if self._is_dense(expert_index):
                tokens = mask_absent(tokens, somebody.any(-1))
                chosen = spread(torch.ones_like(expert_weight), expert_index, self.num_experts) > 0
                expert_weight = spread(expert_weight, expert_index, self.num_experts)
                return self._dense(tokens, expert_weight, chosen).to(x.dtype)
            return self._sparse(tokens, expert_weight, expert_index).to(x.dtype)

    def on_slots(
        self,
        slots: Tensor,  # (..., E, S, D)
    ) -> Tensor:  # (..., E, S, O)
        """Return what each expert makes of its own slots, unweighted."""
        check_shape("slots", slots, self.num_experts, "S", self.dim)
        check_floating("slots", slots)
        lead = slots.shape[:-3]
        in_weight, in_bias, out_weight, out_bias = self._weights(_product_dtype(slots))
        x = slots.to(in_weight.dtype).reshape(math.prod(lead), *slots.shape[-3:])
        with without_autocast(slots.device):
            hidden = rearrange(x, "g e s d -> e (g s) d") @ in_weight
            if in_bias is not None:
                hidden = hidden + in_bias.unsqueeze(1)
            output = ACTIVATIONS[self.activation].forward(hidden) @ out_weight
            if out_bias is not None:
                output = output + out_bias.unsqueeze(1)
        output = rearrange(output, "e (g s) o -> g e s o", g=x.shape[0], s=x.shape[2])
        return output.reshape(*lead, *output.shape[1:]).to(slots.dtype)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, dim={self.dim}, hidden_dim={self.hidden_dim}, "
            f"out_dim={self.out_dim}, activation={self.activation!r}, backend={self.backend!r}"
        )

    def _is_dense(self, expert_index: Tensor) -> bool:
        if self.backend != "auto":
            return self.backend == "dense"
        if torch.compiler.is_compiling():  # the number of tokens may be symbolic
            return 5 * expert_index.shape[-1] >= 4 * self.num_experts
        tokens = max(expert_index[..., 0].numel(), _LEAST_TOKENS)
        return tokens * (self.in_weight.numel() + self.out_weight.numel()) < _CHEAP

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        in_bias = None if self.in_bias is None else self.in_bias.to(dtype)
        out_bias = None if self.out_bias is None else self.out_bias.to(dtype)
        return self.in_weight.to(dtype), in_bias, self.out_weight.to(dtype), out_bias

    def _dense(
        self,
        x: Tensor,  # (..., D)
        expert_weight: Tensor,  # (..., E)
        chosen: Tensor | None = None,  # (..., E)
    ) -> Tensor:  # (..., O)
        in_weight, in_bias, out_weight, out_bias = self._weights(x.dtype)
        hidden = x @ rearrange(in_weight, "e d f -> d (e f)")
        if in_bias is not None:
            hidden = hidden + in_bias.flatten()
        hidden = ACTIVATIONS[self.activation].forward(hidden.unflatten(-1, in_weight.shape[::2]))
        weighted = mask_absent(hidden, chosen) * expert_weight.unsqueeze(-1)
        output: Tensor = weighted.flatten(-2) @ rearrange(out_weight, "e f o -> (e f) o")
        return output if out_bias is None else output + expert_weight @ out_bias

    def _sparse(
        self,
        x: Tensor,  # (..., D)
        expert_weight: Tensor,  # (..., K)
        expert_index: Tensor,  # (..., K)
    ) -> Tensor:  # (..., O)
        top_k = expert_index.shape[-1]
        plan = plan_dispatch(expert_index.reshape(-1, top_k), self.num_experts)
        rows = expert_rows(
            gather_rows(x.reshape(-1, self.dim), plan),
            plan.offsets,
            *self._weights(x.dtype),
            activation=self.activation,
            grouped=GROUPED[self.backend],
        )
        output = combine_rows(rows, expert_weight.reshape(-1, top_k), plan)
        return output.reshape(*x.shape[:-1], self.out_dim)


def _product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would compute a product in; float64 stays."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(kind)
    return x.dtype
