"""Tests for mmfuse.gating.category."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmfuse import CategoryGuidedGate
from mmfuse.gating import UNKNOWN, category_discrepancy
from mmfuse.testing import assert_block_contract
from mmfuse.types import Gate
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import sizes, streams, with_nan

few = settings(max_examples=25)
many = settings(max_examples=80)
words = {
    "guidance": st.sampled_from(["confidence", "difficulty"]),
    "reduction": st.sampled_from(["mean", "sum"]),
    "pooling": st.sampled_from(["max", "joint"]),
    "temperature": st.sampled_from([0.5, 1.0, 3.0]),
}
options = st.fixed_dictionaries(words)


class Case(NamedTuple):
    x: Tensor  # (..., M, D)
    present: Tensor  # (..., M)
    context: Tensor | None  # (...) or (..., C)
    num_categories: int


@st.composite
def cases(draw: st.DrawFn, kinds: Collection[str] = ("labels", "bool", "float", "none")) -> Case:
    """Streams with categories in each form; some items have none."""
    x, present = draw(streams())
    num_categories, kind = draw(sizes), draw(st.sampled_from(sorted(kinds)))
    lead = x.shape[:-2]
    labels = torch.randint(num_categories, lead).masked_fill(torch.rand(lead) < 0.3, UNKNOWN)
    several = torch.rand(*lead, num_categories) < 0.4
    context = {"labels": labels, "bool": several, "float": several.float(), "none": None}[kind]
    return Case(x, present, context, num_categories)


def gate_for(case: Case, **arguments: Any) -> CategoryGuidedGate:
    *_, num_modalities, dim = case.x.shape
    return drawn(CategoryGuidedGate(dim, num_modalities, case.num_categories, **arguments))


def labels_of(case: Case, item: tuple[int, ...]) -> list[int]:
    if case.context is None:
        return []
    label = case.context[item]
    if label.ndim == 0:
        return [] if label == UNKNOWN else [int(label)]
    return [c for c, y in enumerate(label) if y]


# -- reference: the formulas, read aloud -----------------------------------------------------------


def cross_entropy(logits: list[float], labels: Collection[int], reduction: str) -> float:
    """Eq. 9, category by category."""
    delta = 0.0
    for c, z in enumerate(logits):
        y, y_hat = float(c in labels), 1 / (1 + math.exp(-z))
        delta -= y * math.log(y_hat) + (1 - y) * math.log(1 - y_hat)
    return delta / len(logits) if reduction == "mean" else delta


def naive_discrepancy(
    logits: list[float], labels: Collection[int], reduction: str, pooling: str
) -> float:
    if pooling == "joint" or not labels:
        return cross_entropy(logits, labels, reduction)
    return max(cross_entropy(logits, {label}, reduction) for label in labels)


def naive_gate(gate: CategoryGuidedGate, case: Case) -> tuple[Tensor, float]:
    """Eq. 8-10, item by item and modality by modality."""
    weights, deltas = torch.zeros_like(case.x[..., 0]), []
    sign = {"difficulty": 1, "confidence": -1}[gate.guidance]
    for item in places(case.x.shape[:-2]):
        labels, power = labels_of(case, item), {}
        for m in range(case.x.shape[-2]):
            if not case.present[item][m]:
                continue
            power[m] = 1.0
            if labels:
                logits = (gate.weight[m] @ case.x[item][m] + gate.bias[m]).tolist()
                delta = naive_discrepancy(logits, labels, gate.reduction, gate.pooling)
                power[m] = math.exp(sign * delta / gate.temperature)
                deltas.append(delta)
        for m, share in power.items():
            weights[item][m] = share / sum(power.values())
    return weights, sum(deltas) / max(len(deltas), 1)


@many
@given(cases(), options)
def test_matches_naive(case: Case, options: dict[str, Any]) -> None:
    gate = gate_for(case, **options)
    weights, losses = gate(case.x, case.present, case.context)
    wanted, loss = naive_gate(gate, case)
    torch.testing.assert_close(weights, wanted)
    torch.testing.assert_close(losses, {"category": torch.tensor(loss, dtype=torch.float64)})


@few
@given(cases(["bool"]), words["reduction"], words["pooling"])
def test_discrepancy_matches_naive(case: Case, reduction: str, pooling: str) -> None:
    logits = gate_for(case).weight.new_ones(*case.x.shape[:-1], case.num_categories).normal_()
    delta = category_discrepancy(logits, case.context, reduction=reduction, pooling=pooling)
    for *item, m in places(delta.shape):
        labels = labels_of(case, tuple(item))
        wanted = naive_discrepancy(logits[(*item, m)].tolist(), labels, reduction, pooling)
        assert delta[(*item, m)].item() == pytest.approx(wanted)


# -- properties of the discrepancy -----------------------------------------------------------------


@few
@given(cases(["bool"]), words["reduction"])
def test_joint_is_binary_cross_entropy_with_logits(case: Case, reduction: str) -> None:
    logits = torch.randn(*case.x.shape[:-1], case.num_categories, dtype=torch.float64)
    targets = case.context.unsqueeze(-2).expand_as(logits).double()
    wanted = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    delta = category_discrepancy(logits, case.context, reduction=reduction, pooling="joint")
    torch.testing.assert_close(delta, getattr(wanted, reduction)(-1))


def test_one_label_has_nothing_to_pool() -> None:
    logits, labels = torch.randn(5, 3, 4), torch.eye(5, 4) > 0
    by_max = category_discrepancy(logits, labels, pooling="max")
    torch.testing.assert_close(by_max, category_discrepancy(logits, labels, pooling="joint"))


def test_max_is_the_discrepancy_to_the_label_that_is_predicted_worst() -> None:
    logits = torch.tensor([[3.0, -2.0, 1.0]])
    both, worst = torch.tensor([True, True, False]), torch.tensor([False, True, False])
    assert_same(category_discrepancy(logits, both), category_discrepancy(logits, worst))


@pytest.mark.parametrize("pooling", ["max", "joint"])
def test_huge_logits_stay_finite(pooling: str) -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    delta = category_discrepancy(logits, torch.tensor([True, False]), pooling=pooling)
    assert_same(delta.detach(), torch.tensor([0.0, 1e4]))
    delta.sum().backward()
    assert_same(logits.grad, torch.tensor([[0.0, 0.0], [-0.5, 0.5]]))


# -- properties of the gate ------------------------------------------------------------------------


@many
@given(cases(), options)
def test_weights_are_a_distribution_over_what_is_present(
    case: Case, options: dict[str, Any]
) -> None:
    weights = gate_for(case, **options)(case.x, case.present, case.context).weights
    torch.testing.assert_close(weights.sum(-1), case.present.any(-1).double())
    assert (weights[~case.present] == 0).all()


@few
@given(cases(), options, st.booleans())
def test_nan_where_absent_changes_nothing(
    case: Case, options: dict[str, Any], detach: bool
) -> None:
    gate = gate_for(case, detach=detach, **options)
    spoilt = outcome(gate, with_nan(case.x, case.present), case.present, case.context)
    assert_same(spoilt, outcome(gate, case.x, case.present, case.context))


@few
@given(cases(), options)
def test_dropping_is_masking(case: Case, options: dict[str, Any]) -> None:
    gate = gate_for(case, **options)
    present = torch.arange(case.x.shape[-2]) > 0
    masked = gate(case.x, present.expand(case.x.shape[:-1]), case.context)
    if present.any():
        gate.num_modalities -= 1
        gate.weight, gate.bias = (torch.nn.Parameter(p[1:]) for p in (gate.weight, gate.bias))
        dropped = gate(case.x[..., 1:, :], None, case.context)
        torch.testing.assert_close(masked.weights[..., 1:], dropped.weights)
        torch.testing.assert_close(masked.losses, dropped.losses)


@few
@given(cases(), options)
def test_permuting_modalities_permutes_weights(case: Case, options: dict[str, Any]) -> None:
    gate, order = gate_for(case, **options), torch.randperm(case.x.shape[-2])
    weights, losses = gate(case.x, case.present, case.context)
    gate.weight, gate.bias = (torch.nn.Parameter(p[order]) for p in (gate.weight, gate.bias))
    permuted = gate(case.x[..., order, :], case.present[..., order], case.context)
    torch.testing.assert_close(permuted.weights, weights[..., order])
    torch.testing.assert_close(permuted.losses, losses)


@few
@given(cases(["labels"]), options)
def test_each_form_of_the_categories_says_the_same(case: Case, options: dict[str, Any]) -> None:
    gate = gate_for(case, **options)
    rows = F.one_hot(case.context.clamp(min=0), case.num_categories)
    several = rows * (case.context != UNKNOWN).unsqueeze(-1)
    wanted = outcome(gate, case.x, case.present, case.context)
    for dtype in (torch.bool, torch.uint8, torch.float64):
        assert_same(outcome(gate, case.x, case.present, several.to(dtype)), wanted)


@few
@given(cases(["none"]), options)
def test_unknown_categories_give_equal_weights_and_no_loss(
    case: Case, options: dict[str, Any]
) -> None:
    gate = gate_for(case, **options)
    lead = case.x.shape[:-2]
    unknown = outcome(gate, case.x, case.present, None)
    (weights, loss), gradients = unknown
    share = 1 / case.present.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(weights, case.present * share.double())
    assert_same(loss.item(), 0.0)
    assert not any(gradient.any() for gradient in gradients)
    for context in (torch.full(lead, UNKNOWN), torch.zeros(*lead, case.num_categories)):
        assert_same(outcome(gate, case.x, case.present, context), unknown)


def test_confidence_prefers_whom_difficulty_neglects() -> None:
    """The first modality is sure of category 0, the second of category 1."""
    x = torch.eye(2).expand(2, 2, 2)
    labels = torch.tensor([0, 1])
    for guidance, right in (("confidence", True), ("difficulty", False)):
        gate = CategoryGuidedGate(2, 2, 2, guidance=guidance)
        torch.nn.init.zeros_(gate.bias)
        with torch.no_grad():
            gate.weight.copy_(torch.tensor([[[5.0, 0.0], [-5.0, 0.0]], [[0.0, -5.0], [0.0, 5.0]]]))
        weights = gate(x, None, labels).weights
        assert_same(weights > 0.9, torch.eye(2, dtype=torch.bool) == right)


def test_mean_forgets_how_many_categories_there_are() -> None:
    """Twice the same categories change the sum and leave the mean."""
    x, labels = torch.randn(5, 2, 3), torch.rand(5, 4) < 0.5
    for reduction in ("mean", "sum"):
        once = CategoryGuidedGate(3, 2, 4, reduction=reduction, pooling="joint")
        twice = CategoryGuidedGate(3, 2, 8, reduction=reduction, pooling="joint")
        twice.weight.data = once.weight.data.repeat(1, 2, 1)
        same = torch.isclose(
            twice(x, None, labels.repeat(1, 2)).losses["category"],
            once(x, None, labels).losses["category"],
        )
        assert same == (reduction == "mean")


def test_high_temperature_tends_to_equal_weights() -> None:
    gate = CategoryGuidedGate(3, 4, 5, temperature=1e8)
    weights = gate(torch.randn(6, 4, 3), None, torch.arange(6) % 5).weights
    torch.testing.assert_close(weights, torch.full((6, 4), 0.25))


@few
@given(cases(["labels"]), options)
def test_detach_leaves_the_embeddings_alone(case: Case, options: dict[str, Any]) -> None:
    inputs = case.present, case.context
    attached, detached = gate_for(case, **options), gate_for(case, detach=True, **options)
    detached.load_state_dict(attached.state_dict())
    wanted, (_, *of_classifiers) = outcome(attached, case.x, *inputs)
    got, (of_embeddings, *of_detached) = outcome(detached, case.x, *inputs)
    assert_same(got, wanted)
    assert_same(of_detached, of_classifiers)
    assert_same(of_embeddings, torch.zeros_like(case.x))


@few
@given(cases(), options)
def test_none_means_all_present(case: Case, options: dict[str, Any]) -> None:
    gate, every = gate_for(case, **options), torch.ones_like(case.present)
    torch.testing.assert_close(
        outcome(gate, case.x, None, case.context), outcome(gate, case.x, every, case.context)
    )


def test_an_empty_batch_stays_empty() -> None:
    gate, labels = CategoryGuidedGate(3, 2, 4), torch.zeros(0, dtype=torch.int64)
    weights, losses = gate(torch.zeros(0, 2, 3), torch.ones(0, 2, dtype=torch.bool), labels)
    assert_same((weights, losses["category"].item()), (torch.zeros(0, 2), 0.0))


def test_bfloat16_stays_bfloat16_and_its_loss_is_float32() -> None:
    gate, x, present = CategoryGuidedGate(3, 4, 5), torch.randn(6, 4, 3), torch.rand(6, 4) < 0.6
    wanted = gate(x, present, torch.arange(6) % 5)
    weights, losses = gate.bfloat16()(x.bfloat16(), present, torch.arange(6) % 5)
    torch.testing.assert_close(weights, wanted.weights.bfloat16(), rtol=0.05, atol=0.01)
    torch.testing.assert_close(losses, wanted.losses, rtol=0.05, atol=0.01)


def test_is_a_gate() -> None:
    assert isinstance(CategoryGuidedGate(3, 2, 4), Gate)


# -- gradients and contract ------------------------------------------------------------------------

MIXED = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
LABELS = torch.tensor([3, 1, UNKNOWN])
SEVERAL = torch.tensor([[True, True, False, False], [False] * 4, [True, False, True, True]])


@pytest.mark.parametrize(
    ("guidance", "pooling", "context"),
    [
        ("confidence", "max", LABELS),
        ("difficulty", "max", SEVERAL),
        ("confidence", "joint", SEVERAL),
    ],
)
def test_gradcheck(guidance: Any, pooling: Any, context: Tensor) -> None:
    gate = drawn(CategoryGuidedGate(2, 3, 4, guidance=guidance, pooling=pooling))
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        weights, losses = gate(x, MIXED, context)
        return weights, losses["category"]

    assert torch.autograd.gradcheck(run, (x, *gate.parameters()))


@pytest.mark.parametrize(
    ("arguments", "present", "context"),
    [
        ({}, None, LABELS),
        ({"guidance": "difficulty", "reduction": "sum", "temperature": 2.0}, MIXED, LABELS),
        ({"pooling": "joint", "detach": True}, MIXED, SEVERAL),
        ({"detach": True}, MIXED, SEVERAL.float()),
    ],
)
def test_contract(arguments: dict[str, Any], present: Tensor | None, context: Tensor) -> None:
    x = torch.randn(3, 3, 2)
    x = x if present is None else with_nan(x, present)
    assert_block_contract(CategoryGuidedGate(2, 3, 4, **arguments), x, present, context)


def test_parameters_have_the_wanted_dtype_and_device() -> None:
    block = CategoryGuidedGate(2, 3, 4, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.is_meta) for p in block.parameters()} == {(torch.float64, True)}


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, r"Expected dim > 0, got 0\."),
        ({"num_modalities": 0}, r"Expected num_modalities > 0, got 0\."),
        ({"num_categories": 0}, r"Expected num_categories > 0, got 0\."),
        ({"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        ({"guidance": "x"}, r"guidance to be one of 'confidence', 'difficulty', got 'x'\."),
        ({"reduction": "x"}, r"Expected reduction to be one of 'mean', 'sum', got 'x'\."),
        ({"pooling": "x"}, r"Expected pooling to be one of 'max', 'joint', got 'x'\."),
    ],
)
def test_rejects_bad_hyperparameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoryGuidedGate(**{"dim": 2, "num_modalities": 3, "num_categories": 4, **arguments})


@pytest.mark.parametrize(
    ("x", "present", "context", "message"),
    [
        ((3, 2, 2), None, LABELS, r"Expected x of shape \(\.\.\., 3, 2\), got \(3, 2, 2\)\."),
        ((3, 3, 2), MIXED[:2], LABELS, r"present of shape \(3, 3\), got \(2, 3\)\."),
        ((3, 3, 2), MIXED.int(), LABELS, r"present of dtype torch\.bool, got torch\.int32\."),
        ((3, 3, 2), None, LABELS[:2], r"Expected context of shape \(3,\) and .*, got \(2,\) and"),
        ((3, 3, 2), None, LABELS.int(), r"torch\.int64, .*, got \(3,\) and torch\.int32\."),
        ((3, 3, 2), None, SEVERAL[:, :3], r"multi-hot of shape \(3, 4\), got \(3, 3\) and"),
    ],
)
def test_rejects_inputs_that_do_not_fit(
    x: tuple[int, ...], present: Tensor | None, context: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CategoryGuidedGate(2, 3, 4)(torch.zeros(x), present, context)


@pytest.mark.parametrize(
    ("shape", "labels", "arguments", "message"),
    [
        ((4,), SEVERAL, {}, r"Expected logits of shape \(\.\.\., M, C\), got \(4,\)\."),
        ((2, 3, 4), SEVERAL, {}, r"Expected labels of shape \(2, 4\), got \(3, 4\)\."),
        ((3, 3, 4), SEVERAL.int(), {}, r"labels of dtype torch\.bool, got torch\.int32\."),
        ((3, 3, 4), SEVERAL, {"reduction": "max"}, r"'mean', 'sum', got 'max'\."),
        ((3, 3, 4), SEVERAL, {"pooling": "mean"}, r"'max', 'joint', got 'mean'\."),
    ],
)
def test_discrepancy_rejects_what_does_not_fit(
    shape: tuple[int, ...], labels: Tensor, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        category_discrepancy(torch.zeros(shape), labels, **arguments)


def test_repr() -> None:
    wanted = "CategoryGuidedGate(dim=2, num_modalities=3, num_categories=4, guidance='difficulty')"
    assert str(CategoryGuidedGate(2, 3, 4, guidance="difficulty")) == wanted


def test_autocast_does_not_touch_the_gate():
    gate, x, labels = CategoryGuidedGate(8, 3, 4), torch.randn(5, 3, 8), torch.arange(5) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights, losses = gate(x, context=labels)
    expected = gate(x, context=labels)
    assert torch.equal(weights, expected.weights)
    assert torch.equal(losses["category"], expected.losses["category"])


def test_multi_hot_labels_of_any_dtype_say_the_same():
    gate, x = CategoryGuidedGate(2, 3, 4), torch.randn(3, 3, 2)
    expected = gate(x, context=SEVERAL).weights
    for dtype in (torch.int64, torch.float32, torch.uint8):
        assert torch.equal(gate(x, context=SEVERAL.to(dtype)).weights, expected)
