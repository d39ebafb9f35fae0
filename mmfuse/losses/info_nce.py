"""InfoNCE, with everything that is not a negative kept out of the denominator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmfuse._checks import check_choice, check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32, unit, without_autocast

__all__ = ["InfoNCELoss", "info_nce"]

Reduction = Literal["mean", "sum", "none"]


def info_nce(
    query: Tensor,  # (B, D)
    positive_key: Tensor,  # (B, D)
    negative_keys: Tensor | None = None,  # (N, D) or (B, N, D)
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    ids: Tensor | None = None,  # (B,)
    valid: Tensor | None = None,  # (B,)
    symmetric: bool = False,
) -> Tensor:  # () or (B,)
    r"""InfoNCE with cosine similarity (:cite:`oord2018cpc`).

    .. math::
        \ell_i = -\log \frac{\exp(s_{ii} / \tau)}
        {\exp(s_{ii} / \tau) + \sum_{j \in \mathcal{N}_i} \exp(s_{ij} / \tau)},
        \qquad s_{ij} = \cos(\mathbf{q}_i, \mathbf{k}_j)

    The negatives :math:`\mathcal{N}_i` are the other keys of the batch, or ``negative_keys``,
    shared by all rows or one set a row. In the batch, a key whose ``ids`` entry equals the row's
    own is no negative: it leaves the denominator (it is not set to zero *before* ``exp``, where it
    would still count as one). A zero vector is at cosine zero from everything. Computed in float32
    at least, under autocast too.

    Args:
        query: What is looked for.
        positive_key: What should be found; row :math:`i` belongs to query :math:`i`.
        negative_keys: Explicit negatives; ``None`` takes the other keys of the batch.
        temperature: Temperature :math:`\tau > 0`.
        reduction: ``"mean"`` over the valid rows, their ``"sum"``, or ``"none"``: one loss a row.
        ids: What each row is about, as integers; rows of one id are not each other's negatives.
        valid: Boolean; a row that is not valid has loss zero and is nobody's negative. Where no
            row is valid the loss is zero and still part of the graph.
        symmetric: Whether to take the mean of both directions, as :cite:`radford2021clip` does.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - negative_keys: :math:`(N, D)` or :math:`(B, N, D)`
        - ids, valid: :math:`(B)`
        - output: scalar, or :math:`(B)` without reduction

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, ``temperature`` is not positive, ``reduction`` is unknown,
            ``ids`` are not integers, or ``ids`` or ``symmetric`` meet explicit negatives, for
            which they have no meaning.

    Example:
        >>> query = torch.eye(2)
        >>> info_nce(query, query, temperature=1.0)  # log(1 + exp(0 - 1))
        tensor(0.3133)
    """
    check_shape("query", query, "B", "D", leading=False)
    check_shape("positive_key", positive_key, *query.shape, leading=False)
    check_positive(temperature=temperature)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if valid is not None:
        check_mask("valid", valid, query.shape[:1])
    if ids is not None:
        _check_ids(ids, query.shape[0])
    if negative_keys is not None and (ids is not None or symmetric):
        raise ValueError(
            "Expected ids=None and symmetric=False with negative_keys, "
            f"got ids {'None' if ids is None else 'given'} and symmetric={symmetric}."
        )
    with without_autocast(query.device):
        if negative_keys is not None:
            losses = _explicit(query, positive_key, negative_keys, valid, temperature)
        else:
            losses = _in_batch(query, positive_key, ids, valid, temperature)
            if symmetric:
                back = _in_batch(positive_key, query, ids, valid, temperature)
                losses = (losses + back) / 2
    return _reduce(losses, valid, reduction)


class InfoNCELoss(nn.Module):
    r"""InfoNCE with cosine similarity, as a module; see :func:`info_nce`.

    .. math::
        \ell_i = -\log \frac{\exp(s_{ii} / \tau)}
        {\exp(s_{ii} / \tau) + \sum_{j \in \mathcal{N}_i} \exp(s_{ij} / \tau)}

    Args:
        temperature: Temperature :math:`\tau > 0`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        symmetric: Whether to take the mean of both directions.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - negative_keys: :math:`(N, D)` or :math:`(B, N, D)`
        - ids, valid: :math:`(B)`
        - output: scalar, or :math:`(B)` without reduction

    Raises:
        ValueError: As :func:`info_nce`.

    Example:
        >>> loss = InfoNCELoss(temperature=1.0)
        >>> loss(torch.eye(2), torch.eye(2))
        tensor(0.3133)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        reduction: Reduction = "mean",
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.symmetric = symmetric

    def forward(
        self,
        query: Tensor,  # (B, D)
        positive_key: Tensor,  # (B, D)
        negative_keys: Tensor | None = None,  # (N, D) or (B, N, D)
        *,
        ids: Tensor | None = None,  # (B,)
        valid: Tensor | None = None,  # (B,)
    ) -> Tensor:  # () or (B,)
        """Return the loss; shapes are given in the class docstring."""
        return info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=self.temperature,
            reduction=self.reduction,
            ids=ids,
            valid=valid,
            symmetric=self.symmetric,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, reduction={self.reduction!r}, "
            f"symmetric={self.symmetric}"
        )


