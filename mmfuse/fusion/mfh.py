"""Factorized pooling, bilinear and of high order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_probability, check_shape
from mmfuse._precision import at_least_float32, unit
from mmfuse.layers import ModalityLinear, mask_absent, masked_product
from mmfuse.types import FusionOutput

__all__ = ["MFBFusion", "MFHFusion"]

_TINY = 1e-6  # of a vector of length one: the root has a gradient at zero that half precision holds


class MFBFusion(nn.Module):
    r"""Multimodal factorized bilinear pooling (MFB), as introduced in :cite:`yu2017mfb`.

    .. math::
        \mathbf{z} = \mathrm{SumPool}_k\Bigl( \bigodot_{m : p_m} \mathbf{U}_m \mathbf{x}_m \Bigr),
        \qquad \mathbf{s} = \operatorname{sign}(\mathbf{z}) \sqrt{|\mathbf{z}|}, \qquad
        \mathbf{y} = \frac{\mathbf{s}}{\lVert \mathbf{s} \rVert}

    with :math:`\mathbf{U}_m \in \mathbb{R}^{kD \times D}`; every output sums :math:`k`
    neighbouring entries of the product, which dropout thins out while training. :math:`p_m` tells
    whether modality :math:`m` was observed: the product runs over what is present, so that
    dropping an absent modality equals masking it. Nothing present gives :math:`\mathbf{1} /
    \sqrt{D}`.

    .. note::
        The paper has two inputs; the product of more is the same low-rank form of a multilinear
        map. The root has no finite gradient at zero, so :math:`\mathbf{s} = \mathbf{u} /
        \sqrt{|\mathbf{u}| + 10^{-6}}` is computed of :math:`\mathbf{u} = \mathbf{z} / \lVert
        \mathbf{z} \rVert`, in float32 at least: the scale of the inputs means nothing.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        factor: Number :math:`k` of products that are summed for an output.
        dropout: Dropout probability of the products.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``dropout`` is no probability, or shapes disagree.

    Example:
        >>> fusion = MFBFusion(8, num_modalities=3)
        >>> fusion(torch.randn(5, 3, 8)).fused.norm(dim=-1).round(decimals=4)
        tensor([1., 1., 1., 1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        factor: int = 5,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, factor=factor)
        check_probability(dropout=dropout)
        self.dim = dim
        self.num_modalities = num_modalities
        self.factor = factor
        self.factors = ModalityLinear(
            num_modalities, dim, factor * dim, bias=False, device=device, dtype=dtype
        )
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier)."""
        self.factors.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        factors = self.factors(mask_absent(x, present))
        fused = _pool(self.dropout(_product(factors, present)), self.factor)
        return FusionOutput(fused.to(factors.dtype), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, factor={self.factor}"


class MFHFusion(nn.Module):
    r"""Multimodal factorized high-order pooling (MFH), as introduced in :cite:`yu2018mfh`.

    .. math::
        \mathbf{h}_i = \mathbf{h}_{i-1} \odot \bigodot_{m : p_m} \mathbf{U}_m^{(i)} \mathbf{x}_m,
        \qquad \mathbf{h}_0 = \mathbf{1}, \qquad
        \mathbf{y} = \mathbf{W} \left[ \mathrm{pool}(\mathbf{h}_1); \ldots;
        \mathrm{pool}(\mathbf{h}_q) \right] + \mathbf{b}

    where the pooling (sum over :math:`k` neighbours, signed root, unit length) is that of
    :class:`MFBFusion`, and so is what happens to an absent modality. Nothing present gives one
    constant.

    .. note::
        The paper hands the concatenation to a classifier; :math:`\mathbf{W}` maps it to
        :math:`D`.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        factor: Number :math:`k` of products that are summed for an output.
        order: Number :math:`q` of blocks.
        dropout: Dropout probability of the products.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``dropout`` is no probability, or shapes disagree.

    Example:
        >>> fusion = MFHFusion(8, num_modalities=3, order=2)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        factor: int = 5,
        order: int = 2,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, factor=factor, order=order)
        check_probability(dropout=dropout)
        self.dim = dim
        self.num_modalities = num_modalities
        self.factor = factor
        self.order = order
        self.factors = ModalityLinear(
            num_modalities, dim, order * factor * dim, bias=False, device=device, dtype=dtype
        )
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(order * dim, dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        self.factors.reset_parameters()
        self.out.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        factors = self.factors(mask_absent(x, present))
        products = _product(factors, present)
        pooled, before = [], None
        for product in products.chunk(self.order, dim=-1):
            thinned = self.dropout(product)
            before = thinned if before is None else unit(before * thinned)
            pooled.append(_pool(before, self.factor))
        return FusionOutput(self.out(torch.cat(pooled, dim=-1).to(factors.dtype)), None, {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, factor={self.factor}, "
            f"order={self.order}"
        )


def _product(factors: Tensor, present: Tensor | None) -> Tensor:  # (..., M, kD) -> (..., kD)
    """Up to its length, which pooling forgets: nothing overflows, nothing vanishes."""
    return masked_product(unit(factors.to(at_least_float32(factors))), present)


def _pool(product: Tensor, factor: int) -> Tensor:  # (..., kD) -> (..., D)
    """Sum of neighbours, signed root, unit length."""
    total = unit(product.unflatten(-1, (-1, factor)).sum(-1))
    return unit(total * (total.abs() + _TINY).rsqrt())
