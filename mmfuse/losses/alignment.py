"""Alignment and uniformity: positives close, and everything else all over the sphere."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse._contrast import Reduction, check_reduction, masked_log_sum, masked_unit, reduce_rows
from mmfuse._precision import at_least_float32, without_autocast

__all__ = ["AlignmentLoss", "UniformityLoss", "alignment_loss", "uniformity_loss"]


def alignment_loss(
    query: Tensor,  # (B, D)
    positive_key: Tensor,  # (B, D)
    *,
    alpha: float = 2.0,
    reduction: Reduction = "mean",
    valid: Tensor | None = None,  # (B,)
) -> Tensor:  # () or (B,)
    r"""Alignment: how far positives are apart on the sphere (:cite:`wang2020alignment`).

    .. math::
        \ell_i = \left\lVert \frac{\mathbf{q}_i}{\lVert \mathbf{q}_i \rVert}
        - \frac{\mathbf{k}_i}{\lVert \mathbf{k}_i \rVert} \right\rVert^\alpha

    Computed in float32 at least. A zero vector stays zero; where two vectors meet, the gradient is
    zero.

    Args:
        query: One side of the pairs.
        positive_key: The other; row :math:`i` belongs to query :math:`i`.
        alpha: Exponent :math:`\alpha > 0`.
        reduction: ``"mean"`` over the valid rows, their ``"sum"``, or ``"none"``: one loss a row.
        valid: Boolean; a row that is not valid has loss zero. Where none is valid the loss is zero
            and still part of the graph.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - valid: :math:`(B)`
        - output: scalar, or :math:`(B)` without reduction

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, ``alpha`` is not positive, or ``reduction`` is unknown.

    Example:
        >>> alignment_loss(torch.eye(2), torch.eye(2).flip(0))
        tensor(2.)
    """
    check_shape("query", query, "B", "D", leading=False)
    check_shape("positive_key", positive_key, *query.shape, leading=False)
    check_positive(alpha=alpha)
    check_reduction(reduction)
    if valid is not None:
        check_mask("valid", valid, query.shape[:1])
    dtype = at_least_float32(query, positive_key)
    apart = masked_unit(query, valid, dtype) - masked_unit(positive_key, valid, dtype)
    squared = apart.square().sum(-1)
    met = squared == 0
    far = torch.where(met, torch.ones_like(squared), squared)  # a root has no gradient at zero
    losses = torch.where(met, torch.zeros_like(squared), far ** (alpha / 2))
    return reduce_rows(losses, valid, reduction)


def uniformity_loss(
    x: Tensor,  # (N, D)
    *,
    t: float = 2.0,
    valid: Tensor | None = None,  # (N,)
    chunk_size: int = 1024,
) -> Tensor:  # ()
    r"""Uniformity: how much vectors crowd on the sphere (:cite:`wang2020alignment`).

    .. math::
        \mathcal{L} = \log \frac{1}{N (N - 1)} \sum_{i \neq j}
        \exp\bigl( -t \lVert \mathbf{u}_i - \mathbf{u}_j \rVert^2 \bigr),
        \qquad \mathbf{u}_i = \frac{\mathbf{x}_i}{\lVert \mathbf{x}_i \rVert}

    Zero where all vectors are the same, negative elsewhere. A zero vector stays zero, at distance
    one from all others. Computed in float32 at least, under autocast too.

    The pairs are taken ``chunk_size`` rows at a time. Of more than one chunk nothing but the row
    sums is kept for the backward pass, which computes each chunk again: the numbers and gradients
    are those of all pairs at once, and memory grows with :math:`N`, not with its square. The
    transforms of :mod:`torch.func` cannot compute again; give them one chunk.

    Args:
        x: The vectors.
        t: How fast the pull fades with distance, :math:`t > 0`.
        valid: Boolean; a vector that is not valid is in no pair. With fewer than two valid vectors
            the loss is zero and still part of the graph.
        chunk_size: Rows at a time.

    Shape:
        - x: :math:`(N, D)`
        - valid: :math:`(N)`
        - output: scalar

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, or ``t`` or ``chunk_size`` is not positive.

    Example:
        >>> uniformity_loss(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), t=1.0)  # -1 times 2 squared
        tensor(-4.)
    """
    check_shape("x", x, "N", "D", leading=False)
    check_positive(t=t, chunk_size=chunk_size)
    if valid is not None:
        check_mask("valid", valid, x.shape[:1])
    with without_autocast(x.device):
        vectors = masked_unit(x, valid, at_least_float32(x))
        there = torch.ones_like(x[:, 0], dtype=torch.bool) if valid is None else valid
        total = _log_sum_of_pairs(vectors, there, t, chunk_size)
    number = there.sum()
    pairs = (number * (number - 1)).clamp(min=1).to(total.dtype)
    return torch.where(number > 1, total - pairs.log(), torch.zeros_like(total))


class AlignmentLoss(nn.Module):
    r"""Alignment, as a module; see :func:`alignment_loss`.

    .. math::
        \ell_i = \lVert \mathbf{u}_i - \mathbf{v}_i \rVert^\alpha

    Args:
        alpha: Exponent :math:`\alpha > 0`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - valid: :math:`(B)`
        - output: scalar, or :math:`(B)` without reduction

    Raises:
        ValueError: As :func:`alignment_loss`.

    Example:
        >>> AlignmentLoss(alpha=1.0)(torch.eye(2), -torch.eye(2))
        tensor(2.)
    """

    def __init__(self, alpha: float = 2.0, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_positive(alpha=alpha)
        check_reduction(reduction)
        self.alpha = alpha
        self.reduction: Reduction = reduction

    def forward(
        self,
        query: Tensor,  # (B, D)
        positive_key: Tensor,  # (B, D)
        *,
        valid: Tensor | None = None,  # (B,)
    ) -> Tensor:  # () or (B,)
        """Return the loss; shapes are given in the class docstring."""
        return alignment_loss(
            query, positive_key, alpha=self.alpha, reduction=self.reduction, valid=valid
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, reduction={self.reduction!r}"


class UniformityLoss(nn.Module):
    r"""Uniformity, as a module; see :func:`uniformity_loss`.

    .. math::
        \mathcal{L} = \log \operatorname{mean}_{i \neq j}
        \exp\bigl( -t \lVert \mathbf{u}_i - \mathbf{u}_j \rVert^2 \bigr)

    Args:
        t: How fast the pull fades with distance, :math:`t > 0`.
        chunk_size: Rows at a time.

    Shape:
        - x: :math:`(N, D)`
        - valid: :math:`(N)`
        - output: scalar

    Raises:
        ValueError: As :func:`uniformity_loss`.

    Example:
        >>> UniformityLoss()(torch.eye(4))  # all pairs at distance 2 squared
        tensor(-4.)
    """

    def __init__(self, t: float = 2.0, *, chunk_size: int = 1024) -> None:
        super().__init__()
        check_positive(t=t, chunk_size=chunk_size)
        self.t = t
        self.chunk_size = chunk_size

    def forward(
        self,
        x: Tensor,  # (N, D)
        *,
        valid: Tensor | None = None,  # (N,)
    ) -> Tensor:  # ()
        """Return the loss; shapes are given in the class docstring."""
        return uniformity_loss(x, t=self.t, valid=valid, chunk_size=self.chunk_size)

    def extra_repr(self) -> str:
        return f"t={self.t}, chunk_size={self.chunk_size}"


def _log_sum_of_pairs(
    vectors: Tensor,  # (N, D)
    there: Tensor,  # (N,)
    t: float,
    chunk_size: int,
) -> Tensor:  # ()
    total = vectors.shape[0]
    if total <= chunk_size:
        sums = _log_sums(vectors, there, t, 0, total)
    else:
        sums = torch.cat(
            [
                checkpoint(
                    _log_sums,
                    vectors,
                    there,
                    t,
                    start,
                    min(start + chunk_size, total),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for start in range(0, total, chunk_size)
            ]
        )
    return masked_log_sum(sums, there)


def _log_sums(
    vectors: Tensor,  # (N, D)
    there: Tensor,  # (N,)
    t: float,
    start: int,
    stop: int,
) -> Tensor:  # (stop - start,)
    """For some rows, the log of the sum over their pairs with rows that are there."""
    rows, squares = vectors[start:stop], vectors.square().sum(-1)
    squared = squares[start:stop].unsqueeze(1) + squares - 2 * rows @ vectors.mT
    place = torch.arange(vectors.shape[0], device=vectors.device)
    pairs = (place[start:stop].unsqueeze(1) != place) & there
    return masked_log_sum(-t * squared, pairs)
