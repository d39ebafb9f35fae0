"""Tests for mmfuse.fusion.camoe."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import CategoryGuidedMoE
from mmfuse.testing import assert_block_contract
from mmfuse.types import Enrichment
from tests.outcomes import assert_same, drawn, outcome, places, static_shapes
from tests.strategies import sequences, sizes, with_nan

few = settings(max_examples=15)
small = st.integers(1, 3)
UNKNOWN = -100


class Case(NamedTuple):
    x: Tensor  # (..., L, M, D)
    present: Tensor  # (..., L, M)
    valid: Tensor  # (..., L)
    context: Tensor | None  # (..., L) or (..., L, C)

    @property
    def seen(self) -> Tensor:
        return self.present & self.valid.unsqueeze(-1)


@st.composite
def examples(draw: st.DrawFn, **fixed: Any) -> tuple[CategoryGuidedMoE, Case]:
    """The block in every configuration, and histories with categories in every form."""
    x, present, valid = draw(sequences(lead=st.sampled_from([(), (2,)]), num_modalities=small))
    categories, experts, hidden = draw(small), draw(small), draw(small)
    arguments = {
        **{name: draw(st.booleans()) for name in ("causal", "normalize", "shared_experts")},
        "reads": draw(st.sampled_from(["all", "own"])),
        "guidance": draw(st.sampled_from(["confidence", "difficulty"])),
        "reduction": draw(st.sampled_from(["mean", "sum"])),
        "pooling": draw(st.sampled_from(["max", "joint"])),
        "temperature": draw(st.sampled_from([0.5, 2.0])),
        **fixed,
    }
    *_, num_modalities, dim = x.shape
    block = CategoryGuidedMoE(
        dim, num_modalities, categories, experts, hidden_dim=hidden, **arguments
    )
    labels = torch.randint(categories, valid.shape).masked_fill(
        torch.rand(valid.shape) < 0.3, UNKNOWN
    )
    several = torch.rand(*valid.shape, categories) < 0.4
    return drawn(block), Case(x, present, valid, draw(st.sampled_from([labels, several, None])))


def run(block: CategoryGuidedMoE, case: Case, x: Tensor | None = None) -> Any:
    return outcome(block, case.x if x is None else x, *case[1::2], valid=case.valid)


# -- reference: the equations, read aloud ----------------------------------------------------------


def naive_gates(block: CategoryGuidedMoE, m: int, e: Tensor, seen: Tensor) -> Tensor:
    """Eq. 6-7 for one modality of one history."""
    router = block.mixture.routers[m]
    query, key, value = (e @ weight.T for weight in router.weight)
    gates = torch.zeros_like(value)
    for i in range(len(e)):
        others = range(i + 1) if router.causal else range(len(e))
        keys = [j for j in others if seen[j]] if seen[i] else []
        power = [torch.exp(query[i] @ key[j] / math.sqrt(router.num_experts)) for j in keys]
        for j, share in zip(keys, power, strict=True):
            gates[i] += share / sum(power) * value[j]
        if keys and router.normalize:
            gates[i] = gates[i].exp() / gates[i].exp().sum()
    return gates


def naive_experts(block: CategoryGuidedMoE, m: int, e: Tensor, gate: Tensor) -> Tensor:
    """Eq. 5 for one modality of one item."""
    bank = block.mixture.experts[0 if block.mixture.shared_experts else m]
    total = torch.zeros_like(e[0])
    read = e[m] if block.mixture.reads == "own" else torch.cat(list(e))
    for k in range(bank.num_experts):
        u = read @ bank.in_weight[k] + bank.in_bias[k]
        gelu = u * (1 + torch.erf(u / math.sqrt(2))) / 2
        total = total + gate[k] * (gelu @ bank.out_weight[k] + bank.out_bias[k])
    return total


def naive_delta(block: CategoryGuidedMoE, m: int, e: Tensor, labels: list[int]) -> Tensor:
    """Eq. 8-9 for one modality of one item."""
    gate = block.gate
    y_hat = torch.sigmoid(gate.weight[m] @ e + gate.bias[m])

    def cross_entropy(positive: list[int]) -> Tensor:
        terms = [y_hat[c] if c in positive else 1 - y_hat[c] for c in range(gate.num_categories)]
        total = -sum(torch.log(term) for term in terms)
        return total / gate.num_categories if gate.reduction == "mean" else total

    if gate.pooling == "joint":
        return cross_entropy(labels)
    return torch.stack([cross_entropy([label]) for label in labels]).max()


def labels_of(label: Tensor | None) -> list[int]:
    if label is None or label.ndim == 0:
        return [] if label is None or label == UNKNOWN else [int(label)]
    return label.nonzero().flatten().tolist()


def naive_weights(
    block: CategoryGuidedMoE, e: Tensor, seen: Tensor, labels: list[int]
) -> dict[int, Tensor]:
    """Eq. 10 for one item, over the modalities that are seen."""
    sign = {"difficulty": 1, "confidence": -1}[block.gate.guidance]
    power = {
        m: torch.exp(sign * naive_delta(block, m, e[m], labels) / block.gate.temperature)
        if labels
        else torch.ones(())
        for m in range(len(e))
        if seen[m]
    }
    return {m: share / sum(power.values()) for m, share in power.items()}


def naive_camoe(block: CategoryGuidedMoE, case: Case) -> tuple[Tensor, Tensor]:
    """Eq. 11: loop over histories, positions and modalities; what is not seen is zero."""
    enriched, weights = torch.zeros_like(case.x), torch.zeros_like(case.x[..., 0])
    for row in places(case.valid.shape[:-1]):
        seen = case.seen[row]
        e = case.x[row] * seen.unsqueeze(-1)
        gates = [naive_gates(block, m, e[:, m], seen[:, m]) for m in range(e.shape[1])]
        for i in range(len(e)):
            labels = labels_of(None if case.context is None else case.context[row][i])
            for m, w in naive_weights(block, e[i], seen[i], labels).items():
                weights[row][i, m] = w
                enriched[row][i, m] = e[i, m] + w * naive_experts(block, m, e[i], gates[m][i])
    return enriched, weights


@settings(max_examples=40)
@given(examples())
def test_matches_naive(example: tuple[CategoryGuidedMoE, Case]) -> None:
    block, case = example
    with torch.no_grad():
        x, weights, *_ = block(case.x, case.present, case.context, valid=case.valid)
        torch.testing.assert_close((x, weights), naive_camoe(block, case))


# -- properties ------------------------------------------------------------------------------------


@few
@given(examples())
def test_nan_where_nothing_is_seen_changes_nothing(example: tuple[CategoryGuidedMoE, Case]) -> None:
    block, case = example
    clean, spoilt = run(block, case), with_nan(case.x, case.seen)
    assert_same(run(block, case, spoilt), clean)
    with static_shapes():
        torch.testing.assert_close(run(block, case, spoilt), clean)


@few
@given(examples(causal=True))
def test_no_position_sees_a_later_one(example: tuple[CategoryGuidedMoE, Case]) -> None:
    block, case = example
    length = case.valid.shape[-1]
    before = block(case.x, case.present, case.context, valid=case.valid)
    for last in range(length):
        later = torch.arange(length) > last
        x = torch.where(later.reshape(-1, 1, 1), torch.randn_like(case.x), case.x)
        present = torch.where(later.unsqueeze(-1), ~case.present, case.present)
        valid = torch.where(later, ~case.valid, case.valid)
        context = None if case.context is None else case.context.clone()
        if context is not None:
            context[later.expand(valid.shape)] = 0
        after = block(x, present, context, valid=valid)
        torch.testing.assert_close(after.x[..., : last + 1, :, :], before.x[..., : last + 1, :, :])


@few
@given(examples(), sizes)
def test_padding_is_as_if_it_were_not_there(
    example: tuple[CategoryGuidedMoE, Case], padding: int
) -> None:
    """On the left as on the right, whatever its items are called."""
    block, case = example
    length, alone = case.valid.shape[-1], block(case.x, case.present, case.context)
    for first in (0, padding):
        place = slice(first, first + length)

        def padded(part: Tensor, filling: Any, place: slice = place) -> Tensor:
            axis = case.valid.ndim - 1
            shape = (*part.shape[:axis], length + padding, *part.shape[axis + 1 :])
            whole = torch.full(shape, filling, dtype=part.dtype)
            whole.movedim(axis, 0)[place] = part.movedim(axis, 0)
            return whole

        valid = padded(torch.ones_like(case.valid), False)
        context = None if case.context is None else padded(case.context, 0)
        x, weights, _, losses = block(
            padded(case.x, torch.nan), padded(case.present, True), context, valid=valid
        )
        real = (..., place, slice(None))
        torch.testing.assert_close((x[(*real, slice(None))], weights[real]), alone[:2])
        torch.testing.assert_close(losses, alone.losses)
        assert not x[~valid].any()


@few
@given(examples())
def test_unknown_categories_share_equally(example: tuple[CategoryGuidedMoE, Case]) -> None:
    block, case = example
    weights = block(case.x, case.present, valid=case.valid).weights
    share = 1 / case.seen.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(weights, case.seen * share.double())


@few
@given(examples(detach=True))
def test_detached_gate_moves_only_its_classifiers(example: tuple[CategoryGuidedMoE, Case]) -> None:
    block, case = example
    x = case.x.clone().requires_grad_()
    _, weights, _, losses = block(x, case.present, case.context, valid=case.valid)
    moved = [x, *block.mixture.parameters()]
    total = weights.cumsum(-1).square().sum() + losses["category"]
    assert not any(g.any() for g in torch.autograd.grad(total, moved, materialize_grads=True))
    assert total.requires_grad


@few
@given(examples())
def test_is_the_mixture_and_the_gate(example: tuple[CategoryGuidedMoE, Case]) -> None:
    """The weights, the router's choice and the losses of the parts come back unchanged."""
    block, (x, present, valid, context) = example
    enriched = block(x, present, context, valid=valid)
    gate = block.gate(x, present & valid.unsqueeze(-1), context)
    mixture = block.mixture(x, present, valid=valid)
    assert_same((enriched.weights, enriched.losses), tuple(gate))
    assert_same(enriched.router.expert_weight, mixture.router.expert_weight)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("num_experts", 3, "mixture.routers.1"),
        ("num_experts", 3, "mixture.experts.1"),
        ("hidden_dim", 5, "mixture.experts.1"),
        ("reads", "own", "mixture"),
        ("causal", False, "mixture.routers.1"),
        ("normalize", True, "mixture.routers.1"),
        ("shared_experts", True, "mixture"),
        ("top_k", 2, "mixture.routers.1"),
        ("guidance", "difficulty", "gate"),
        ("reduction", "sum", "gate"),
        ("pooling", "joint", "gate"),
        ("temperature", 2.0, "gate"),
        ("detach", True, "gate"),
    ],
)
def test_arguments_reach_the_parts(name: str, value: Any, part: str) -> None:
    block = CategoryGuidedMoE(4, 2, 3, dtype=torch.float64, device="meta", **{name: value})
    assert getattr(block.get_submodule(part), name) == value
    assert {(p.dtype, p.is_meta) for p in block.parameters()} == {(torch.float64, True)}


