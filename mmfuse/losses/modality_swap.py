"""Modality-swap contrastive learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_probability, check_shape, check_tensors
from mmfuse._contrast import both_observed, check_pairs, chosen_pairs
from mmfuse._precision import at_least_float32
from mmfuse.losses.info_nce import InfoNCELoss, SameId, Similarity

__all__ = ["ModalitySwapInfoNCE", "swap_modalities"]

_ONE = 2**30  # shares are whole multiples of one over it: a float32 would round large numbers


def swap_modalities(
    a: Tensor,  # (..., L, D)
    b: Tensor,  # (..., L, D)
    p: float = 0.5,
    *,
    exact: bool = False,
    valid: Tensor | None = None,  # (..., L)
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Exchange two streams at random positions (:cite:`xu2026cammsr`, Eq. 16).

    .. math::
        (\mathbf{a}'_l, \mathbf{b}'_l) = \begin{cases}
        (\mathbf{b}_l, \mathbf{a}_l) & u_l < p \\
        (\mathbf{a}_l, \mathbf{b}_l) & \text{otherwise} \end{cases},
        \qquad u_l \sim \mathcal{U}(0, 1)

    With ``exact`` the number of swaps in a row is not left to chance: of :math:`n` valid positions
    :math:`p n` are swapped, those of the smallest :math:`u_l`, and where that is no whole number,
    one more or not, such that :math:`p n` is the mean.

    Args:
        a: One stream.
        b: Another.
        p: Probability of a swap; zero never swaps, one always does.
        exact: Whether each row swaps this share of its positions, not each position by itself.
        valid: Boolean, true where a swap may happen; ``None`` means everywhere.
        generator: Where the draws come from; the default generator if ``None``.

    Shape:
        - a, b, outputs: :math:`(\ldots, L, D)`; of :math:`(B, D)` the rows are the positions
        - valid: :math:`(\ldots, L)`

    Returns:
        Both streams after the exchange.

    Raises:
        ValueError: If ``p`` is not a probability, or shapes disagree.

    Example:
        >>> a, b = torch.zeros(4, 1), torch.ones(4, 1)
        >>> swap_modalities(a, b, 1.0, valid=torch.tensor([True, True, False, True]))[0].flatten()
        tensor([1., 1., 0., 1.])
        >>> swap_modalities(a, b, 0.5, exact=True)[0].sum()
        tensor(2.)
    """
    check_probability(p=p)
    check_shape("a", a, "L", "D")
    check_shape("b", b, *a.shape, leading=False)
    draws = torch.rand(a.shape[:-1], generator=generator, device=a.device, dtype=torch.float32)
    if valid is not None:
        check_mask("valid", valid, a.shape[:-1])
    if exact:
        odd = torch.rand(a.shape[:-2], generator=generator, device=a.device, dtype=torch.float32)
        swap = _smallest(draws, p, odd, valid)
    else:
        swap = draws < p if valid is None else (draws < p) & valid
    swap = swap.unsqueeze(-1)
    return torch.where(swap, b, a), torch.where(swap, a, b)


def _smallest(
    draws: Tensor,  # (..., L)
    p: float,
    odd: Tensor,  # (...)
    valid: Tensor | None,  # (..., L)
) -> Tensor:  # (..., L)
    """Where the share ``p`` of the valid draws is, the smallest of them."""
    if valid is None:
        valid = torch.ones_like(draws, dtype=torch.bool)
    share = valid.sum(-1) * round(p * _ONE)
    number = share // _ONE + (odd < (share % _ONE).to(odd.dtype) / _ONE)
    order = draws.masked_fill(~valid, 2.0).argsort(-1)
    return (order.argsort(-1) < number.unsqueeze(-1)) & valid


