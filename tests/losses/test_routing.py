"""Tests for mmfuse.losses.routing."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.losses import (
    cv_squared_loss,
    expert_diversity_loss,
    load_balance_loss,
    router_entropy_loss,
    router_z_loss,
)
from tests.outcomes import assert_same, outcome, places
from tests.references import cosine
from tests.strategies import leads, seeds, sizes, with_nan

few = settings(max_examples=25)


class Batch(NamedTuple):
    """Tokens (...) that choose K of E experts; some are padding, some choices are dropped."""

    logits: Tensor  # (..., E)
    probs: Tensor  # (..., E)
    index: Tensor  # (..., K)
    valid: Tensor  # (...)


@st.composite
def batches(draw: st.DrawFn, drops: bool = True) -> Batch:
    lead, experts = draw(leads()), draw(sizes)
    top_k = draw(st.integers(1, experts))
    torch.manual_seed(draw(seeds))
    logits = torch.randn(*lead, experts, dtype=torch.float64)
    index = torch.rand(*lead, experts).topk(top_k, dim=-1).indices
    if drops:
        index = index.masked_fill(torch.rand(index.shape) < 0.2, -1)
    valid = torch.rand(lead) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    return Batch(logits, logits.softmax(-1), index, valid)


def balance(probs: Tensor, valid: Tensor | None = None) -> Tensor:
    """Balance of tokens that all choose the first expert."""
    return load_balance_loss(probs, torch.zeros(*probs.shape[:-1], 1, dtype=torch.int64), valid)


def diversity(weight: Tensor, valid: Tensor | None = None) -> Tensor:
    return expert_diversity_loss(weight)


OF_TOKENS = {
    "balance": balance,
    "cv_squared": cv_squared_loss,
    "z": router_z_loss,
    "entropy": router_entropy_loss,
}
every_token_loss = pytest.mark.parametrize("name", OF_TOKENS)
every_loss = pytest.mark.parametrize("loss", [*OF_TOKENS.values(), diversity])


# -- reference: the formulas, read aloud ----------------------------------------------------------


def tokens(valid: Tensor) -> list[tuple[int, ...]]:
    return [place for place in places(valid.shape) if valid[place]]


def naive_balance(case: Batch) -> float:
    real, experts = tokens(case.valid), case.probs.shape[-1]
    chosen = [int(e) for place in real for e in case.index[place] if e >= 0]
    total = 0.0
    for expert in range(experts):
        share = chosen.count(expert) / max(len(chosen), 1)
        total += share * sum(case.probs[place][expert].item() for place in real) / max(len(real), 1)
    return experts * total


def naive_cv_squared(case: Batch) -> float:
    experts = range(case.probs.shape[-1])
    sums = [sum(case.probs[place][e].item() for place in tokens(case.valid)) for e in experts]
    mean = sum(sums) / len(sums)
    if mean == 0:
        return 0.0
    return sum((amount - mean) ** 2 for amount in sums) / len(sums) / mean**2


def naive_z(case: Batch) -> float:
    real = tokens(case.valid)
    sums = [math.log(sum(math.exp(z) for z in case.logits[place].tolist())) for place in real]
    return sum(value**2 for value in sums) / max(len(real), 1)


def naive_entropy(case: Batch) -> float:
    real = tokens(case.valid)
    total = 0.0
    for place in real:
        total -= sum(p * math.log(p) for p in case.probs[place].tolist() if p > 0)
    return total / max(len(real), 1)


def naive_diversity(vectors: list[list[float]]) -> float:
    numbers = range(len(vectors))
    pairs = [(i, j) for i in numbers for j in numbers if i != j]
    return sum(cosine(vectors[i], vectors[j]) ** 2 for i, j in pairs) / max(len(pairs), 1)


def assert_number(got: Tensor, wanted: float) -> None:
    assert got.shape == ()
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


@given(batches())
@settings(max_examples=60)
def test_matches_naive_balance(case):
    assert_number(load_balance_loss(case.probs, case.index, case.valid), naive_balance(case))


@given(batches())
@settings(max_examples=60)
def test_matches_naive_cv_squared(case):
    assert_number(cv_squared_loss(case.probs, case.valid), naive_cv_squared(case))


@given(batches())
@settings(max_examples=60)
def test_matches_naive_z(case):
    assert_number(router_z_loss(case.logits, case.valid), naive_z(case))


@given(batches())
@settings(max_examples=60)
def test_matches_naive_entropy(case):
    assert_number(router_entropy_loss(case.probs, case.valid), naive_entropy(case))


@given(sizes, leads().filter(bool), seeds)
@few
def test_matches_naive_diversity(experts, shape, seed):
    torch.manual_seed(seed)
    weight = torch.randn(experts, *shape, dtype=torch.float64)
    wanted = naive_diversity(weight.flatten(1).tolist())
    assert_number(expert_diversity_loss(weight), wanted)


@given(batches())
@few
def test_no_mask_is_a_mask_of_ones(case):
    ones = torch.ones_like(case.valid)
    for name, loss in OF_TOKENS.items():
        values = case.logits if name == "z" else case.probs
        torch.testing.assert_close(loss(values), loss(values, ones))
    with_mask = load_balance_loss(case.probs, case.index, ones)
    torch.testing.assert_close(load_balance_loss(case.probs, case.index), with_mask)


# -- properties: padding --------------------------------------------------------------------------


@every_token_loss
@given(case=batches())
@few
def test_padding_of_nan_changes_neither_value_nor_gradient(name, case):
    loss, values = OF_TOKENS[name], case.logits if name == "z" else case.probs
    dirty = outcome(loss, with_nan(values, case.valid), case.valid)
    assert_same(dirty, outcome(loss, values, case.valid))
    (gradient,) = dirty[1]
    assert (gradient[~case.valid] == 0).all()


@every_token_loss
@given(case=batches())
@few
def test_padding_is_as_if_never_given(name, case):
    loss, values = OF_TOKENS[name], case.logits if name == "z" else case.probs
    torch.testing.assert_close(loss(values, case.valid), loss(values[case.valid]))


@given(batches(), seeds)
@few
def test_choices_of_padding_change_nothing(case, seed):
    torch.manual_seed(seed)
    other = torch.randint_like(case.index, case.probs.shape[-1])
    index = torch.where(case.valid.unsqueeze(-1), case.index, other)
    wanted = load_balance_loss(case.probs, case.index, case.valid)
    assert_same(load_balance_loss(case.probs, index, case.valid), wanted)


@every_token_loss
@pytest.mark.parametrize("fill", [0.5, math.nan])
def test_batch_of_padding_is_exactly_zero_and_stays_in_the_graph(name, fill):
    values = torch.full((2, 3, 4), fill, requires_grad=True)
    loss = OF_TOKENS[name](values, torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert (values.grad == 0).all()


@every_token_loss
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_no_tokens_give_zero(name, shape, masked):
    values = torch.zeros(shape, requires_grad=True)
    valid = torch.zeros(shape[:-1], dtype=torch.bool) if masked else None
    loss = OF_TOKENS[name](values, valid)
    loss.backward()
    assert loss == 0
    assert values.grad.shape == shape


@every_token_loss
def test_single_token_needs_no_leading_dimension(name):
    values = torch.rand(4, dtype=torch.float64).softmax(-1)
    loss = OF_TOKENS[name]
    torch.testing.assert_close(loss(values), loss(values.unsqueeze(0)))
    assert loss(values, torch.tensor(False)) == 0


# -- properties: balance --------------------------------------------------------------------------


@given(sizes, sizes, st.integers(1, 3))
@few
def test_uniform_load_gives_balance_one(experts, tokens_each, top_k):
    top_k = min(top_k, experts)
    start = torch.arange(experts * tokens_each).unsqueeze(-1)
    index = (start + torch.arange(top_k)) % experts
    probs = torch.rand(len(index), experts, dtype=torch.float64).softmax(-1)
    assert_number(load_balance_loss(probs, index), 1.0)


@given(batches())
@few
def test_uniform_probabilities_give_balance_one(case):
    uniform = torch.full_like(case.probs, 1 / case.probs.shape[-1])
    some = (case.valid.unsqueeze(-1) & (case.index >= 0)).any()
    assert_number(load_balance_loss(uniform, case.index, case.valid), float(some))


@given(batches(drops=False))
@few
def test_balance_is_at_most_experts_over_choices(case):
    bound = case.probs.shape[-1] / case.index.shape[-1]
    assert 0 <= load_balance_loss(case.probs, case.index, case.valid) <= bound + 1e-9


def test_collapse_gives_balance_of_experts_over_choices():
    probs = torch.tensor([0.5, 0.5, 0.0, 0.0]).expand(3, 4)
    assert load_balance_loss(probs, torch.tensor([[0, 1]] * 3)) == 2


def test_dropped_choice_is_no_choice():
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    loss = load_balance_loss(probs, torch.tensor([[0, -1], [1, 0]]))
    torch.testing.assert_close(loss, torch.tensor(2 * (2 / 3 * 0.625 + 1 / 3 * 0.375)))


def test_balance_without_any_choice_is_zero_and_stays_in_the_graph():
    probs = torch.full((3, 2), 0.5, requires_grad=True)
    loss = load_balance_loss(probs, torch.full((3, 1), -1))
    loss.backward()
    assert loss == 0
    assert (probs.grad == 0).all()


# -- properties: variation, logits, entropy -------------------------------------------------------


@given(batches(), st.floats(-3, 3))
@few
def test_cv_squared_does_not_depend_on_scale(case, exponent):
    loss = cv_squared_loss(case.probs, case.valid)
    torch.testing.assert_close(cv_squared_loss(10**exponent * case.probs, case.valid), loss)


@given(batches())
@few
def test_cv_squared_does_not_depend_on_the_order_of_experts(case):
    loss = cv_squared_loss(case.probs, case.valid)
    order = torch.randperm(case.probs.shape[-1])
    torch.testing.assert_close(cv_squared_loss(case.probs[..., order], case.valid), loss)


@given(sizes, sizes)
@few
def test_cv_squared_goes_from_even_to_one_busy_expert(rows, experts):
    assert_number(cv_squared_loss(torch.ones(rows, experts, dtype=torch.float64)), 0.0)
    busy = torch.eye(experts, dtype=torch.float64)[0].expand(rows, experts)
    assert_number(cv_squared_loss(busy), experts - 1.0)


@given(batches(), st.floats(-20, 20))
@few
def test_z_loss_is_never_negative_and_sees_a_shift_of_all_logits(case, shift):
    assert router_z_loss(case.logits, case.valid) >= 0
    normal = case.logits.log_softmax(-1)
    assert_number(router_z_loss(normal + shift), shift**2)


@given(batches())
@few
def test_entropy_lies_between_zero_and_log_of_experts(case):
    top = math.log(case.probs.shape[-1])
    assert 0 <= router_entropy_loss(case.probs, case.valid) <= top + 1e-9
    uniform = torch.full_like(case.probs, 1 / case.probs.shape[-1])
    assert_number(router_entropy_loss(uniform), top)


def test_entropy_of_a_sure_router_is_zero_with_a_finite_gradient():
    probs = torch.eye(3, requires_grad=True)
    loss = router_entropy_loss(probs)
    loss.backward()
    assert loss == 0
    assert probs.grad.isfinite().all()
    assert (probs.grad[probs == 0] == 0).all()


# -- properties: diversity ------------------------------------------------------------------------


@given(st.integers(2, 5), seeds)
@few
def test_diversity_of_orthogonal_experts_is_zero_and_never_negative(experts, seed):
    torch.manual_seed(seed)
    orthogonal = torch.linalg.qr(torch.randn(experts, experts)).Q
    loss = expert_diversity_loss(orthogonal)
    assert 0 <= loss < 1e-10
    assert expert_diversity_loss(torch.eye(experts, 7)) == 0


@given(st.integers(2, 5), sizes, seeds)
@few
def test_diversity_of_parallel_experts_is_one(experts, dim, seed):
    torch.manual_seed(seed)
    one = torch.randn(dim, dtype=torch.float64)
    scale = torch.randn(experts, 1, dtype=torch.float64)
    assert_number(expert_diversity_loss(scale * one), 1.0)


@given(st.integers(2, 5), seeds)
@few
def test_diversity_does_not_depend_on_length_or_order(experts, seed):
    torch.manual_seed(seed)
    weight = torch.randn(experts, 3, dtype=torch.float64)
    changed = (weight * torch.randn(experts, 1, dtype=torch.float64))[torch.randperm(experts)]
    torch.testing.assert_close(expert_diversity_loss(changed), expert_diversity_loss(weight))


def test_diversity_of_a_zero_vector_is_zero_with_a_finite_gradient():
    weight = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    loss = expert_diversity_loss(weight)
    loss.backward()
    assert loss == 0
    assert weight.grad.isfinite().all()


# -- one expert, precision, gradients, compile ----------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [(balance, 1.0), (cv_squared_loss, 0.0), (router_entropy_loss, 0.0), (diversity, 0.0)],
)
def test_one_expert_has_nobody_to_be_unlike(loss, wanted):
    one = torch.ones(3, 1) if loss is not diversity else torch.ones(1, 3)
    assert loss(one.requires_grad_()) == wanted
    loss(one).backward()
    assert one.grad.isfinite().all()


def test_one_expert_has_a_z_loss():
    torch.testing.assert_close(router_z_loss(torch.full((3, 1), 2.0)), torch.tensor(4.0))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(loss, dtype):
    values = torch.randn(6, 4).softmax(-1).to(dtype).requires_grad_()
    result = loss(values)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loss(values.detach().float()))
    result.backward()
    assert values.grad.dtype == dtype
    assert values.grad.isfinite().all()


@every_loss
def test_autocast_changes_nothing(loss):
    values = torch.randn(6, 4).softmax(-1)
    wanted = loss(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(loss(values), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [-6e4, 6e4])
def test_large_logits_stay_finite(dtype, size):
    logits = torch.tensor([[size, 0.0], [size, size], [0.0, size]], dtype=dtype)
    loss = router_z_loss(logits.requires_grad_())
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert router_entropy_loss(logits.detach().softmax(-1)).isfinite()


def test_forbidden_expert_does_not_spoil_the_z_loss():
    logits = torch.tensor([[1.0, -math.inf]], requires_grad=True)
    loss = router_z_loss(logits)
    loss.backward()
    assert loss == 1
    assert_same(logits.grad, torch.tensor([[2.0, 0.0]]))


@every_loss
@pytest.mark.parametrize("padded", [False, True])
def test_gradcheck(loss, padded):
    values = torch.rand(4, 3, dtype=torch.float64).add(0.1).requires_grad_()
    valid = torch.tensor([True, False, True, True]) if padded else None
    assert torch.autograd.gradcheck(lambda x: loss(x, valid), values)


@every_loss
@pytest.mark.parametrize("padded", [False, True])
def test_compiled_equals_eager(loss, padded):
    values = torch.randn(2, 3, 4).softmax(-1)
    valid = torch.tensor([[True, False, True], [True, True, False]]) if padded else None
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcome(compiled, values, valid), outcome(loss, values, valid))


@every_loss
def test_batched_over_a_dimension_equals_a_loop(loss):
    values = torch.randn(3, 5, 4).softmax(-1)
    wanted = torch.stack([loss(part) for part in values])
    torch.testing.assert_close(torch.vmap(loss)(values), wanted)


@pytest.mark.parametrize("loss", OF_TOKENS.values(), ids=OF_TOKENS)
@pytest.mark.parametrize("padded", [False, True])
def test_exported_for_any_number_of_tokens(loss, padded):
    class Block(torch.nn.Module):
        def forward(self, values: Tensor, valid: Tensor | None = None) -> Tensor:
            return loss(values, valid)

    def case(count: int) -> tuple[Tensor, Tensor | None]:
        return torch.randn(count, 4).softmax(-1), torch.rand(count) < 0.6 if padded else None

    tokens = {0: torch.export.Dim("tokens")}
    shapes = (tokens, tokens if padded else None)
    program = torch.export.export(Block(), case(6), dynamic_shapes=shapes).module()
    for count in (2, 9):
        inputs = case(count)
        torch.testing.assert_close(program(*inputs), loss(*inputs))


# -- errors ---------------------------------------------------------------------------------------


@every_token_loss
@pytest.mark.parametrize(
    ("valid", "message"),
    [
        (torch.ones(3), r"Expected valid of dtype torch\.bool, got torch\.float32\."),
        (torch.ones(2, dtype=torch.bool), r"Expected valid of shape \(3,\), got \(2,\)\."),
        (torch.ones(3, 4, dtype=torch.bool), r"Expected valid of shape \(3,\), got \(3, 4\)\."),
    ],
)
def test_rejects_a_bad_mask(name, valid, message):
    with pytest.raises(ValueError, match=message):
        OF_TOKENS[name](torch.ones(3, 4), valid)


@pytest.mark.parametrize("shape", [(2, 1), (3,), (1, 3, 1)])
def test_rejects_choices_of_other_tokens(shape):
    with pytest.raises(ValueError, match=r"Expected expert_index of shape \(3, K\), got "):
        load_balance_loss(torch.ones(3, 4), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("loss", [cv_squared_loss, router_z_loss, router_entropy_loss])
def test_rejects_a_number_without_experts(loss):
    with pytest.raises(ValueError, match=r"Expected \w+ of shape \(\.\.\., E\), got \(\)\."):
        loss(torch.tensor(1.0))


def test_rejects_experts_without_weights():
    message = r"Expected weight of shape \(\.\.\., E, D\), got \(3,\)\."
    with pytest.raises(ValueError, match=message):
        expert_diversity_loss(torch.ones(3))