def test_a_linear_router_reaches_the_mixture() -> None:
    plain, block = CategoryGuidedMoE(4, 2, 3), CategoryGuidedMoE(4, 2, 3, router="linear")
    assert block.mixture.routers[0].weight.shape == (4, 4)
    assert plain.mixture.routers[0].weight.shape == (3, 4, 4)


def test_silent_experts_leave_the_streams_alone() -> None:
    block, x = CategoryGuidedMoE(4, 3, 5), torch.randn(2, 6, 3, 4)
    for bank in block.mixture.experts:
        torch.nn.init.zeros_(bank.out_weight)
    assert_same(block(x).x, x)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_nothing_to_see_gives_zeros(shape: tuple[int, int]) -> None:
    block, x = CategoryGuidedMoE(2, 3, 4), torch.zeros(*shape, 3, 2)
    labels = torch.zeros(shape, dtype=torch.int64)
    nowhere = torch.zeros(shape, dtype=torch.bool)
    outputs, gradients = outcome(block, with_nan(x, nowhere), None, labels, valid=nowhere)
    assert not any(part.any() for part in (*outputs, *gradients))


def test_reset_draws_everything_afresh() -> None:
    block = CategoryGuidedMoE(2, 3, 4)
    before = {name: value.clone() for name, value in block.named_parameters()}
    block.reset_parameters()
    same = {name for name, value in block.named_parameters() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.endswith("bias")}


