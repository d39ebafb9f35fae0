"""InfoNCE that knows that negatives may be positives, and that hard negatives teach more."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse._contrast import (
    Reduction,
    check_ids,
    check_reduction,
    masked_log_sum,
    masked_unit,
    reduce_rows,
    same_ids,
)
from mmfuse._precision import at_least_float32, without_autocast

__all__ = ["DebiasedInfoNCELoss", "debiased_info_nce"]


def debiased_info_nce(
    query: Tensor,  # (B, D)
    positive_key: Tensor,  # (B, D)
    negative_keys: Tensor | None = None,  # (N, D) or (B, N, D)
    *,
    temperature: float = 0.1,
    tau_plus: float = 0.1,
    beta: float = 0.0,
    reduction: Reduction = "mean",
    ids: Tensor | None = None,  # (B,)
    key_ids: Tensor | None = None,  # (N,) or (B, N)
    valid: Tensor | None = None,  # (B,)
    symmetric: bool = False,
) -> Tensor:  # () or (B,)
    r"""Debiased InfoNCE (:cite:`chuang2020debiased`), hard negatives (:cite:`robinson2021hard`).

    .. math::
        \ell_i = -\log \frac{e^{s_{ii} / \tau}}{e^{s_{ii} / \tau} + n_i g_i},
        \qquad
        g_i = \max\!\left( \frac{1}{1 - \tau^+} \Bigl( \sum_{j \in \mathcal{N}_i} w_{ij}
        e^{s_{ij} / \tau} - \tau^+ e^{s_{ii} / \tau} \Bigr), e^{-1 / \tau} \right),
        \qquad
        w_{ij} = \frac{e^{\beta s_{ij} / \tau}}{\sum_{k \in \mathcal{N}_i} e^{\beta s_{ik} / \tau}}

    where :math:`s` is the cosine, :math:`\mathcal{N}_i` are the :math:`n_i` negatives of
    :func:`info_nce`, :math:`\tau^+` is the share of them that are positives in truth (their mean
    is taken away, down to the least that a negative can be), and :math:`\beta` gives weight to
    negatives that are similar. With ``tau_plus=0`` and ``beta=0`` this is :func:`info_nce`. All of
    it is computed as logarithms, in float32 at least, under autocast too.

    .. note::
        Of the positives of a row one is known, so that it alone estimates their mean (:math:`M =
        1`, as in the code of both papers). The papers take both views of all other rows for
        negatives; here they are the other keys, and ``symmetric`` adds the other direction.

    Args:
        query: What is looked for.
        positive_key: What should be found; row :math:`i` belongs to query :math:`i`.
        negative_keys: Explicit negatives; ``None`` takes the other keys of the batch.
        temperature: Temperature :math:`\tau > 0`.
        tau_plus: Probability :math:`\tau^+`, below one, that a negative is a positive.
        beta: Concentration :math:`\beta \geq 0`; one in much of the second paper.
        reduction: ``"mean"`` over the valid rows, their ``"sum"``, or ``"none"``: one loss a row.
        ids: What each row is about, as integers; keys of the row's own id are no negatives. -100
            is unknown, and nobody else's.
        key_ids: What each of ``negative_keys`` is about; needs ``ids``.
        valid: Boolean; a row that is not valid has loss zero and is nobody's negative. Where no
            row is valid the loss is zero and still part of the graph.
        symmetric: Whether to take the mean of both directions; not with ``negative_keys``.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - negative_keys: :math:`(N, D)` or :math:`(B, N, D)`
        - ids, valid: :math:`(B)`
        - key_ids: :math:`(N)` or :math:`(B, N)`
        - output: scalar, or :math:`(B)` without reduction

    Returns:
        The loss, in float32 at least; zero for a row without negatives.

    Raises:
        ValueError: If shapes disagree, ``temperature``, ``tau_plus`` or ``beta`` is out of range,
            ``reduction`` is unknown, ids are not integers, or only one of ``ids`` and ``key_ids``
            meets ``negative_keys``, or ``symmetric`` does.

    Example:
        >>> query = torch.eye(2)
        >>> debiased_info_nce(query, query, temperature=1.0, tau_plus=0.0)  # log(1 + exp(0 - 1))
        tensor(0.3133)
        >>> debiased_info_nce(query, query, temperature=1.0, tau_plus=0.1)  # less, so debiased
        tensor(0.2606)
    """
    check_shape("query", query, "B", "D", leading=False)
    check_shape("positive_key", positive_key, *query.shape, leading=False)
    _check_options(temperature, tau_plus, beta, reduction)
    if valid is not None:
        check_mask("valid", valid, query.shape[:1])
    if ids is not None:
        check_ids("ids", ids, query.shape[0])
    _check_explicit(query, negative_keys, ids, key_ids, symmetric)
    with without_autocast(query.device):
        more = query if negative_keys is None else negative_keys
        dtype = at_least_float32(query, positive_key, more)
        one, other = masked_unit(query, valid, dtype), masked_unit(positive_key, valid, dtype)
        rows = partial(_losses, temperature=temperature, tau_plus=tau_plus, beta=beta)
        if negative_keys is None:
            losses = rows(*_in_batch(one, other, ids, valid))
            if symmetric:
                losses = (losses + rows(*_in_batch(other, one, ids, valid))) / 2
        else:
            own = valid.unsqueeze(-1) if valid is not None and negative_keys.ndim == 3 else None
            keys = masked_unit(negative_keys, own, dtype)
            losses = rows(*_explicit(one, other, keys, ids, key_ids))
    return reduce_rows(losses, valid, reduction)


class DebiasedInfoNCELoss(nn.Module):
    r"""Debiased InfoNCE with weights on hard negatives, as a module; see :func:`debiased_info_nce`.

    .. math::
        \ell_i = -\log \frac{e^{s_{ii} / \tau}}{e^{s_{ii} / \tau} + n_i g_i(\tau^+, \beta)}

    Args:
        temperature: Temperature :math:`\tau > 0`.
        tau_plus: Probability, below one, that a negative is a positive.
        beta: Concentration :math:`\beta \geq 0` on hard negatives.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        symmetric: Whether to take the mean of both directions.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - negative_keys: :math:`(N, D)` or :math:`(B, N, D)`
        - ids, valid: :math:`(B)`
        - key_ids: :math:`(N)` or :math:`(B, N)`
        - output: scalar, or :math:`(B)` without reduction

    Raises:
        ValueError: As :func:`debiased_info_nce`.

    Example:
        >>> loss = DebiasedInfoNCELoss(temperature=1.0, beta=1.0)
        >>> loss(torch.eye(2), torch.eye(2))
        tensor(0.2606)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        tau_plus: float = 0.1,
        beta: float = 0.0,
        reduction: Reduction = "mean",
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        _check_options(temperature, tau_plus, beta, reduction)
        self.temperature = temperature
        self.tau_plus = tau_plus
        self.beta = beta
        self.reduction: Reduction = reduction
        self.symmetric = symmetric

    def forward(
        self,
        query: Tensor,  # (B, D)
        positive_key: Tensor,  # (B, D)
        negative_keys: Tensor | None = None,  # (N, D) or (B, N, D)
        *,
        ids: Tensor | None = None,  # (B,)
        key_ids: Tensor | None = None,  # (N,) or (B, N)
        valid: Tensor | None = None,  # (B,)
    ) -> Tensor:  # () or (B,)
        """Return the loss; shapes are given in the class docstring."""
        return debiased_info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=self.temperature,
            tau_plus=self.tau_plus,
            beta=self.beta,
            reduction=self.reduction,
            ids=ids,
            key_ids=key_ids,
            valid=valid,
            symmetric=self.symmetric,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, tau_plus={self.tau_plus}, beta={self.beta}, "
            f"reduction={self.reduction!r}, symmetric={self.symmetric}"
        )


