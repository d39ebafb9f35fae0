"""Raw features of any widths become streams of one width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import Streams

__all__ = ["ModalityProjection"]


class ModalityProjection(nn.Module):
    r"""Map every modality to the model width (:cite:`xu2026cammsr`, Eq. 4).

    .. math::
        \mathbf{x}_m = \mathbf{W}_m \mathbf{f}_m + \mathbf{b}_m

    The order of the modalities is the order of ``widths``, fixed here once; the order of the keys
    of the input does not matter. An absent modality, by a missing key or by ``present``, gives a
    zero stream, whatever its features hold.

    Args:
        widths: Raw width :math:`D_m` of every modality, by name; ``None`` for one that already
            has width ``dim``, and a floating dtype, and passes unchanged.
        dim: Model width :math:`D`.
        bias: Whether to add :math:`\mathbf{b}_m`.

    Shape:
        - features: :math:`\{\text{name}: (\ldots, D_m)\}`; a missing name is an absent modality
        - present: :math:`\{\text{name}: (\ldots)\}`, boolean, true where observed; a missing name
          means observed wherever features are given; a name without features stays absent
        - output x: :math:`(\ldots, M, D)`; present: :math:`(\ldots, M)`

    Returns:
        :class:`~mmfuse.types.Streams`.

    Raises:
        ValueError: If there is no modality, a size is not positive, a name is unknown, no
            features are given, or shapes or dtypes disagree.

    Example:
        >>> projection = ModalityProjection({"text": 384, "image": 1024}, 64)
        >>> x, present = projection({"text": torch.randn(2, 384)})
        >>> x.shape, present
        (torch.Size([2, 2, 64]), tensor([[ True, False],
                [ True, False]]))
    """

    def __init__(
        self,
        widths: Mapping[str, int | None],
        dim: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        if not widths:
            raise ValueError("Expected at least one modality in widths, got none.")
        check_positive(**{f"widths[{name!r}]": w for name, w in widths.items() if w is not None})
        self.dim = dim
        self.widths = dict(widths)
        self.names = tuple(widths)
        self.layers = nn.ModuleList(
            nn.Identity()
            if width is None
            else nn.Linear(width, dim, bias=bias, device=device, dtype=dtype)
            for width in widths.values()
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier), without bias."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> Streams:
        """Return streams and presence; shapes are given in the class docstring."""
        present = {} if present is None else present
        self._check_names("features", features)
        self._check_names("present", present)
        if not features:
            raise ValueError(f"Expected features of at least one of {self.names}, got none.")
        lead = next(features[name] for name in self.names if name in features).shape[:-1]
        for name, mask in present.items():
            check_mask(f"present[{name!r}]", mask, lead)
        streams = []
        for name, layer in zip(self.names, self.layers, strict=True):
            if name in features:
                self._check_features(name, features[name], lead)
                streams.append(_project(layer, features[name], present.get(name)))
        return self._stack(features, present, streams, lead)

    def extra_repr(self) -> str:
        return f"widths={self.widths}, dim={self.dim}"

    def _check_names(self, argument: str, given: Mapping[str, Tensor]) -> None:
        unknown = sorted(set(given) - set(self.names))
        if unknown:
            raise ValueError(f"Expected {argument} named among {self.names}, got {unknown}.")

    def _check_features(self, name: str, features: Tensor, lead: torch.Size) -> None:
        argument, raw = f"features[{name!r}]", self.widths[name]
        width = self.dim if raw is None else raw
        check_shape(argument, features, width)
        check_shape(argument, features, *lead, width, leading=False)
        if raw is None and not features.is_floating_point():
            raise ValueError(f"Expected {argument} of a floating dtype, got {features.dtype}.")

    def _stack(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        streams: list[Tensor],  # of (..., D)
        lead: torch.Size,
    ) -> Streams:
        given = iter(streams)
        blank = torch.zeros_like(streams[0])
        x = torch.stack([next(given) if name in features else blank for name in self.names], -2)
        masks = [
            present[name]
            if name in features and name in present
            else torch.full(lead, name in features, dtype=torch.bool, device=x.device)
            for name in self.names
        ]
        return Streams(x, torch.stack(masks, dim=-1))


def _project(
    layer: nn.Module,
    features: Tensor,  # (..., D_m)
    present: Tensor | None,  # (...)
) -> Tensor:  # (..., D)
    features = mask_absent(features, present)
    if isinstance(layer, nn.Linear):
        features = layer(features.to(layer.weight.dtype))
    return mask_absent(features, present)  # the bias is not a feature either
