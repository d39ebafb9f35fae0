"""A trained model as a scorer of the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cammsr.hm4sr import HM4SR
from cammsr.model import RecommenderOutput, last_valid
from cammsr.split import keep_last

__all__ = ["ModelScorer"]


class ModelScorer:
    """Scores by a model as it is now: its catalogue is projected once, here.

    Put the model in eval mode first. Histories longer than the model reads are cut to their end.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.reads_times = isinstance(model, HM4SR)
        self.max_length = len(model.get_parameter("positions"))
        with torch.no_grad():
            self.catalogue = model.get_submodule("items")()

    @torch.no_grad()
    def scores(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        times: Tensor | None = None,  # (B, L)
    ) -> Tensor:  # (B, V)
        """The product of each user's last state with every candidate (Eq. 15)."""
        device = self.catalogue.x.device
        more: dict[str, Tensor] = {}
        if times is not None and self.reads_times:
            more["times"] = keep_last(times, valid, self.max_length)[0].to(device)
        items, valid = keep_last(items, valid, self.max_length)
        items, valid = items.to(device), valid.to(device)
        output: RecommenderOutput = self.model(items, valid, self.catalogue, **more)
        return last_valid(output.states, valid) @ output.candidates.T
