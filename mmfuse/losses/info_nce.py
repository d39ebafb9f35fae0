"""InfoNCE, with everything that is not a negative kept out of the denominator."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_shape
from mmfuse._contrast import Reduction, check_ids, check_info_nce, reduce_rows
from mmfuse._contrast_chunks import Pairs
from mmfuse._contrast_pairs import check_negatives, from_summary, in_batch, prepare, to_explicit
from mmfuse._precision import at_least_float32, without_autocast
from mmfuse._processes import Processes, processes

__all__ = ["InfoNCELoss", "info_nce"]

Similarity = Literal["cosine", "dot"]
SameId = Literal["ignore", "positive"]


def info_nce(
    query: Tensor,  # (B, D)
    positive_key: Tensor,  # (B, D)
    negative_keys: Tensor | None = None,  # (N, D) or (B, N, D)
    *,
    temperature: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    ids: Tensor | None = None,  # (B,)
    key_ids: Tensor | None = None,  # (B,), or (N,) or (B, N)
    valid: Tensor | None = None,  # (B,)
    negative_valid: Tensor | None = None,  # (N,) or (B, N)
    symmetric: bool = False,
    similarity: Similarity = "cosine",
    same_id: SameId = "ignore",
    chunk_size: int | Literal["auto"] | None = None,
    gather: Any = False,
) -> Tensor:  # () or (B,)
    r"""InfoNCE (:cite:`oord2018cpc`), with one positive or several (:cite:`khosla2020supcon`).

    .. math::
        \ell_i = \log \sum_{j \in \mathcal{P}_i \cup \mathcal{N}_i} \exp(s_{ij} / \tau)
        - \frac{1}{|\mathcal{P}_i|} \sum_{p \in \mathcal{P}_i} s_{ip} / \tau,
        \qquad s_{ij} = \cos(\mathbf{q}_i, \mathbf{k}_j)

    The negatives :math:`\mathcal{N}_i` are the other keys of the batch, or ``negative_keys``,
    shared by all rows or one set a row. A key whose id equals the row's own is no negative: it
    leaves the denominator (it is not set to zero *before* ``exp``, where it would still count as
    one). The positives :math:`\mathcal{P}_i` are the key of row :math:`i` alone, or, with
    ``same_id="positive"``, also those keys of its id: the loss is then the mean over the positives
    of minus the log of their share among all, :math:`\mathcal{L}_\mathrm{out}` of the paper. A zero
    vector is at cosine zero from everything. Computed in float32 at least, under autocast too.

    In chunks the numbers are the same, and of the matrix of similarities only some rows exist at a
    time, which the backward pass makes again (:cite:`cheng2025infcl`); differentiable once.

    With ``gather`` the keys of all processes are negatives (shared ``negative_keys`` are gathered
    too), batches may differ in size, and every process gets the loss of the whole batch. Its
    gradient is such that the *mean* over the processes, as
    :class:`torch.nn.parallel.DistributedDataParallel` takes it, is the gradient of one process with
    the whole batch; without reduction, that of the sum over the rows is left as it is.

    Args:
        query: What is looked for.
        positive_key: What should be found; row :math:`i` belongs to query :math:`i`.
        negative_keys: Explicit negatives, instead of the other keys of the batch; for both, append
            the keys of the batch to them, with ids. Without any the loss is zero.
        temperature: Temperature :math:`\tau > 0`; a tensor of one element may be learned.
        reduction: ``"mean"`` over the valid rows, their ``"sum"``, or ``"none"``: one loss a row.
        ids: What each query is about, as integers; rows of one id are not each other's negatives.
            -100 is unknown, and nobody else's.
        key_ids: The same of the explicit negatives, or else of the keys; ``None`` means ``ids``.
        valid: Boolean, true where both sides are there; a row that is not valid has loss zero and
            is nobody's negative. Where no row is valid the loss is zero and still part of the
            graph. What an encoder of yours reads has to be masked before it.
        negative_valid: Boolean, false where an explicit negative is none.
        symmetric: Whether to take the mean of both directions, as :cite:`radford2021clip` does.
        similarity: ``"cosine"``, or ``"dot"`` for the product as it is.
        same_id: Whether keys of the row's id are left out, ``"ignore"``, or ``"positive"``.
        chunk_size: Rows in a chunk, ``"auto"``, or ``None`` for all at once. Negatives of one set
            a row are larger than their similarities, and never in chunks.
        gather: Whether the batch is spread over processes; or their process group. Every process
            must then call it, with the same arguments.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - negative_keys: :math:`(N, D)` or :math:`(B, N, D)`
        - ids, valid: :math:`(B)`
        - key_ids, negative_valid: that of ``negative_keys`` without :math:`D`
        - output: scalar, or :math:`(B)` without reduction

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, ``temperature`` is not positive, a choice is unknown, ids
            are not integers, ``ids`` meet explicit negatives without ``key_ids`` or the other way
            round, or ``symmetric`` meets them, for which it has no meaning.

    Example:
        >>> query = torch.eye(2)
        >>> info_nce(query, query, temperature=1.0)  # log(1 + exp(0 - 1))
        tensor(0.3133)
    """
    check_info_nce(temperature, reduction, similarity, same_id, chunk_size)
    _check_batch(query, positive_key, ids, valid)
    check_negatives(query, negative_keys, ids, key_ids, negative_valid, symmetric)
    given = [] if negative_keys is None else [negative_keys]
    dtype = at_least_float32(query, positive_key, *given)
    with without_autocast(query.device):
        those = processes(gather, query)
        scaled = prepare(query, valid, dtype, similarity) / _scale(temperature, dtype)
        key = prepare(positive_key, valid, dtype, similarity)
        own = (scaled * key).sum(-1)
        if negative_keys is None:
            pairs = Pairs(
                row_ids=ids,
                column_ids=ids if key_ids is None else key_ids,
                row_valid=valid,
                column_valid=valid,
                own=0,
                positives=same_id == "positive",
            )
            found = in_batch(
                scaled, key, pairs, those=those, symmetric=symmetric, chunk_size=chunk_size
            )
        else:
            if negative_keys.ndim == 3 and valid is not None:  # of such a row nothing is read
                each = valid.unsqueeze(-1).expand(negative_keys.shape[:-1])
                negative_valid = each if negative_valid is None else each & negative_valid
            negatives = prepare(negative_keys, negative_valid, dtype, similarity)
            pairs = Pairs(ids, key_ids, None, negative_valid, -1, same_id == "positive")
            found = [to_explicit(scaled, negatives, pairs, gather=gather, chunk_size=chunk_size)]
        losses = torch.stack([from_summary(own, summary) for summary in found]).mean(0)
        return _reduce(losses, valid, reduction, those)


class InfoNCELoss(nn.Module):
    r"""InfoNCE, as a module; see :func:`info_nce`.

    .. math::
        \ell_i = \log \sum_{j \in \mathcal{P}_i \cup \mathcal{N}_i} \exp(s_{ij} / \tau)
        - \frac{1}{|\mathcal{P}_i|} \sum_{p \in \mathcal{P}_i} s_{ip} / \tau

    Args:
        temperature: Temperature :math:`\tau > 0`, or a module that returns it, such as
            :class:`~mmfuse.losses.LearnedTemperature`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        symmetric: Whether to take the mean of both directions.
        similarity: ``"cosine"`` or ``"dot"``.
        same_id: Whether keys of the row's id are left out, ``"ignore"``, or ``"positive"``.
        chunk_size: Rows in a chunk, ``"auto"``, or ``None`` for all at once.
        gather: Whether the batch is spread over processes; or their process group.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - negative_keys: :math:`(N, D)` or :math:`(B, N, D)`
        - ids, valid: :math:`(B)`
        - key_ids, negative_valid: that of ``negative_keys`` without :math:`D`
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
        temperature: float | nn.Module = 0.1,
        *,
        reduction: Reduction = "mean",
        symmetric: bool = False,
        similarity: Similarity = "cosine",
        same_id: SameId = "ignore",
        chunk_size: int | Literal["auto"] | None = None,
        gather: Any = False,
    ) -> None:
        super().__init__()
        constant = 1.0 if isinstance(temperature, nn.Module) else temperature
        check_info_nce(constant, reduction, similarity, same_id, chunk_size)
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.symmetric = symmetric
        self.similarity: Similarity = similarity
        self.same_id: SameId = same_id
        self.chunk_size: int | Literal["auto"] | None = chunk_size
        self.gather = gather

    def forward(
        self,
        query: Tensor,  # (B, D)
        positive_key: Tensor,  # (B, D)
        negative_keys: Tensor | None = None,  # (N, D) or (B, N, D)
        *,
        ids: Tensor | None = None,  # (B,)
        key_ids: Tensor | None = None,  # (B,), or (N,) or (B, N)
        valid: Tensor | None = None,  # (B,)
        negative_valid: Tensor | None = None,  # (N,) or (B, N)
    ) -> Tensor:  # () or (B,)
        """Return the loss; shapes are given in the class docstring."""
        learned = self.temperature
        return info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=learned() if isinstance(learned, nn.Module) else learned,
            reduction=self.reduction,
            ids=ids,
            key_ids=key_ids,
            valid=valid,
            negative_valid=negative_valid,
            symmetric=self.symmetric,
            similarity=self.similarity,
            same_id=self.same_id,
            chunk_size=self.chunk_size,
            gather=self.gather,
        )

    def extra_repr(self) -> str:
        shown = [f"reduction={self.reduction!r}", f"symmetric={self.symmetric}"]
        if not isinstance(self.temperature, nn.Module):
            shown.insert(0, f"temperature={self.temperature}")
        usual = {"similarity": "cosine", "same_id": "ignore", "chunk_size": None, "gather": False}
        values = {name: getattr(self, name) for name in usual}
        shown += [f"{name}={value!r}" for name, value in values.items() if value != usual[name]]
        return ", ".join(shown)


def _check_batch(query: Tensor, key: Tensor, ids: Tensor | None, valid: Tensor | None) -> None:
    check_shape("query", query, "B", "D", leading=False)
    check_shape("positive_key", key, *query.shape, leading=False)
    if valid is not None:
        check_mask("valid", valid, query.shape[:1])
    if ids is not None:
        check_ids("ids", ids, query.shape[0])


def _scale(temperature: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return temperature.reshape(()).to(dtype) if isinstance(temperature, Tensor) else temperature


def _reduce(
    losses: Tensor,  # (B,)
    valid: Tensor | None,  # (B,)
    reduction: Reduction,
    those: Processes | None,
) -> Tensor:
    """Over the rows of all processes, if there are several."""
    if those is None or reduction == "none":
        return reduce_rows(losses, valid, reduction)
    total = those.total(reduce_rows(losses, valid, "sum"))
    if reduction == "sum":
        return total
    count = torch.tensor(losses.shape[0], device=losses.device) if valid is None else valid.sum()
    return total / those.total(count).clamp(min=1)