def test_bfloat16_stays_bfloat16() -> None:
    block, x = CategoryGuidedMoE(3, 2, 4), torch.randn(2, 5, 2, 3)
    labels, valid = torch.arange(10).reshape(2, 5) % 4, torch.ones(2, 5, dtype=torch.bool)
    wanted, weights, *_ = block(x, None, labels, valid=valid)
    low = block.bfloat16()(x.bfloat16(), None, labels, valid=valid)
    torch.testing.assert_close(low.x, wanted.bfloat16(), rtol=0.1, atol=0.05)
    torch.testing.assert_close(low.weights, weights.bfloat16(), rtol=0.1, atol=0.01)


def test_is_an_enrichment() -> None:
    assert isinstance(CategoryGuidedMoE(3, 2, 4), Enrichment)


# -- gradients and contract ------------------------------------------------------------------------

VALID = torch.tensor([[False, True, True], [True, True, False]])
PRESENT = torch.tensor(
    [[[True, True], [True, False], [False, True]], [[False, False], [True, True], [True, True]]]
)
LABELS = torch.tensor([[0, 2, 1], [1, UNKNOWN, 2]])
SEVERAL = torch.tensor([[[1, 1, 0], [0, 1, 1], [1, 0, 0]], [[0, 0, 1], [0, 0, 0], [1, 1, 1]]]) > 0


