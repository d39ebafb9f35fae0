"""Mixtures: routers plus experts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse._routing import ROUNDING
from mmfuse.experts.dispatch import limit_capacity
from mmfuse.experts.experts import Experts
from mmfuse.experts.parallel import ExpertParallel
from mmfuse.layers import apply_where, mask_absent
from mmfuse.types import ChosenTokens, MixtureOutput, RouterOutput, SoftSlots

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(nn.Module):
    r"""A router and its experts (:cite:`shazeer2017moe`).

    .. math::
        \mathbf{y} = \sum_{k \in \mathcal{K}(\mathbf{x})} g_k(\mathbf{x}) \,
        \mathrm{Expert}_k(\mathbf{x}) \; [\, + \mathrm{Shared}(\mathbf{x}) \,]

    Any router of :mod:`mmfuse.experts` fits: routers that choose, that weigh all, that let experts
    choose, that fill slots. Padding costs no expert and gives zeros. A shared expert sees every
    valid token (:cite:`dai2024deepseekmoe`).

    No choice is dropped unless ``capacity_factor`` says so, to a router that gives an index: then
    an expert takes at most :math:`\lceil c \, n K / E \rceil` of the choices of :math:`n` valid
    tokens (:func:`~mmfuse.experts.limit_capacity`), what it has no room for shows as -1 in
    ``router.expert_index``, and the weights of the others stay as they were. This holds in
    evaluation too: what a token gets then depends on the other tokens of the batch.

    Args:
        router: A :class:`~mmfuse.types.Router`.
        experts: :class:`~mmfuse.experts.Experts`, as many as the router knows, or those spread over
            processes by :class:`~mmfuse.experts.ExpertParallel`.
        shared: A module on :math:`(\ldots, D)` whose output is added: a network of yours, or
            :class:`~mmfuse.experts.Experts`, each of which then counts fully; or ``None``.
        capacity_factor: :math:`c > 0`; ``None`` means that nothing is dropped.

    Shape:
        - x: :math:`(\ldots, D)`; :math:`(\ldots, L, D)` where the router looks along a sequence
        - valid: :math:`(\ldots)`, boolean, false at padding
        - context: what the router takes, such as categories
        - output: :math:`(\ldots, O)`, zero at padding

    Returns:
        :class:`~mmfuse.types.MixtureOutput` with the router's losses.

    Raises:
        ValueError: If the experts are none, router and experts disagree about their number,
            ``capacity_factor`` is not positive or the router gives no index for it, or shapes
            disagree.

    Example:
        >>> from mmfuse.experts import TopKRouter
        >>> mixture = MixtureOfExperts(TopKRouter(8, 4, top_k=2), Experts(4, 8, 16))
        >>> output, router, losses = mixture(torch.randn(3, 5, 8))
        >>> output.shape, sorted(losses)
        (torch.Size([3, 5, 8]), ['balance', 'z'])
    """

    def __init__(
        self,
        router: nn.Module,
        experts: Experts | ExpertParallel,
        shared: nn.Module | None = None,
        *,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        check_positive(capacity_factor=1.0 if capacity_factor is None else capacity_factor)
        if not hasattr(experts, "on_slots"):
            raise ValueError(f"Expected Experts or ExpertParallel, got {type(experts).__name__}.")
        known = getattr(router, "num_experts", experts.num_experts)
        if known != experts.num_experts:
            raise ValueError(
                f"Expected as many experts as the router's {known}, got {experts.num_experts}."
            )
        self.router = router
        self.experts = experts
        self.shared = shared
        self.capacity_factor = capacity_factor

    def reset_parameters(self) -> None:
        """Draw a fresh router, experts and shared expert."""
        for part in self.children():
            _reset(part)

    def forward(
        self,
        x: Tensor,  # (..., D)
        valid: Tensor | None = None,  # (...)
        context: Tensor | None = None,
    ) -> MixtureOutput:
        """Return the mixture of the experts; shapes are given in the class docstring."""
        check_shape("x", x, self.experts.dim)
        if valid is not None:
            check_mask("valid", valid, x.shape[:-1])
        x = mask_absent(x, valid)
        routed = self._within_capacity(self.router(x, valid, context), valid)
        if isinstance(routed.slots, ChosenTokens):
            output = _process_chosen(self.experts, x, routed.slots)
        elif isinstance(routed.slots, SoftSlots):
            output = _process_soft(self.experts, x, routed.slots)
        elif routed.expert_index is None:
            output = apply_where(self.experts, valid, x, routed.expert_weight)
        elif torch.compiler.is_compiling():  # the index already leaves padding out
            output = self.experts(x, routed.expert_weight, routed.expert_index)
        else:
            choice = routed.expert_weight, routed.expert_index
            output = apply_where(self.experts, valid, x, *choice)
        if self.shared is not None:
            shared = apply_where(self._share, valid, x)
            check_shape("shared(x)", shared, *output.shape, leading=False)
            output = output + shared
        return MixtureOutput(output, routed, dict(routed.losses))

    def extra_repr(self) -> str:
        return f"capacity_factor={self.capacity_factor}"

    def _share(self, x: Tensor) -> Tensor:
        shared: Any = self.shared
        is_bank = isinstance(shared, Experts)
        fully = [x.new_ones(*x.shape[:-1], shared.num_experts)] if is_bank else []
        output: Tensor = shared(x, *fully)
        return output

    def _within_capacity(self, routed: RouterOutput, valid: Tensor | None) -> RouterOutput:
        index = routed.expert_index
        if self.capacity_factor is None:
            return routed
        if index is None:
            raise ValueError(
                "Expected a router that gives expert_index beside capacity_factor = "
                f"{self.capacity_factor}, got {type(self.router).__name__}, which gives none."
            )
        if valid is None:
            tokens = torch.full((), index[..., 0].numel(), device=index.device)
        else:
            tokens = valid.sum()
        experts = self.experts.num_experts
        share = self.capacity_factor * tokens.double() * index.shape[-1] / experts
        capacity = (share - ROUNDING).ceil()
        kept = limit_capacity(index, experts, capacity)
        weight = torch.where(kept < 0, torch.zeros_like(routed.expert_weight), routed.expert_weight)
        return routed._replace(expert_index=kept, expert_weight=weight)


def _process_chosen(experts: Experts | ExpertParallel, x: Tensor, slots: ChosenTokens) -> Tensor:
    """Each expert on the tokens that it picked, added up where a token was picked twice."""
    lead, (length, dim) = x.shape[:-2], x.shape[-2:]
    groups = math.prod(lead)
    first = torch.arange(groups, device=x.device) * length  # of each sequence among all tokens
    flat = (slots.token_index + first.reshape(*lead, 1, 1)).flatten()
    picked = x.reshape(groups * length, dim).index_select(0, flat)
    rows = experts.on_slots(picked.reshape(*slots.token_index.shape, dim))
    rows = (rows * slots.token_weight.unsqueeze(-1)).flatten(0, -2)
    output = rows.new_zeros(groups * length, rows.shape[-1]).index_add(0, flat, rows)
    return output.reshape(*lead, length, rows.shape[-1])


def _process_soft(experts: Experts | ExpertParallel, x: Tensor, slots: SoftSlots) -> Tensor:
    """Each expert on mixtures of tokens, mixed back."""
    mixed = torch.einsum("...les,...ld->...esd", slots.dispatch.to(x.dtype), x)
    rows = experts.on_slots(mixed.to(x.dtype))
    return torch.einsum("...les,...eso->...lo", slots.combine, rows).to(x.dtype)


def _reset(module: nn.Module) -> None:
    """Draw a module afresh: by its own word, or part by part where it has none."""
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()
    else:
        for part in module.children():
            _reset(part)