def _check_options(temperature: float, tau_plus: float, beta: float, reduction: str) -> None:
    check_positive(temperature=temperature)
    if not 0 <= tau_plus < 1:
        raise ValueError(f"Expected 0 <= tau_plus < 1, got {tau_plus}.")
    if not 0 <= beta < math.inf:
        raise ValueError(f"Expected 0 <= beta < inf, got {beta}.")
    check_reduction(reduction)


def _check_explicit(
    query: Tensor,
    negative_keys: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    symmetric: bool,
) -> None:
    rows, dim = query.shape
    if (key_ids is not None) != (negative_keys is not None and ids is not None):
        inputs = {"ids": ids, "key_ids": key_ids, "negative_keys": negative_keys}
        given = [name for name, tensor in inputs.items() if tensor is not None]
        raise ValueError(f"Expected key_ids with ids and negative_keys only, got {given}.")
    if negative_keys is None:
        return
    if symmetric:
        raise ValueError("Expected symmetric=False with negative_keys, got symmetric=True.")
    shape = (rows, "N") if negative_keys.ndim == 3 else ("N",)
    check_shape("negative_keys", negative_keys, *shape, dim, leading=False)
    if key_ids is not None:
        own = (rows,) if key_ids.ndim == 2 or negative_keys.ndim == 3 else ()
        check_ids("key_ids", key_ids, *own, negative_keys.shape[-2])


