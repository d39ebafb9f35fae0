"""Tests for mmfuse.losses.gathering: several processes give the numbers of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmfuse import InfoNCELoss, ModalitySwapInfoNCE
from mmfuse.losses import LearnedTemperature, MultiwayInfoNCELoss, all_gather_rows
from tests.processes import together

DIM = 3

#: Options of the loss, and what of a batch it is given beside queries and keys.
LOSSES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, ()),
    "symmetric": ({"symmetric": True}, ()),
    "sum": ({"reduction": "sum"}, ("valid",)),
    "ids": ({"symmetric": True}, ("ids", "key_ids", "valid")),
    "chunks": ({"symmetric": True, "chunk_size": 2}, ("ids", "valid")),
    "positives": ({"symmetric": True, "same_id": "positive"}, ("ids", "valid")),
    "shared negatives": ({"similarity": "dot"}, ("negatives", "valid")),
    "negatives with ids": (
        {"same_id": "positive", "chunk_size": "auto"},
        ("negatives", "ids", "negative_ids", "negative_valid"),
    ),
    "negatives of each row": ({}, ("own_negatives", "ids", "own_key_ids")),
    "nobody": ({"symmetric": True}, ("nobody",)),
}
SIZES = {
    2: ([3, 3], [4, 1], [3, 0]),
    4: ([2, 2, 2, 2], [3, 3, 3, 1], [2, 0, 1, 3]),
}
CASES = [(name, sizes) for number in SIZES for name in LOSSES for sizes in SIZES[number]]
#: What the loss calls it.
CALLED = {
    "ids": "ids",
    "key_ids": "key_ids",
    "negative_ids": "key_ids",
    "own_key_ids": "key_ids",
    "valid": "valid",
    "nobody": "valid",
    "negatives": "negative_keys",
    "own_negatives": "negative_keys",
    "negative_valid": "negative_valid",
}


class Towers(nn.Module):
    """Two projections, and the loss between them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Linear(DIM, DIM)
        self.key = nn.Linear(DIM, DIM)
        self.loss = InfoNCELoss(LearnedTemperature(0.3), **options)
        self.double()

    def forward(self, query: Tensor, key: Tensor, **others: Tensor) -> Tensor:
        if "negative_keys" in others:
            others["negative_keys"] = self.key(others["negative_keys"])
        loss: Tensor = self.loss(self.query(query), self.key(key), **others)
        return loss


def batch(name: str, sizes: list[int]) -> list[dict[str, Tensor]]:
    """What each process is given."""
    torch.manual_seed(1)
    rows = sum(sizes)
    whole = {
        "query": torch.randn(rows, DIM, dtype=torch.float64),
        "key": torch.randn(rows, DIM, dtype=torch.float64),
        "ids": torch.randint(3, (rows,)),
        "key_ids": torch.randint(3, (rows,)),
        "valid": torch.rand(rows) < 0.7,
        "nobody": torch.zeros(rows, dtype=torch.bool),
        "own_negatives": torch.randn(rows, 2, DIM, dtype=torch.float64),
        "own_key_ids": torch.randint(3, (rows, 2)),
        "negatives": torch.randn(rows + len(sizes), DIM, dtype=torch.float64),
        "negative_ids": torch.randint(3, (rows + len(sizes),)),
        "negative_valid": torch.rand(rows + len(sizes)) < 0.7,
    }
    shared = ("negatives", "negative_ids", "negative_valid")
    lengths = {known: [size + 1 for size in sizes] for known in shared}
    named = {"query": "query", "key": "key", **{CALLED[known]: known for known in LOSSES[name][1]}}
    split = {
        argument: whole[known].split(lengths.get(known, sizes)) for argument, known in named.items()
    }
    return [
        {argument: part[rank] for argument, part in split.items()} for rank in range(len(sizes))
    ]


