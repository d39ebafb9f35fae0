"""The best items for a history: exact, block by block over the catalogue, in a fixed order."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cammsr.baselines import FusedRecommender, SequenceRecommender
from cammsr.blend import Blend, paired_parts, scores_of
from cammsr.hm4sr import HM4SR
from cammsr.memory import Added, add_to, memory_of
from cammsr.missrec import MISSRec, directions
from cammsr.model import CAMMSR, RecommenderOutput, last_position, made_candidates
from cammsr.time_code import reads_times, time_arguments
from mmfuse.types import FusionOutput, Streams

__all__ = ["Reader", "Reading", "TopK", "best_of", "top_k", "window"]

BLOCK = 16384  # items scored at a time
LOW = 1 << 32


class TopK(NamedTuple):
    """The best items of each row, the best first; of equal scores the lower number comes first."""

    scores: Tensor  # (B, k) float32, -inf where a row has fewer items left
    items: Tensor  # (B, k) int64, -1 there


class Reading(NamedTuple):
    """What a model makes of a batch of histories."""

    states: Tensor  # (B, W)
    candidates: Tensor  # (V, W)
    weights: Tensor | None  # (B, M): CAMMSR's gate at the last item
    blend: Blend | None = None  # makes the scores, where they are no products
    added: Added | None = None  # to the scores, by a memory


def top_k(
    states: Tensor,  # (B, W)
    candidates: Tensor,  # (V, W)
    k: int,
    *,
    seen: Tensor | None = None,  # (B, S), -1 is nothing
    block: int = BLOCK,
    blend: Blend | None = None,
    added: Added | None = None,
) -> TopK:
    """The k greatest scores, found exactly.

    No more than ``block`` scores a row exist at a time. Of equal scores the item with the lower
    number comes first: what is compared are integers that hold score and number (:func:`_keys`),
    of which no two are alike. A score itself can differ in its last bit by the place in a block.

    Args:
        states: one a history.
        candidates: one an item.
        k: how many; all of them where the catalogue has fewer.
        seen: items to leave out, for each row.
        block: how many items to score at a time.
        blend: what makes the scores, where they are no products.
        added: what a memory adds to them.
    """
    best: Tensor | None = None
    for start, part in zip(range(0, len(candidates), block), candidates.split(block), strict=True):
        scores = add_to(scores_of(states, part, blend).float(), added, start)
        if seen is not None:
            scores = _without(scores, seen - start)
        keys = _keys(scores, start)
        if best is not None:
            keys = torch.cat([best, keys], dim=1)
        best = keys.topk(min(k, keys.shape[1]), dim=1).values
    assert best is not None  # a catalogue has items
    return _from_keys(best)


def best_of(reading: Reading, k: int, *, seen: Tensor | None = None, block: int = BLOCK) -> TopK:
    """:func:`top_k` of what a model made of histories."""
    return top_k(
        reading.states,
        reading.candidates,
        k,
        seen=seen,
        block=block,
        blend=reading.blend,
        added=reading.added,
    )


def window(
    items: Tensor,  # (B, L)
    valid: Tensor,  # (B, L) bool, padded on the right
    length: int,
) -> tuple[Tensor, Tensor]:  # (B, length), (B, length)
    """The last ``length`` entries of every row, padded to that length whatever L is.

    Other than :func:`cammsr.split.keep_last` it decides nothing by L, so it can be exported.
    """
    count = valid.sum(1, keepdim=True)
    index = (count - length).clamp(min=0) + torch.arange(length, device=items.device)
    kept = index < count
    return items.gather(1, torch.where(kept, index, 0)) * kept, kept


class Reader(nn.Module):
    """A model as it is now, ready to read histories: everything of the catalogue is computed.

    It holds copies, so the model may train on, and no raw features.
    """

    x: Tensor
    present: Tensor
    item_weights: Tensor | None
    candidates: Tensor | None  # (V, M, D), where they are not x

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        was_training = model.training
        model.eval()
        catalogue: Streams = model.get_submodule("items")()
        left_out: dict[int, nn.Module] = {id(model.get_submodule("items")): nn.Identity()}
        weights = None
        if isinstance(model, FusedRecommender):
            fused: FusionOutput = model.fusion(catalogue.x, catalogue.present, model.labels)
            weights = fused.weights
            catalogue = Streams(fused.fused.unsqueeze(-2), catalogue.present[:, :1])
            left_out[id(model.fusion)] = _Fused()
        made = made_candidates(model, catalogue)
        self.model = copy.deepcopy(model, dict(left_out)).requires_grad_(False)
        model.train(was_training)
        self.max_length = len(model.get_parameter("positions"))
        self.reads_times = reads_times(model)
        self.register_buffer("x", catalogue.x.detach().clone())
        self.register_buffer("present", catalogue.present.clone())
        self.register_buffer("item_weights", weights)
        self.register_buffer("candidates", made.get("candidates"))

    def forward(
        self,
        items: Tensor,  # (B, L), L at most max_length
        valid: Tensor,  # (B, L)
        times: Tensor | None = None,  # (B, L), for a model that reads them
    ) -> Reading:
        """Read histories, padded on the right; positions stand in for times that are not known."""
        more = time_arguments(self.model, times)
        if self.candidates is not None:
            more["candidates"] = self.candidates
        output: RecommenderOutput = self.model(items, valid, Streams(self.x, self.present), **more)
        last = last_position(valid)
        states = _at(output.states, last)
        weights = None if output.enriched is None else _at(output.enriched.weights, last)
        memory = memory_of(self.model)
        added = None if memory is None else memory(items, valid)
        return Reading(states, output.candidates, weights, output.blend, added)

    def parts(
        self,
        states: Tensor,  # (B, W)
        items: Tensor,  # (B, k)
    ) -> Tensor | None:  # (B, k, M)
        """What each modality adds to the scores of some items; None where a score has no parts.

        States and candidates of CAMMSR and HM4SR lie side by side by modality, so a score is a sum
        over modalities. Behind a fusion along the sequence a candidate is a sum of its modalities.
        """
        if isinstance(self.model, MISSRec):
            candidates = directions(Streams(self.x[items], self.present[items]))
            told = paired_parts(states.unsqueeze(1), candidates, self.model.blend)
            return torch.stack(list(told), -1)
        if isinstance(self.model, CAMMSR | HM4SR):
            own = states.unflatten(-1, self.x.shape[1:]).unsqueeze(1)  # (B, 1, M, D)
        elif isinstance(self.model, SequenceRecommender):
            own = states[:, None, None, :]
        else:
            return None
        candidates = self.x if self.candidates is None else self.candidates
        parts: Tensor = (own * candidates[items]).sum(-1)
        return parts


class _Fused(nn.Module):
    """Stands for a fusion whose result is what it is given."""

    def forward(
        self, x: Tensor, present: Tensor | None = None, context: Tensor | None = None
    ) -> FusionOutput:
        return FusionOutput(x.squeeze(-2), None, {})


def _at(x: Tensor, position: Tensor) -> Tensor:  # (B, L, W), (B,) -> (B, W)
    """As ``x[arange(B), position]``, which an export would fix to the B it sees."""
    return x.gather(1, position[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def _without(scores: Tensor, seen: Tensor) -> Tensor:  # (B, N), (B, S) -> (B, N)
    """Scores with -inf at some columns; those outside the block are nobody's."""
    rows, width = scores.shape  # not len(): that would fix the number of rows in an export
    column = torch.where((seen >= 0) & (seen < width), seen, width)
    hidden = torch.zeros(rows, width + 1, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(hidden.scatter(1, column, True)[:, :width], -torch.inf)


def _keys(scores: Tensor, start: int) -> Tensor:  # (B, N) float32 -> (B, N) int64
    """Integers that sort as the scores do, and among equal scores by falling number.

    The bits of a float32 sort as an integer once those of the negative ones are turned over. They
    are the upper half of the key; the number of the item, taken off, is the lower.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0. becomes 0.
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return ordered * LOW - torch.arange(start, start + scores.shape[1], device=scores.device)


def _from_keys(keys: Tensor) -> TopK:  # (B, k)
    items = -keys % LOW
    ordered = ((keys + items) // LOW).int()
    scores = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    return TopK(scores, torch.where(scores == -torch.inf, -1, items))