def _in_batch(
    query: Tensor,  # (B, D)
    key: Tensor,  # (B, D)
    ids: Tensor | None,  # (B,)
    valid: Tensor | None,  # (B,)
) -> tuple[Tensor, Tensor, Tensor]:  # (B,), (B, B), (B, B)
    cosines = query @ key.mT
    negative = ~torch.eye(cosines.shape[0], dtype=torch.bool, device=cosines.device)
    if valid is not None:
        negative = negative & valid
    if ids is not None:
        negative = negative & ~same_ids(ids, ids)
    return cosines.diagonal(), cosines, negative


def _explicit(
    query: Tensor,  # (B, D)
    key: Tensor,  # (B, D)
    negative_keys: Tensor,  # (N, D) or (B, N, D)
    ids: Tensor | None,  # (B,)
    key_ids: Tensor | None,  # (N,) or (B, N)
) -> tuple[Tensor, Tensor, Tensor]:  # (B,), (B, N), (B, N)
    if negative_keys.ndim == 3:
        cosines = (negative_keys @ query.unsqueeze(-1)).squeeze(-1)
    else:
        cosines = query @ negative_keys.mT
    negative = torch.ones_like(cosines, dtype=torch.bool)
    if ids is not None and key_ids is not None:
        negative = ~same_ids(ids, key_ids)
    return (query * key).sum(-1), cosines, negative


def _losses(
    found: Tensor,  # (B,)
    cosines: Tensor,  # (B, N)
    negative: Tensor,  # (B, N)
    *,
    temperature: float,
    tau_plus: float,
    beta: float,
) -> Tensor:  # (B,)
    positive, logits, number = found / temperature, cosines / temperature, negative.sum(-1)
    mean = masked_log_sum((1 + beta) * logits, negative) - masked_log_sum(beta * logits, negative)
    if tau_plus:
        mean = _without_positives(mean, positive, temperature, tau_plus)
    missed = mean + number.clamp(min=1).to(logits.dtype).log()
    losses = -F.logsigmoid(positive - missed)
    return torch.where(number > 0, losses, torch.zeros_like(losses))


def _without_positives(
    mean: Tensor,  # (B,)
    positive: Tensor,  # (B,)
    temperature: float,
    tau_plus: float,
) -> Tensor:  # (B,)
    """The logarithm of what is left of the mean, at least that of the least similarity."""

    def left(gap: Tensor) -> Tensor:
        return mean + torch.log(-torch.expm1(gap)) - math.log1p(-tau_plus)

    gap = positive + math.log(tau_plus) - mean  # from zero on nothing is left
    least = torch.as_tensor(-1 / temperature, dtype=mean.dtype, device=mean.device)
    # chosen before the logarithm is taken: that of nothing has a gradient that is no number
    enough = left(gap.detach()) > least
    return torch.where(enough, left(torch.where(enough, gap, -torch.ones_like(gap))), least)
