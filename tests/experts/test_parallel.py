"""Tests for mmfuse.experts.parallel: two processes give one process's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmfuse import Experts, MixtureOfExperts, SigmoidRouter, SlotRouter, SoftRouter, TopKRouter
from mmfuse.experts import ExpertChoiceRouter, ExpertParallel
from tests.processes import together

DIM = 4


def mixture(num_experts: int, backend: str = "auto", kind: str = "top k") -> MixtureOfExperts:
    torch.manual_seed(0)
    routers: dict[str, Callable[[], nn.Module]] = {
        "top k": lambda: TopKRouter(DIM, num_experts, min(2, num_experts)),
        "soft": lambda: SoftRouter(DIM, num_experts),
        "slots": lambda: SlotRouter(DIM, num_experts, 2),
        "expert choice": lambda: ExpertChoiceRouter(DIM, num_experts),
    }
    bank = Experts(num_experts, DIM, 3, 5, backend=backend)
    for bias in (bank.in_bias, bank.out_bias):
        nn.init.normal_(bias)
    return MixtureOfExperts(routers[kind](), bank).double()


def tokens(sizes: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Sequences of six tokens for each process, and what their outputs are multiplied with."""
    torch.manual_seed(1)
    parts = [torch.randn(size, 6, DIM, dtype=torch.float64) for size in sizes]
    goals = [torch.randn(size, 6, 5, dtype=torch.float64) for size in sizes]
    return parts, goals


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        found[name.replace("module.", "").replace("experts.experts.", "experts.")] = full
    return found


def one_process(model: MixtureOfExperts, sizes: list[int]) -> tuple[list[Tensor], Any]:
    """The mean over the parts of what each part's loss asks for."""
    parts, goals = tokens(sizes)
    outputs = [model(x).output for x in parts]
    total = sum((y * goal).sum() for y, goal in zip(outputs, goals, strict=True)) / len(sizes)
    total.backward()
    return [y.detach() for y in outputs], gradients(model)


# -- expert parallelism ----------------------------------------------------------------------------


def parallel(rank: int, sizes: list[int], *of_mixture: Any) -> Any:
    model = mixture(*of_mixture)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model.experts = ExpertParallel(model.experts, mesh)
    parts, goals = tokens(sizes)
    y = model(parts[rank]).output
    (y * goals[rank]).sum().backward()
    shards = [tuple(p.to_local().shape) for p in model.experts.parameters()]
    for parameter in model.router.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    return y.detach(), gradients(model), shards


@pytest.mark.parametrize(
    ("sizes", "num_experts", "backend", "kind"),
    [
        ([2, 2], 4, "auto", "top k"),
        ([2, 0], 5, "loop", "top k"),
        ([1, 3], 3, "grouped", "top k"),
        ([2, 1], 1, "auto", "top k"),
        ([2, 1], 3, "auto", "soft"),
        ([2, 1], 3, "auto", "slots"),
        ([0, 2], 3, "auto", "expert choice"),
    ],
    ids=[
        "even",
        "a process without tokens",
        "uneven",
        "a process without experts",
        "all experts",
        "slots",
        "expert choice",
    ],
)
def test_two_processes_give_the_numbers_of_one(
    tmp_path: Path, sizes: list[int], num_experts: int, backend: str, kind: str
) -> None:
    outputs, wanted = one_process(mixture(num_experts, backend, kind), sizes)
    results = together(tmp_path, 2, parallel, sizes, num_experts, backend, kind)
    for (output, found, shards), y in zip(results, outputs, strict=True):
        torch.testing.assert_close(output, y)
        torch.testing.assert_close(found, wanted)
        assert all(shape[0] < max(num_experts, 2) for shape in shards)
    held = [sum(shape[0] for shape in result[2]) for result in results]
    assert sum(held) == 4 * num_experts


# -- data parallelism ------------------------------------------------------------------------------


def replicated(rank: int, sizes: list[int]) -> Any:
    model = DistributedDataParallel(mixture(16))
    parts, goals = tokens(sizes)
    for _ in range(2):  # a second step fails where the first left a parameter unused
        model.zero_grad()
        (model(parts[rank]).output * goals[rank]).sum().backward()
    return gradients(model)


@pytest.mark.parametrize("sizes", [[7, 1], [1, 0]], ids=["idle experts", "no tokens"])
def test_data_parallel_training_with_idle_experts(tmp_path: Path, sizes: list[int]) -> None:
    _, wanted = one_process(mixture(16), sizes)
    for found in together(tmp_path, 2, replicated, sizes):
        torch.testing.assert_close(found, wanted)


def sharded(rank: int, sizes: list[int]) -> Any:
    """Experts spread by mmfuse, everything else by torch's fully sharded data parallelism."""
    model = mixture(4)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model.experts = ExpertParallel(model.experts, mesh)
    fully_shard(model, mesh=mesh, ignored_params=set(model.experts.parameters()))
    parts, goals = tokens(sizes)
    for _ in range(2):
        model.zero_grad()
        (model(parts[rank]).output * goals[rank]).sum().backward()
    return gradients(model)


def test_spread_experts_inside_a_sharded_model(tmp_path: Path) -> None:
    _, wanted = one_process(mixture(4), [2, 1])
    for found in together(tmp_path, 2, sharded, [2, 1]):
        torch.testing.assert_close(found, wanted)


def balanced(rank: int) -> Tensor:
    router = SigmoidRouter(DIM, 4, 1, bias_rate=0.25)
    router.update_bias(torch.tensor([[0], [1]]) if rank == 0 else torch.tensor([[0], [-1]]))
    return router.expert_bias


def test_bias_sees_the_tokens_of_all_processes(tmp_path: Path) -> None:
    for bias in together(tmp_path, 2, balanced):
        assert bias.tolist() == [-0.25, -0.25, 0.25, 0.25]


# -- errors ----------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_needs_a_mesh_of_one_dimension(alone: Any) -> None:
    mesh = init_device_mesh("cpu", (1, 1))
    with pytest.raises(ValueError, match=r"Expected a mesh of one dimension, got 2 dimensions\."):
        ExpertParallel(Experts(2, 3, 4), mesh)


def test_reset_draws_the_shards_afresh(alone: Any) -> None:
    experts = ExpertParallel(Experts(2, 3, 4), alone)
    before = experts.experts.in_weight.full_tensor().clone()
    experts.reset_parameters()
    assert not torch.equal(experts.experts.in_weight.full_tensor(), before)


def test_a_mixture_draws_spread_experts_afresh_as_well(alone: Any) -> None:
    spread = MixtureOfExperts(TopKRouter(3, 2, 1), ExpertParallel(Experts(2, 3, 4), alone))
    before = spread.experts.experts.in_weight.full_tensor().clone()
    spread.reset_parameters()
    assert not torch.equal(spread.experts.experts.in_weight.full_tensor(), before)