class ModalitySwapInfoNCE(nn.Module):
    r"""Modality-swap contrastive learning, MSCL (:cite:`xu2026cammsr`, Eq. 16-18).

    .. math::
        \mathcal{L} = \sum_{(m, n)} \mathrm{InfoNCE}\!\left(
        \mathrm{encode}_m(\bar{\mathbf{e}}'_m), \mathrm{encode}_n(\bar{\mathbf{e}}'_n) \right),
        \qquad (\bar{\mathbf{e}}'_m, \bar{\mathbf{e}}'_n)
        = \mathrm{swap}(\bar{\mathbf{e}}_m, \bar{\mathbf{e}}_n; p)

    For every pair of modalities the streams are swapped (:func:`swap_modalities`), each is encoded
    by the encoder of the stream's own name, and the two results of one sequence are each other's
    positive (:class:`~mmfuse.losses.InfoNCELoss` over the batch). A position takes part in a swap
    only where both modalities are present, and a sequence takes part in a pair only where it has
    such a position. Without sequences each row is swapped or not.

    .. note::
        The paper prints no temperature, one direction and a sum over the batch; here these are
        arguments, and the mean over the batch is taken, so that its size does not scale the loss.

    Args:
        p: Probability of a swap at a position.
        exact: Whether to swap just this share of the positions of a sequence (without sequences, of
            the batch); see :func:`swap_modalities`.
        pairs: Pairs of modality indices; ``None`` means all.
        temperature: Temperature of the InfoNCE, or a module that returns it.
        symmetric: Whether to take both directions of the InfoNCE.
        similarity: As in :class:`~mmfuse.losses.InfoNCELoss`, like all that follow.
        same_id: What sequences of one id are to each other.
        chunk_size: Sequences whose similarities exist at a time.
        gather: Whether the sequences of all processes are negatives.

    Shape:
        - streams: :math:`(B, L, M, D)`, or :math:`(B, M, D)` without sequences
        - encode: a function from :math:`(N, L, D)`, or :math:`(N, D)`, and a modality index to
          :math:`(N, D')`. It is called once for each modality, with its views of all pairs, one
          batch after another: :math:`N` is :math:`B` times the number of pairs that the modality
          is in, and ``valid.repeat(len(views) // len(valid), 1)`` says where they are padding
        - valid: :math:`(B, L)`, or :math:`(B)`, boolean, false at padding
        - present: that of ``streams`` without :math:`D`, boolean, true where observed
        - ids: :math:`(B)`; sequences of one id, say one target, are not each other's negatives
        - output: scalar

    Raises:
        ValueError: If ``p`` or an option of the InfoNCE is out of range, a pair is not one of two
            different modalities, or shapes disagree.

    Example:
        >>> loss = ModalitySwapInfoNCE(pairs=[(0, 1)])
        >>> streams = torch.randn(4, 5, 2, 8)
        >>> loss(streams, lambda stream, modality: stream.mean(1)).shape
        torch.Size([])
        >>> loss(streams[:, 0], lambda views, modality: views).shape  # without sequences
        torch.Size([])

        An encoder of padded sequences has the mask of all its views:

        >>> valid = torch.arange(5) < torch.tensor([[5], [2], [3], [1]])
        >>> def encode(views, modality):
        ...     real = valid.repeat(len(views) // len(valid), 1).unsqueeze(-1)
        ...     return torch.where(real, views, 0).sum(1) / real.sum(1)
        >>> loss(streams, encode, valid).shape
        torch.Size([])
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        exact: bool = False,
        pairs: Sequence[tuple[int, int]] | None = None,
        temperature: float | nn.Module = 1.0,
        symmetric: bool = False,
        similarity: Similarity = "cosine",
        same_id: SameId = "ignore",
        chunk_size: int | Literal["auto"] | None = None,
        gather: Any = False,
    ) -> None:
        super().__init__()
        check_probability(p=p)
        check_pairs(pairs)
        self.p = p
        self.exact = exact
        self.pairs = None if pairs is None else tuple((m, n) for m, n in pairs)
        self.contrast = InfoNCELoss(
            temperature,
            symmetric=symmetric,
            similarity=similarity,
            same_id=same_id,
            chunk_size=chunk_size,
            gather=gather,
        )

    def forward(
        self,
        streams: Tensor,  # (B, L, M, D) or (B, M, D)
        encode: Callable[[Tensor, int], Tensor],
        valid: Tensor | None = None,  # (B, L) or (B,)
        *,
        present: Tensor | None = None,  # (B, L, M) or (B, M)
        ids: Tensor | None = None,  # (B,)
        generator: torch.Generator | None = None,
    ) -> Tensor:  # ()
        """Return the sum over the pairs; shapes are given in the class docstring."""
        check_tensors(streams=streams)
        length = ("L",) if streams.ndim != 3 else ()
        check_shape("streams", streams, "B", *length, "M", "D", leading=False)
        if valid is not None:
            check_mask("valid", valid, streams.shape[:-2])
        if present is not None:
            check_mask("present", present, streams.shape[:-1])
            streams = torch.where(present.unsqueeze(-1), streams, torch.zeros_like(streams))
        # an empty sum: zero, yet part of the graph where there is no pair
        total = streams[:0].sum(dtype=at_least_float32(streams))
        pairs = chosen_pairs(self.pairs, streams.shape[-2])
        meetings = [both_observed(present, valid, m, n) for m, n in pairs]
        views: list[tuple[int, Tensor]] = []
        for (m, n), both in zip(pairs, meetings, strict=True):
            one, other = streams[..., m, :], streams[..., n, :]
            a, b = swap_modalities(
                one, other, self.p, exact=self.exact, valid=both, generator=generator
            )
            views += [(m, a), (n, b)]
        encoded = _encode(encode, views)
        for query, key, both in zip(encoded[::2], encoded[1::2], meetings, strict=True):
            some = both.any(-1) if both is not None and length else both
            total = total + self.contrast(query, key, ids=ids, valid=some)
        return total

    def extra_repr(self) -> str:
        return f"p={self.p}, exact={self.exact}, pairs={self.pairs}"


def _encode(
    encode: Callable[[Tensor, int], Tensor],
    views: Sequence[tuple[int, Tensor]],  # (B, L, D) or (B, D) each
) -> list[Tensor]:  # (B, D) each
    """Every view by the encoder of its modality, which is called once for all of them."""
    results = [view for _, view in views]
    for modality in sorted({m for m, _ in views}):
        places = [place for place, (m, _) in enumerate(views) if m == modality]
        encoded = encode(torch.cat([views[place][1] for place in places]), modality)
        number, rows = len(places), views[0][1].shape[0]
        name = f"what encode returns for modality {modality}"
        check_tensors(**{name: encoded})
        check_shape(name, encoded, number * rows, "D", leading=False)
        parts = encoded.reshape(number, rows, *encoded.shape[1:])
        for place, part in zip(places, parts.unbind(0), strict=True):
            results[place] = part
    return results
