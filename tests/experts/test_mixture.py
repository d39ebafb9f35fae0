"""Tests for mmfuse.experts.mixture."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmfuse import Experts
from mmfuse.experts import (
    AttentiveRouter,
    ExpertChoiceRouter,
    HashRouter,
    MixtureOfExperts,
    NoisyTopKRouter,
    SigmoidRouter,
    SlotRouter,
    SoftRouter,
    TopKRouter,
    limit_capacity,
)
from mmfuse.testing import assert_block_contract
from mmfuse.types import MixtureOutput, RouterOutput
from tests.outcomes import assert_same, outcome, places, static_shapes
from tests.strategies import seeds, with_nan

DIM, EXPERTS, CATEGORIES = 4, 3, 5

ROUTERS: dict[str, Callable[[], nn.Module]] = {
    "top_k": lambda: TopKRouter(DIM, EXPERTS, top_k=2),
    "switch": lambda: TopKRouter(DIM, EXPERTS, top_k=1),
    "noisy": lambda: NoisyTopKRouter(DIM, EXPERTS, top_k=2),
    "sigmoid": lambda: SigmoidRouter(DIM, EXPERTS, top_k=2),
    "soft": lambda: SoftRouter(DIM, EXPERTS),
    "slots": lambda: SlotRouter(DIM, EXPERTS, slots_per_expert=2),
    "expert_choice": lambda: ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=1.5),
    "hash": lambda: HashRouter(CATEGORIES, EXPERTS, top_k=2),
    "attentive": lambda: AttentiveRouter(DIM, EXPERTS),
    "attentive_top_k": lambda: AttentiveRouter(DIM, EXPERTS, top_k=2),
}
CHOOSING = ("top_k", "switch", "noisy", "sigmoid", "hash", "attentive_top_k")
each_router = pytest.mark.parametrize("name", sorted(ROUTERS))
masked = pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
each_router_and_capacity = pytest.mark.parametrize(
    ("name", "capacity_factor"),
    [(name, None) for name in sorted(ROUTERS)] + [(name, 0.8) for name in CHOOSING],
)
few = settings(max_examples=15)


class Fixed(nn.Module):
    """A router that always says the same."""

    def __init__(self, routed: RouterOutput) -> None:
        super().__init__()
        self.parts = tuple(routed)

    def forward(self, x: Tensor, valid: Any = None, context: Any = None) -> RouterOutput:
        return RouterOutput(*self.parts)


class Case(NamedTuple):
    """What a mixture takes."""

    x: Tensor  # (B, L, D)
    valid: Tensor | None  # (B, L)
    context: Tensor | None  # (B, L)


def made(name: str, *, out: int = DIM, **arguments: Any) -> MixtureOfExperts:
    """A mixture whose biases are not zero."""
    experts = Experts(EXPERTS, DIM, 5, out)
    nn.init.normal_(experts.in_bias)
    nn.init.normal_(experts.out_bias)
    router = ROUTERS[name]()
    if name == "noisy":
        nn.init.normal_(router.noise_weight)
    return MixtureOfExperts(router, experts, **arguments)


def inputs(name: str, padded: bool, shape: tuple[int, int] = (3, 16)) -> Case:
    """Tokens, of which some are real, and their categories."""
    valid = torch.rand(shape) < 0.7 if padded else None
    if padded and shape[0] > 1:
        valid[0] = False
    context = torch.randint(CATEGORIES, shape) if name == "hash" else None
    return Case(torch.randn(*shape, DIM), valid, context)


def seeded(mixture: Callable[..., Any], *parts: Any) -> Any:
    """With the same noise each time."""
    torch.manual_seed(1)
    return mixture(*parts)


# -- reference: the formulas, read aloud -----------------------------------------------------------


def naive_expert(experts: Experts, e: int, x: Tensor) -> Tensor:
    u = x @ experts.in_weight[e] + experts.in_bias[e]
    gelu = u * (1 + torch.erf(u / math.sqrt(2))) / 2
    return gelu @ experts.out_weight[e] + experts.out_bias[e]


def naive_mixture(experts: Experts, x: Tensor, routed: RouterOutput) -> Tensor:
    """Loop over tokens and over the experts that each of them got."""
    y = x.new_zeros(*x.shape[:-1], experts.out_dim)
    for place in places(x.shape[:-1]):
        weights = routed.expert_weight[place].tolist()
        picks = range(len(weights))
        if routed.expert_index is not None:
            picks = routed.expert_index[place].tolist()
        for weight, e in zip(weights, picks, strict=True):
            if e >= 0:
                y[place] += weight * naive_expert(experts, e, x[place])
    return y


def naive_slots(mixture: MixtureOfExperts, case: Case) -> Tensor:
    """Soft MoE: loop over sequences, slots and tokens."""
    router, experts = mixture.router, mixture.experts
    y = case.x.new_zeros(*case.x.shape[:-1], experts.out_dim)
    slots = router.weight / router.weight.norm(dim=-1, keepdim=True)
    for row in range(len(case.x)):
        length = case.x.shape[1]
        real = [j for j in range(length) if case.valid is None or case.valid[row, j]]
        if not real:
            continue
        tokens = case.x[row, real]
        logits = router.scale * (tokens / tokens.norm(dim=-1, keepdim=True)) @ slots.T
        power = logits.exp()
        processed = []
        for slot in range(len(slots)):
            mixed = (power[:, slot, None] * tokens).sum(0) / power[:, slot].sum()
            processed.append(naive_expert(experts, slot // router.slots_per_expert, mixed))
        back = power / power.sum(-1, keepdim=True)
        for j, weights in zip(real, back, strict=True):
            y[row, j] = sum(w * out for w, out in zip(weights, processed, strict=True))
    return y


@each_router
@masked
@few
@given(seed=seeds)
def test_each_token_gets_the_weighted_sum_of_its_experts(
    name: str, padded: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    mixture, case = made(name, out=2), inputs(name, padded, (2, 5))
    output, routed, losses = seeded(mixture, *case)
    wanted = naive_mixture(mixture.experts, case.x, routed)
    if name == "slots":
        wanted = naive_slots(mixture, case)
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    alone = seeded(mixture.router, *case)
    torch.testing.assert_close(tuple(routed), tuple(alone))
    assert losses == routed.losses
    if padded:
        assert not output[~case.valid].any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sparse", [False, True])
def test_whatever_a_router_says_is_done(seed: int, sparse: bool) -> None:
    torch.manual_seed(seed)
    experts, x = Experts(EXPERTS, DIM, 5, 2), torch.randn(3, 20, DIM)
    weight = torch.randn(3, 20, 2 if sparse else EXPERTS)
    index = torch.randint(-1, EXPERTS, (3, 20, 2)) if sparse else None
    loss = torch.randn(())
    mixture = MixtureOfExperts(Fixed(RouterOutput(weight, {"mine": loss}, index)), experts)
    output, routed, losses = mixture(x)
    wanted = naive_mixture(experts, x, RouterOutput(weight, {}, index))
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    assert losses == {"mine": loss}
    assert routed.expert_weight is weight


# -- padding ---------------------------------------------------------------------------------------


@each_router
@pytest.mark.parametrize("compiling", [False, True])
def test_nan_where_a_token_is_absent_changes_nothing(name: str, compiling: bool) -> None:
    torch.manual_seed(0)
    mixture, case = made(name, shared=nn.Linear(DIM, DIM)), inputs(name, padded=True)
    spoilt = case._replace(x=with_nan(case.x, case.valid))

    def run(part: Case) -> Any:
        torch.manual_seed(1)
        return outcome(mixture, *part)

    clean, dirty = run(case), run(spoilt)
    assert all(gradient.isfinite().all() for gradient in clean[1])
    assert_same(dirty, clean)
    if compiling:
        with static_shapes():
            torch.testing.assert_close(run(spoilt), clean, rtol=1e-4, atol=1e-5)


@each_router
@pytest.mark.parametrize("compiling", [False, True])
def test_where_everything_is_padding_there_is_nothing(name: str, compiling: bool) -> None:
    mixture, case = made(name, shared=nn.Linear(DIM, DIM)), inputs(name, padded=True)
    case = case._replace(x=case.x * torch.nan, valid=torch.zeros_like(case.valid))
    assert_same(mixture(*case).output, torch.zeros_like(case.x))
    if compiling:
        with static_shapes():
            assert_same(mixture(*case).output, torch.zeros_like(case.x))
    total = mixture(*case).output.sum() + sum(mixture(*case).losses.values())
    if total.requires_grad:
        parameters = list(mixture.parameters())
        got = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        assert all(gradient.isfinite().all() for gradient in got)


@each_router
def test_none_means_that_every_token_is_real(name: str) -> None:
    mixture, case = made(name, shared=nn.Linear(DIM, DIM)), inputs(name, padded=False)
    every = case._replace(valid=torch.ones(case.x.shape[:-1], dtype=torch.bool))
    got, wanted = seeded(mixture, *every), seeded(mixture, *case)
    torch.testing.assert_close(got.output, wanted.output, rtol=1e-4, atol=1e-5)


@each_router
@masked
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_tokens_give_none(name: str, padded: bool, shape: tuple[int, int]) -> None:
    mixture = made(name, out=2, shared=nn.Linear(DIM, 2))
    case = Case(
        torch.zeros(*shape, DIM),
        torch.ones(shape, dtype=torch.bool) if padded else None,
        torch.zeros(shape, dtype=torch.int64) if name == "hash" else None,
    )
    assert_same(mixture(*case).output, torch.zeros(*shape, 2))


@each_router
def test_a_single_token_is_enough(name: str) -> None:
    mixture, case = made(name), inputs(name, False, (1, 1))
    output, routed, _ = seeded(mixture, *case)
    wanted = naive_slots(mixture, case) if name == "slots" else None
    wanted = naive_mixture(mixture.experts, case.x, routed) if wanted is None else wanted
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    assert output.any()


# -- shared expert ---------------------------------------------------------------------------------


@each_router
@masked
def test_a_shared_expert_is_added_where_a_token_is_real(name: str, padded: bool) -> None:
    torch.manual_seed(0)
    shared, case = nn.Linear(DIM, DIM), inputs(name, padded)
    mixture = made(name, shared=shared)
    together = seeded(mixture, *case).output
    mixture.shared = None
    alone = seeded(mixture, *case).output
    added = shared(case.x)
    if padded:
        added = added * case.valid.unsqueeze(-1)
    torch.testing.assert_close(together, alone + added, rtol=1e-4, atol=1e-5)


@masked
def test_a_bank_of_shared_experts_counts_fully(padded: bool) -> None:
    torch.manual_seed(0)
    shared, case = Experts(2, DIM, 3, activation="swiglu"), inputs("top_k", padded)
    mixture = made("top_k", shared=shared)
    together = mixture(*case).output
    mixture.shared = None
    alone = mixture(*case).output
    added = sum(shared(case.x, torch.eye(2)[e].expand(*case.x.shape[:-1], 2)) for e in range(2))
    if padded:
        added = added * case.valid.unsqueeze(-1)
    torch.testing.assert_close(together, alone + added, rtol=1e-4, atol=1e-5)


def test_a_shared_expert_computes_for_real_tokens_only() -> None:
    rows, shared = [], nn.Linear(DIM, DIM)
    shared.register_forward_pre_hook(lambda _, parts: rows.append(len(parts[0])))
    case = inputs("top_k", padded=True)
    made("top_k", shared=shared)(*case)
    assert rows == [int(case.valid.sum())]


# -- capacity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOOSING)
@masked
@few
@given(seed=seeds, factor=st.sampled_from([0.01, 0.5, 0.9, 1.0, 1.25]))
def test_an_expert_takes_no_more_than_its_capacity(
    name: str, padded: bool, seed: int, factor: float
) -> None:
    torch.manual_seed(seed)
    mixture, case = made(name, capacity_factor=factor), inputs(name, padded, (2, 9))
    free = seeded(mixture.router, *case)
    output, routed, losses = seeded(mixture, *case)
    tokens = 18 if case.valid is None else int(case.valid.sum())
    room = math.ceil(factor * tokens * free.expert_index.shape[-1] / EXPERTS)
    kept = routed.expert_index
    assert_same(kept, limit_capacity(free.expert_index, EXPERTS, room))
    assert all(int((kept == e).sum()) <= room for e in range(EXPERTS))
    for e in range(EXPERTS):  # and as many as fit
        assert int((kept == e).sum()) == min(room, int((free.expert_index == e).sum()))
    assert not routed.expert_weight[kept < 0].any()
    assert_same(routed.expert_weight[kept >= 0], free.expert_weight[kept >= 0])
    wanted = naive_mixture(mixture.experts, case.x, routed)
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    assert set(losses) == set(free.losses)


@pytest.mark.parametrize("name", CHOOSING)
def test_nothing_is_dropped_unless_asked_for(name: str) -> None:
    """Not even where all tokens choose the same experts."""
    mixture, case = made(name), inputs(name, False, (1, 40))
    same = case.x[:, :1].expand_as(case.x)
    context = None if case.context is None else torch.zeros_like(case.context)
    mixture.eval()
    output, routed, _ = mixture(same, None, context)
    assert (routed.expert_index >= 0).all()
    torch.testing.assert_close(
        output, naive_mixture(mixture.experts, same, routed), rtol=1e-4, atol=1e-5
    )
    mixture.capacity_factor = 1.0
    assert (mixture(same, None, context).router.expert_index < 0).any()


@pytest.mark.parametrize("name", sorted(set(ROUTERS) - set(CHOOSING)))
def test_capacity_is_refused_where_the_router_makes_no_choice(name: str) -> None:
    mixture, case = made(name), inputs(name, padded=True)
    mixture.capacity_factor = 0.1
    message = rf"expert_index beside capacity_factor = 0\.1, got {type(mixture.router).__name__},"
    with pytest.raises(ValueError, match=message):
        mixture(*case)


# -- contract, compilation, precision --------------------------------------------------------------


@each_router_and_capacity
@masked
def test_contract(name: str, padded: bool, capacity_factor: float | None) -> None:
    torch.manual_seed(0)
    mixture = made(name, shared=nn.Linear(DIM, DIM), capacity_factor=capacity_factor)
    assert_block_contract(mixture, *inputs(name, padded))


def test_contract_without_noise() -> None:
    mixture = made("noisy").eval()
    assert_block_contract(mixture, *inputs("noisy", True), unused=("router.noise_weight",))


def leaves(output: MixtureOutput) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if leaf is not None]


@each_router
@masked
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_as_a_whole_it_gives_the_eager_numbers(
    name: str, padded: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    mixture, case = made(name, shared=nn.Linear(DIM, DIM)).to(dtype), inputs(name, padded)
    case = case._replace(x=case.x.to(dtype))
    torch.compiler.reset()
    compiled = torch.compile(mixture, fullgraph=True, backend="aot_eager")
    got, wanted = leaves(seeded(compiled, *case)), leaves(seeded(mixture, *case))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert got[0].dtype == dtype


@each_router_and_capacity
@masked
def test_exported_it_gives_the_eager_numbers(
    name: str, padded: bool, capacity_factor: float | None
) -> None:
    torch.manual_seed(0)
    mixture = made(name, shared=nn.Linear(DIM, DIM), capacity_factor=capacity_factor).eval()
    program = torch.export.export(mixture, tuple(inputs(name, padded)))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    case = inputs(name, padded)
    output = torch.export.load(file).module()(*case)
    assert isinstance(output, MixtureOutput)
    torch.testing.assert_close(leaves(output), leaves(mixture(*case)), rtol=1e-5, atol=1e-5)


@each_router
@masked
def test_autocast_rounds_products_and_keeps_the_dtype(name: str, padded: bool) -> None:
    torch.manual_seed(0)
    mixture, case = made(name), inputs(name, padded)
    wanted = seeded(mixture, *case)
    x = case.x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = seeded(mixture, x, case.valid, case.context)
    assert got.output.dtype == got.router.expert_weight.dtype == torch.float32
    assert not torch.equal(got.output, wanted.output)
    assert (got.output - wanted.output).norm() <= 2e-2 * wanted.output.norm()
    assert_same(got.router.expert_weight, wanted.router.expert_weight)
    parameters = [x, *mixture.parameters()]
    total = got.output.square().sum() + sum(got.losses.values())
    gradients = torch.autograd.grad(total, parameters)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.any() for gradient in gradients)


# -- construction ----------------------------------------------------------------------------------


def test_reset_draws_router_experts_and_shared_expert_afresh() -> None:
    mixture = made("top_k", shared=nn.Sequential(nn.Linear(DIM, 5), nn.Linear(5, DIM)))
    before = {name: value.clone() for name, value in mixture.named_parameters()}
    mixture.reset_parameters()
    after = dict(mixture.named_parameters())
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_rejects_bad_arguments() -> None:
    router, experts = TopKRouter(DIM, 4), Experts(EXPERTS, DIM, 5)
    with pytest.raises(ValueError, match=r"Expected as many experts as the router's 4, got 3\."):
        MixtureOfExperts(router, experts)
    for factor in (0.0, -1.0):
        with pytest.raises(ValueError, match=rf"Expected capacity_factor > 0, got {factor}\."):
            MixtureOfExperts(ROUTERS["top_k"](), experts, capacity_factor=factor)
    with pytest.raises(ValueError, match=r"Expected Experts or ExpertParallel, got TopKRouter\."):
        MixtureOfExperts(experts, router)
    mixture = made("top_k", shared=nn.Linear(DIM, 3))
    with pytest.raises(ValueError, match=r"Expected shared\(x\) of shape \(2, 4\), got \(2, 3\)\."):
        mixture(torch.zeros(2, 4))
    mixture = made("top_k")
    with pytest.raises(ValueError, match=r"Expected x of shape \(\.\.\., 4\), got \(2, 3\)\."):
        mixture(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"Expected valid of shape \(2,\), got \(3,\)\."):
        mixture(torch.zeros(2, 4), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid of dtype torch\.bool, got torch\.float32\."):
        mixture(torch.zeros(2, 4), torch.ones(2))


def test_repr() -> None:
    text = str(MixtureOfExperts(ROUTERS["top_k"](), Experts(3, 4, 5), capacity_factor=1.5))
    assert text.startswith("MixtureOfExperts(\n  capacity_factor=1.5\n  (router): TopKRouter(dim=4")
    assert "(experts): Experts(num_experts=3, dim=4" in text