def test_gradcheck() -> None:
    block = drawn(CategoryGuidedMoE(1, 2, 3, 2, hidden_dim=1))
    x = torch.randn(2, 3, 2, 1, dtype=torch.float64, requires_grad=True)

    def of_all(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        enriched, _, _, losses = block(x, PRESENT, LABELS, valid=VALID)
        return enriched, losses["category"]

    assert torch.autograd.gradcheck(of_all, (x, *block.parameters()), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "present", "context", "valid"),
    [
        ({"guidance": "difficulty", "reduction": "sum"}, None, LABELS, None),
        ({"shared_experts": True, "pooling": "joint", "detach": True}, PRESENT, SEVERAL, VALID),
    ],
)
def test_contract(
    arguments: dict[str, Any], present: Tensor | None, context: Tensor, valid: Tensor | None
) -> None:
    block, x = CategoryGuidedMoE(4, 2, 3, 2, **arguments), torch.randn(2, 3, 2, 4)
    x = x if present is None else with_nan(x, present)
    assert_block_contract(block, x, present, context, keywords={"valid": valid})


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, r"Expected dim > 0, got 0\."),
        ({"num_modalities": 0}, r"Expected num_modalities > 0, got 0\."),
        ({"num_categories": 0}, r"Expected num_categories > 0, got 0\."),
        ({"num_experts": 0}, r"Expected num_experts > 0, got 0\."),
        ({"hidden_dim": 0}, r"Expected hidden_dim > 0, got 0\."),
        ({"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        ({"guidance": "x"}, r"guidance to be one of 'confidence', 'difficulty', got 'x'\."),
        ({"reduction": "x"}, r"Expected reduction to be one of 'mean', 'sum', got 'x'\."),
        ({"pooling": "x"}, r"Expected pooling to be one of 'max', 'joint', got 'x'\."),
    ],
)
def test_rejects_bad_hyperparameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoryGuidedMoE(**{"dim": 4, "num_modalities": 2, "num_categories": 3, **arguments})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(2, 4)}, r"Expected x of shape \(\.\.\., L, 2, 4\), got \(2, 4\)\."),
        ({"present": VALID}, r"Expected present of shape \(2, 3, 2\), got \(2, 3\)\."),
        ({"valid": PRESENT}, r"Expected valid of shape \(2, 3\), got \(2, 3, 2\)\."),
        ({"valid": VALID.int()}, r"Expected valid of dtype torch\.bool, got torch\.int32\."),
        (
            {"context": LABELS[0]},
            r"Expected context of shape \(2, 3\) .*, got \(3,\) and torch\.int",
        ),
    ],
)
def test_rejects_inputs_that_do_not_fit(changed: dict[str, Tensor], message: str) -> None:
    inputs = {"x": torch.zeros(2, 3, 2, 4), "context": LABELS}
    with pytest.raises(ValueError, match=message):
        CategoryGuidedMoE(4, 2, 3)(**{**inputs, **changed})


def test_repr() -> None:
    text = str(CategoryGuidedMoE(4, 2, 3, guidance="difficulty"))
    mixture = "num_modalities=2, reads='all', shared_experts=False"
    assert f"(mixture): AttentiveMoE(\n    {mixture}\n" in text
    assert "(gate): CategoryGuidedGate(dim=4, num_modalities=2, num_categories=3, guidance" in text
