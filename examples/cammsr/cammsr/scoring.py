"""A trained model as a scorer of the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cammsr.model import RecommenderOutput, last_valid
from cammsr.split import keep_last

__all__ = ["ModelScorer"]


class ModelScorer:
    """Scores by a model as it is now: its catalogue is projected once, here.

    Put the model in eval mode first. Histories longer than the model reads are cut to their end.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.max_length = len(model.get_parameter("positions"))
        with torch.no_grad():
            self.catalogue = model.get_submodule("items")()

    @torch.no_grad()
    def scores(self, items: Tensor, valid: Tensor) -> Tensor:  # (B, L), (B, L) -> (B, V)
        """The product of each user's last state with every candidate (Eq. 15)."""
        items, valid = keep_last(items, valid, self.max_length)
        device = self.catalogue.x.device
        items, valid = items.to(device), valid.to(device)
        output: RecommenderOutput = self.model(items, valid, self.catalogue)
        return last_valid(output.states, valid) @ output.candidates.T
