"""A trained model as a scorer of the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cammsr.blend import scores_of
from cammsr.memory import add_to, memory_of
from cammsr.model import RecommenderOutput, last_valid, made_candidates
from cammsr.split import keep_last
from cammsr.time_code import reads_times, time_arguments

__all__ = ["ModelScorer"]


class ModelScorer:
    """Scores by a model as it is now: its catalogue is projected once, here.

    Put the model in eval mode first. Histories longer than the model reads are cut to their end.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.reads_times = reads_times(model)
        self.max_length = len(model.get_parameter("positions"))
        with torch.no_grad():
            self.catalogue = model.get_submodule("items")()
            self.made = made_candidates(model, self.catalogue)

    @torch.no_grad()
    def scores(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        times: Tensor | None = None,  # (B, L)
    ) -> Tensor:  # (B, V)
        """The score of every candidate by each user's last state (Eq. 15)."""
        device = self.catalogue.x.device
        if times is not None:
            times = keep_last(times, valid, self.max_length)[0].to(device)
        items, valid = keep_last(items, valid, self.max_length)
        items, valid = items.to(device), valid.to(device)
        output: RecommenderOutput = self.model(
            items, valid, self.catalogue, **self.made, **time_arguments(self.model, times)
        )
        scores = scores_of(last_valid(output.states, valid), output.candidates, output.blend)
        memory = memory_of(self.model)
        return scores if memory is None else add_to(scores, memory(items, valid))
