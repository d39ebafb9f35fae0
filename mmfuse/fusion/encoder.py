"""Raw features in, one vector out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmfuse.projection import ModalityProjection
from mmfuse.types import Fusion, FusionOutput, SequenceFusion

__all__ = ["MultimodalEncoder"]


class MultimodalEncoder(nn.Module):
    r"""A projection and a fusion: the one-line way into somebody else's model.

    .. math::
        \mathbf{y} = \mathrm{fusion}(\mathrm{projection}(\{f_m\}))

    Args:
        projection: The door, which fixes the modalities and their order.
        fusion: Any fusion of the projection's width and number of modalities.

    Shape:
        - features: :math:`\{\text{name}: (\ldots, D_m)\}`; a missing name is an absent modality
        - present: :math:`\{\text{name}: (\ldots)\}`, boolean; a missing name means
          observed wherever features are given
        - context: what the fusion takes
        - valid: :math:`(\ldots, L)`, boolean, false at padding; for fusions over sequences
        - fused: :math:`(\ldots, D)`

    Returns:
        The fusion's :class:`~mmfuse.types.FusionOutput`.

    Raises:
        ValueError: What the projection and the fusion raise.
        TypeError: If ``valid`` is given and the fusion is none over sequences.

    Example:
        >>> import torch
        >>> from mmfuse import GatedFusion, ModalityProjection
        >>> encoder = MultimodalEncoder(
        ...     ModalityProjection({"text": 384, "image": 1024}, 64), GatedFusion(64, 2)
        ... )
        >>> encoder({"text": torch.randn(8, 384)}).fused.shape  # the image is absent
        torch.Size([8, 64])
    """

    def __init__(self, projection: ModalityProjection, fusion: Fusion | SequenceFusion) -> None:
        super().__init__()
        self.projection = projection
        self.fusion = fusion

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        context: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fusion's output; shapes are given in the class docstring."""
        x, observed = self.projection(features, present)
        fusion: Any = self.fusion
        keywords = {} if valid is None else {"valid": valid}
        output: FusionOutput = fusion(x, observed, context, **keywords)
        return output
