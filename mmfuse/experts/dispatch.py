"""Tokens to experts and back: sort by expert, gather rows, combine what comes back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfuse._checks import check_index, check_positive, check_shape
from mmfuse.types import DispatchPlan

__all__ = ["combine_rows", "gather_rows", "limit_capacity", "plan_dispatch"]


def plan_dispatch(
    expert_index: Tensor,  # (T, K)
    num_experts: int,
) -> DispatchPlan:
    r"""Sort choices by expert, keeping the order of the tokens.

    .. math::
        \text{offsets}_e = \left| \{ (t, k) : 0 \le i_{tk} \le e \} \right|

    Args:
        expert_index: Chosen experts; -1 (any negative number) is nobody.
        num_experts: Number :math:`E` of experts.

    Shape:
        - expert_index: :math:`(T, K)`
        - output: see :class:`~mmfuse.types.DispatchPlan`

    Returns:
        The plan, for :func:`gather_rows` and :func:`combine_rows`.

    Raises:
        ValueError: If the index has not two dimensions, is not of integers, or (on the CPU) names
            an expert that is not there.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[1], [0], [-1], [1]]), num_experts=2)
        >>> plan.order, plan.offsets
        (tensor([1, 0, 3, 2]), tensor([1, 3], dtype=torch.int32))
    """
    check_shape("expert_index", expert_index, "T", "K", leading=False)
    check_index("expert_index", expert_index, "num_experts", num_experts)
    flat = expert_index.flatten()
    key, order = torch.where(flat < 0, num_experts, flat).sort(stable=True)
    experts = torch.arange(num_experts, device=flat.device, dtype=key.dtype)
    offsets = torch.searchsorted(key, experts, right=True, out_int32=True)
    places = torch.arange(flat.shape[0], device=flat.device)
    inverse = torch.empty_like(order).scatter(0, order, places)
    return DispatchPlan(order, inverse.reshape(expert_index.shape), offsets)


def gather_rows(
    x: Tensor,  # (T, D)
    plan: DispatchPlan,
) -> Tensor:  # (T * K, D)
    r"""One row for every choice, sorted by expert.

    .. math::
        \mathbf{r}_a = \mathbf{x}_{\lfloor \text{order}_a / K \rfloor}

    Args:
        x: Tokens.
        plan: From :func:`plan_dispatch`.

    Shape:
        - x: :math:`(T, D)`
        - output: :math:`(T K, D)`

    Returns:
        The rows. Their gradients are gathered back, not scattered: no atomic additions.

    Raises:
        ValueError: If the number of tokens is not the plan's.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[1], [0]]), num_experts=2)
        >>> gather_rows(torch.tensor([[1.0], [2.0]]), plan).flatten()
        tensor([2., 1.])
    """
    check_shape("x", x, plan.inverse.shape[0], "D", leading=False)
    rows: Tensor = _select(x, plan.order, plan.inverse)
    return rows


def combine_rows(
    rows: Tensor,  # (T * K, D)
    expert_weight: Tensor,  # (T, K)
    plan: DispatchPlan,
) -> Tensor:  # (T, D)
    r"""Sum the rows of each token, each with its weight.

    .. math::
        \mathbf{y}_t = \sum_k g_{tk} \, \mathbf{r}_{\text{inverse}_{tk}}

    Args:
        rows: What the experts made of the rows of :func:`gather_rows`.
        expert_weight: Weight of each choice.
        plan: From :func:`plan_dispatch`.

    Shape:
        - rows: :math:`(T K, D)`
        - expert_weight: :math:`(T, K)`
        - output: :math:`(T, D)`

    Returns:
        One vector a token.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[1, 0]]), num_experts=2)
        >>> combine_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0, 1.0]]), plan)
        tensor([[21.]])
    """
    check_shape("rows", rows, plan.order.shape[0], "D", leading=False)
    check_shape("expert_weight", expert_weight, *plan.inverse.shape, leading=False)
    combined: Tensor = _combine(rows, expert_weight.to(rows.dtype), plan.order, plan.inverse)
    return combined


def limit_capacity(
    expert_index: Tensor,  # (..., K)
    num_experts: int,
    capacity: int | Tensor,
) -> Tensor:  # (..., K)
    r"""Drop the choices that an expert has no room for.

    .. math::
        i'_{tk} = \begin{cases} i_{tk} & \text{if fewer than } C
        \text{ choices of } i_{tk} \text{ come before} \\ -1 & \text{otherwise} \end{cases}

    First choices of all tokens come before all second choices; among equals the earlier token
    does, as in :cite:`lepikhin2021gshard`.

    Args:
        expert_index: Chosen experts; -1 is nobody.
        num_experts: Number :math:`E` of experts.
        capacity: How many choices :math:`C` an expert takes; zero takes none.

    Shape:
        - expert_index, output: :math:`(\ldots, K)`

    Returns:
        The choices, -1 where dropped.

    Raises:
        ValueError: If the index has no dimension or names an expert that is not there, or the
            number of experts is not positive.

    Example:
        >>> limit_capacity(torch.tensor([[0, 1], [0, 1], [1, 0]]), num_experts=2, capacity=2)
        tensor([[ 0,  1],
                [ 0, -1],
                [ 1, -1]])
    """
    check_shape("expert_index", expert_index, "K")
    check_positive(num_experts=num_experts)
    by_choice = expert_index.reshape(-1, expert_index.shape[-1]).mT  # (K, T)
    plan = plan_dispatch(by_choice.reshape(-1, 1), num_experts)
    starts = torch.cat([plan.offsets.new_zeros(1), plan.offsets])
    flat = torch.where(by_choice < 0, num_experts, by_choice).flatten()
    rank = plan.inverse.flatten() - starts.index_select(0, flat)
    kept = (rank < capacity).unflatten(0, by_choice.shape).mT.reshape(expert_index.shape)
    return torch.where(kept, expert_index, -1)


# The two are each other's gradients: everything gathers, nothing scatters, at any order.


@torch.library.custom_op("mmfuse::select_rows", mutates_args=())
def _select(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """``x[order // K]``."""
    top_k = inverse.shape[1]
    return x.index_select(0, order if top_k == 1 else order // top_k)


@_select.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty(order.shape[0], x.shape[1])


def _setup_select(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradient_of_select(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _combine(gradient.contiguous(), None, *ctx.saved_tensors), None, None


_select.register_autograd(_gradient_of_select, setup_context=_setup_select)


@torch.library.custom_op("mmfuse::combine_rows", mutates_args=())
def _combine(rows: Tensor, weight: Tensor | None, order: Tensor, inverse: Tensor) -> Tensor:
    """Sum of ``rows[inverse]`` over the choices, each with its weight or with one."""
    if not inverse.numel():  # no tokens
        return rows.new_zeros(inverse.shape[0], rows.shape[1])
    return F.embedding_bag(inverse, rows, mode="sum", per_sample_weights=weight)


@_combine.register_fake
def _(rows: Tensor, weight: Tensor | None, order: Tensor, inverse: Tensor) -> Tensor:
    return rows.new_empty(inverse.shape[0], rows.shape[1])


def _setup_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weight, order, inverse = inputs
    weighted = () if weight is None else (rows, weight)
    ctx.save_for_backward(order, inverse, *weighted)


def _gradient_of_combine(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    order, inverse, *weighted = ctx.saved_tensors
    spread: Tensor = _select(gradient.contiguous(), order, inverse)
    if not weighted:
        return spread, None, None, None
    rows, weight = weighted
    of_weight = (spread * rows).sum(-1).index_select(0, inverse.flatten()).reshape(weight.shape)
    of_rows = spread * weight.flatten().index_select(0, order).unsqueeze(-1)
    return of_rows, of_weight, None, None


_combine.register_autograd(_gradient_of_combine, setup_context=_setup_combine)