def _check_ids(ids: Tensor, rows: int) -> None:
    check_shape("ids", ids, rows, leading=False)
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"Expected ids of an integer dtype, got {ids.dtype}.")


def _unit(
    vectors: Tensor,  # (..., D)
    valid: Tensor | None,  # (...)
    dtype: torch.dtype,
) -> Tensor:  # (..., D)
    """Unit vectors, of zeros where not valid."""
    wide = vectors.to(dtype)
    if valid is not None:
        wide = torch.where(valid.unsqueeze(-1), wide, torch.zeros_like(wide))
    return unit(wide)


def _in_batch(
    query: Tensor,  # (B, D)
    key: Tensor,  # (B, D)
    ids: Tensor | None,  # (B,)
    valid: Tensor | None,  # (B,)
    temperature: float,
) -> Tensor:  # (B,)
    dtype = at_least_float32(query, key)
    logits = _unit(query, valid, dtype) @ _unit(key, valid, dtype).mT / temperature
    rows = query.shape[0]
    no_negative = torch.zeros(rows, rows, dtype=torch.bool, device=query.device)
    if valid is not None:
        no_negative = no_negative | ~valid
    if ids is not None:
        no_negative = no_negative | (ids.unsqueeze(1) == ids)
    itself = torch.eye(rows, dtype=torch.bool, device=query.device)
    logits = logits.masked_fill(no_negative & ~itself, -torch.inf)
    return torch.logsumexp(logits, dim=-1) - logits.diagonal()


def _explicit(
    query: Tensor,  # (B, D)
    key: Tensor,  # (B, D)
    negative_keys: Tensor,  # (N, D) or (B, N, D)
    valid: Tensor | None,  # (B,)
    temperature: float,
) -> Tensor:  # (B,)
    rows, dim = query.shape
    dtype = at_least_float32(query, key, negative_keys)
    query, key = _unit(query, valid, dtype), _unit(key, valid, dtype)
    positive = (query * key).sum(-1, keepdim=True)
    if negative_keys.ndim == 3:
        check_shape("negative_keys", negative_keys, rows, "N", dim, leading=False)
        own = None if valid is None else valid.unsqueeze(-1).expand(negative_keys.shape[:-1])
        negative = (_unit(negative_keys, own, dtype) @ query.unsqueeze(-1)).squeeze(-1)
    else:
        check_shape("negative_keys", negative_keys, "N", dim, leading=False)
        negative = query @ _unit(negative_keys, None, dtype).mT
    logits = torch.cat([positive, negative], dim=-1) / temperature
    return torch.logsumexp(logits, dim=-1) - logits[:, 0]


def _reduce(losses: Tensor, valid: Tensor | None, reduction: Reduction) -> Tensor:
    if valid is not None:
        losses = torch.where(valid, losses, torch.zeros_like(losses))
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    count = losses.shape[0] if valid is None else valid.sum()
    return losses.sum() / torch.as_tensor(count, device=losses.device).clamp(min=1)