def results(model: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(**given)
    loss.backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return loss.detach(), found


def in_one_process(name: str, sizes: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    parts = batch(name, sizes)
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return results(Towers(**LOSSES[name][0]), whole)


def modalities(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Streams of three modalities, of which some process has no row with the last one."""
    torch.manual_seed(2)
    streams = torch.randn(sum(sizes), 3, DIM, dtype=torch.float64)
    present = torch.rand(sum(sizes), 3) < 0.7
    present[: sizes[0], 2] = False
    return list(zip(streams.split(sizes), present.split(sizes), strict=True))


def over_pairs(streams: Tensor, present: Tensor, gather: bool) -> dict[str, Any]:
    """Losses over pairs of modalities, and the gradients of what leads to them."""
    found = {}
    for reduction in ("mean", "none"):
        scale = torch.ones(3, DIM, dtype=torch.float64, requires_grad=True)
        multiway = MultiwayInfoNCELoss(reduction=reduction, chunk_size=2, gather=gather)
        loss = multiway(streams * scale, present)
        loss.sum().backward()
        found[reduction] = loss.detach(), scale.grad
    scale = torch.ones(3, DIM, dtype=torch.float64, requires_grad=True)
    swap = ModalitySwapInfoNCE(1.0, symmetric=True, gather=gather)
    loss = swap(streams, lambda views, m: views * scale[m], present=present)
    loss.backward()
    found["swap"] = loss.detach(), scale.grad
    return found


def work(rank: int, cases: list[tuple[str, list[int]]]) -> dict[str, Any]:
    """Everything, in one start of the processes: to start takes longest."""
    found: dict[str, Any] = {}
    for name, sizes in cases:
        model = DistributedDataParallel(Towers(gather=True, **LOSSES[name][0]))
        found[f"{name} {sizes}"] = results(model, batch(name, sizes)[rank])
    number = dist.get_world_size()
    x = torch.full((rank, 2), float(rank), requires_grad=True)
    gathered = all_gather_rows(x)
    (gathered * (rank + 1)).sum().backward()
    ids = torch.arange(rank)
    found["rows"] = gathered.detach(), x.grad, all_gather_rows(ids), all_gather_rows(ids > 0)
    pair = dist.new_group([0, 1])
    if rank < 2:
        found["pair"] = all_gather_rows(torch.tensor([rank]), pair)
    part = batch("plain", [2] * number)[rank]
    each = InfoNCELoss(gather=dist.group.WORLD, reduction="none")(*part.values())
    found["none"] = each
    for sizes in SIZES[number]:
        losses = over_pairs(*modalities(sizes)[rank], gather=True)
        for _, gradient in losses.values():  # as data-parallel training does
            dist.all_reduce(gradient)
            gradient.div_(number)
        found[f"pairs {sizes}"] = losses
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """What two and what four processes return."""
    everything = {}
    for number in SIZES:
        folder: Path = tmp_path_factory.mktemp(f"of_{number}")
        mine = [(name, sizes) for name, sizes in CASES if len(sizes) == number]
        everything[number] = together(folder, number, work, mine)
    return everything


@pytest.mark.parametrize(("name", "sizes"), CASES, ids=[f"{n}-{s}" for n, s in CASES])
def test_loss_and_gradients_are_those_of_one_process(found, name, sizes):
    loss, gradients = in_one_process(name, sizes)
    for result in found[len(sizes)]:
        assert torch.equal(result[f"{name} {sizes}"][0], found[len(sizes)][0][f"{name} {sizes}"][0])
        torch.testing.assert_close(result[f"{name} {sizes}"], (loss, gradients))


@pytest.mark.parametrize("number", SIZES)
def test_rows_come_in_the_order_of_the_processes(found, number):
    ranks = torch.arange(number)
    wanted = ranks.repeat_interleave(ranks)  # as many rows as the rank
    ids = torch.cat([torch.arange(rank) for rank in range(number)])
    for rank, result in enumerate(found[number]):
        rows, gradient, of_ids, of_masks = result["rows"]
        assert torch.equal(rows, wanted.unsqueeze(1).expand(-1, 2).float())
        assert torch.equal(gradient, torch.full((rank, 2), float((ranks + 1).sum())))
        assert torch.equal(of_ids, ids)
        assert torch.equal(of_masks, ids > 0)


@pytest.mark.parametrize("number", SIZES)
def test_a_group_gathers_among_itself(found, number):
    for result in found[number][:2]:
        assert result["pair"].tolist() == [0, 1]


@pytest.mark.parametrize("number", SIZES)
def test_without_reduction_each_process_has_its_own_rows(found, number):
    parts = batch("plain", [2] * number)
    whole = [torch.cat([part[name] for part in parts]) for name in ("query", "key")]
    wanted = InfoNCELoss(reduction="none")(*whole)
    torch.testing.assert_close(torch.cat([result["none"] for result in found[number]]), wanted)


@pytest.mark.parametrize("sizes", [sizes for number in SIZES for sizes in SIZES[number]], ids=str)
def test_losses_over_pairs_are_those_of_one_process(found, sizes):
    """The mean over the pairs that some process has, also where another has none of them."""
    parts = modalities(sizes)
    whole = [torch.cat(part) for part in zip(*parts, strict=True)]
    wanted = over_pairs(*whole, gather=False)
    for result in found[len(sizes)]:
        torch.testing.assert_close(result[f"pairs {sizes}"], wanted)


def test_alone_nothing_happens():
    x = torch.randn(3, 2)
    assert all_gather_rows(x) is x
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert all_gather_rows(x) is x
        assert torch.equal(InfoNCELoss(gather=True)(x, x), InfoNCELoss()(x, x))
    finally:
        dist.destroy_process_group()


def test_rejects_a_number():
    with pytest.raises(ValueError, match=r"Expected x of shape \(\.\.\., B\), got \(\)\."):
        all_gather_rows(torch.tensor(1.0))
