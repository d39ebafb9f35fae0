"""MISSRec: how much each modality of a candidate counts is up to the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cammsr.config import ModelConfig
from cammsr.encoder import make_encoder
from cammsr.items import make_items
from cammsr.model import RecommenderOutput
from mmfuse.layers import mask_absent
from mmfuse.types import Streams

__all__ = ["MISSRec", "UserAdaptiveBlend"]

TEMPERATURE = 0.07
FEATURES_TO_ID = 2.0  # how much all features count beside the id


class UserAdaptiveBlend(nn.Module):
    r"""Features count by how well they fit the user, and all together twice as much as the id.

    .. math::
        s = \frac{1}{\tau} \cdot \frac{l_{id} + 2 \sum_m w_m l_m}{3}, \qquad
        w = \operatorname{softmax}_m(\varphi\, l_m)

    :math:`l` are cosines, :math:`\tau` is .07 and :math:`\varphi` is learned; it starts at 0, where
    features count alike. A modality that the item lacks is left out: of the softmax, and where
    there is no id or no feature at all, the other is the whole score. An item without anything
    scores 0.

    Args:
        num_modalities: how many there are, the id being the first.
        use_id: whether there is an id.
    """

    def __init__(self, num_modalities: int, *, use_id: bool = True) -> None:
        super().__init__()
        self.modalities = num_modalities
        self.first_feature = int(use_id)
        self.sharpness = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        products: Sequence[Tensor],  # M of (..., N): cosines
        observed: Sequence[Tensor],  # M of (N,) or (..., N)
    ) -> list[Tensor]:  # M of (..., N)
        """What each modality adds to the score."""
        first = self.first_feature
        logits = [self.sharpness * product for product in products[first:]]
        told = apart_softmax(logits, observed[first:]) if logits else []
        some = torch.stack(list(observed[first:])).any(0) if logits else None
        amounts = [there.to(products[0].dtype) for there in observed[:first]]  # of the id
        amounts += [] if some is None else [FEATURES_TO_ID * some.to(products[0].dtype)]
        whole = torch.stack(amounts).sum(0).clamp(min=1) * TEMPERATURE
        parts = [product * (amounts[0] / whole) for product in products[:first]]
        return parts + [
            product * weight * (amounts[-1] / whole)
            for product, weight in zip(products[first:], told, strict=True)
        ]


class MISSRec(nn.Module):
    """MISSRec (Wang et al., 2023), its user-adaptive fusion of candidates.

    A history is the sum of each item's modalities, through one causal Transformer with LayerNorm.
    Its states are compared with every modality of a candidate apart, by their cosine, and
    :class:`UserAdaptiveBlend` makes one score of these, so a score is no single product.

    Left out: the interests, which are clusters of all items' modalities, found anew as training
    goes on; the encoder that reads the interests of a history, and the decoder's attention to
    them; the loss that keeps interests apart (1e-4); the pre-training on other catalogues with its
    two contrasts. The authors' encoder and decoder read a history as a whole, in both directions,
    which would show each position its own target where all of them train at once. Here the
    decoder is causal and attends to the history alone.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],  # modality -> (V, D_m)
        labels: Tensor,  # (V, C), ignored but for its length
        config: ModelConfig,
    ) -> None:
        super().__init__()
        config = replace(config, norm="layernorm")  # as its authors have it
        self.items = make_items(features, labels, config)
        self.positions = nn.Parameter(torch.empty(config.max_length, config.dim))
        self.encoder = make_encoder(config)
        self.blend = UserAdaptiveBlend(len(self.items.names), use_id=config.use_id)
        nn.init.normal_(self.positions, std=config.first_scale)

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        catalogue: Streams | None = None,  # (V, M, D)
    ) -> RecommenderOutput:
        """Read histories, padded on the right; ``catalogue`` spares projecting it again."""
        catalogue = self.items() if catalogue is None else catalogue
        summed = mask_absent(*catalogue).sum(-2)  # (V, D)
        stream = F.embedding(items, summed) + self.positions[: items.shape[1]]
        states = F.normalize(self.encoder(stream), dim=-1)
        return RecommenderOutput(states, directions(catalogue), {}, None, None, self.blend)


def directions(streams: Streams) -> Tensor:  # x (..., M, D), present (..., M) -> (..., M D)
    """Every modality scaled to length one, side by side; zeros where it is absent."""
    return F.normalize(mask_absent(*streams), dim=-1).flatten(-2)


def apart_softmax(logits: Sequence[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
    """Softmax over tensors instead of a dimension, of those observed; zeros where none is."""
    shown = [
        torch.where(there, logit, -torch.inf) for logit, there in zip(logits, observed, strict=True)
    ]
    top = shown[0].detach()
    for logit in shown[1:]:
        top = torch.maximum(top, logit.detach())
    top = top.clamp(min=torch.finfo(top.dtype).min)
    raised = [torch.exp(logit - top) for logit in shown]
    total = raised[0]
    for value in raised[1:]:
        total = total + value
    total = total.clamp(min=1)  # the greatest adds 1
    return [value / total for value in raised]
