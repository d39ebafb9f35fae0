"""Tests for mmfuse.experts.experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import Experts
from mmfuse.testing import assert_block_contract
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import leads, seeds, sizes

few = settings(max_examples=25)

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda u: u * (1 + math.erf(u / math.sqrt(2))) / 2,
    "relu": lambda u: max(u, 0.0),
    "silu": lambda u: u / (1 + math.exp(-u)),
}


@st.composite
def banks(draw: st.DrawFn) -> Experts:
    """A bank of any size and kind, its biases drawn too."""
    torch.manual_seed(draw(seeds))
    bias, activation = draw(st.booleans()), draw(st.sampled_from(sorted(ACTIVATIONS)))
    bank_sizes = [draw(sizes) for _ in range(4)]
    return drawn(Experts(*bank_sizes, activation=activation, bias=bias))


def tokens(bank: Experts, *lead: int) -> tuple[Tensor, Tensor]:
    """Tokens, and weights of any sign and sum."""
    x = torch.randn(*lead, bank.dim, dtype=torch.float64)
    return x, torch.randn(*lead, bank.num_experts, dtype=torch.float64)


# -- reference: the formula, read aloud ------------------------------------------------------------


def naive_expert(bank: Experts, k: int, x: Tensor) -> Tensor:
    """One network, one token."""
    hidden = x @ bank.in_weight[k]
    if bank.in_bias is not None:
        hidden = hidden + bank.in_bias[k]
    hidden = hidden.new_tensor([ACTIVATIONS[bank.activation](u) for u in hidden.tolist()])
    output = hidden @ bank.out_weight[k]
    return output if bank.out_bias is None else output + bank.out_bias[k]


def naive(bank: Experts, x: Tensor, expert_weight: Tensor) -> Tensor:
    """Loop over tokens and experts."""
    y = torch.zeros(*x.shape[:-1], bank.out_dim, dtype=x.dtype)
    for token in places(x.shape[:-1]):
        for k in range(bank.num_experts):
            y[token] += expert_weight[token][k] * naive_expert(bank, k, x[token])
    return y


@few
@given(banks(), leads())
def test_matches_naive(bank: Experts, lead: tuple[int, ...]) -> None:
    x, weight = tokens(bank, *lead)
    torch.testing.assert_close(bank(x, weight), naive(bank, x, weight))


# -- properties ------------------------------------------------------------------------------------


@few
@given(banks())
def test_linear_in_the_weights(bank: Experts) -> None:
    (x, one), (_, other) = tokens(bank, 5), tokens(bank, 5)
    mixed = bank(x, 2 * one - 3 * other)
    torch.testing.assert_close(mixed, 2 * bank(x, one) - 3 * bank(x, other))


@few
@given(banks())
def test_weight_zero_silences_an_expert(bank: Experts) -> None:
    x, weight = tokens(bank, 5)
    before = bank(x, weight.index_fill(-1, torch.tensor([0]), 0.0))
    for parameter in bank.parameters():
        parameter.data[0] = 1e6
    assert_same(bank(x, weight.index_fill(-1, torch.tensor([0]), 0.0)), before)


@few
@given(banks())
def test_the_order_of_experts_does_not_matter(bank: Experts) -> None:
    (x, weight), order = tokens(bank, 5), torch.randperm(bank.num_experts)
    before = bank(x, weight)
    for parameter in bank.parameters():
        parameter.data = parameter.data[order]
    torch.testing.assert_close(bank(x, weight[:, order]), before)


@few
@given(banks())
def test_several_routers_share_a_bank(bank: Experts) -> None:
    x, weight = tokens(bank, 5, 3)
    together = bank(x[:, :1], weight)
    apart = [bank(x[:, 0], weight[:, m]) for m in range(3)]
    torch.testing.assert_close(together, torch.stack(apart, 1))


@few
@given(banks())
def test_tokens_do_not_look_at_each_other(bank: Experts) -> None:
    x, weight = tokens(bank, 4)
    kept = torch.tensor([True, False, True, True])
    torch.testing.assert_close(bank(x[kept], weight[kept]), bank(x, weight)[kept])


def test_no_tokens_are_no_work() -> None:
    bank = Experts(3, 4, 5, 2)
    output, gradients = outcome(bank, torch.zeros(0, 4), torch.zeros(0, 3))
    assert_same(output, [torch.zeros(0, 2)])
    assert not any(gradient.any() for gradient in gradients)


def test_each_expert_is_drawn_by_itself() -> None:
    """Xavier by the widths of one expert, not of the stack."""
    bank = Experts(64, 8, 16)
    for weight in (bank.in_weight, bank.out_weight):
        assert weight.abs().max() <= math.sqrt(6 / (8 + 16))
        assert weight.var().item() == pytest.approx(2 / (8 + 16), rel=0.1)
    assert not bank.in_bias.any()
    assert not bank.out_bias.any()


def test_bfloat16_stays_bfloat16() -> None:
    bank = Experts(3, 4, 5)
    x, weight = torch.randn(6, 4), torch.randn(6, 3)
    wanted = bank(x, weight).bfloat16()
    y = bank.bfloat16()(x.bfloat16(), weight.bfloat16())
    torch.testing.assert_close(y, wanted, rtol=0.1, atol=0.05)


# -- gradients and contract ------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias: bool) -> None:
    bank = drawn(Experts(2, 2, 3, bias=bias))
    x, weight = (part.requires_grad_() for part in tokens(bank, 2))
    assert torch.autograd.gradcheck(lambda x, g, *_: bank(x, g), (x, weight, *bank.parameters()))


@pytest.mark.parametrize("arguments", [{}, {"activation": "silu", "bias": False, "out_dim": 2}])
def test_contract(arguments: dict[str, Any]) -> None:
    bank = Experts(3, 4, 5, **arguments)
    assert_block_contract(bank, torch.randn(2, 6, 4), torch.randn(2, 6, 3))


def test_parameters_have_the_wanted_dtype_and_device() -> None:
    block = Experts(2, 3, 4, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.is_meta) for p in block.parameters()} == {(torch.float64, True)}


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 0}, r"Expected num_experts > 0, got 0\."),
        ({"dim": 0}, r"Expected dim > 0, got 0\."),
        ({"hidden_dim": 0}, r"Expected hidden_dim > 0, got 0\."),
        ({"out_dim": 0}, r"Expected out_dim > 0, got 0\."),
        ({"activation": "x"}, r"activation to be one of 'gelu', 'relu', 'silu', got 'x'\."),
    ],
)
def test_rejects_bad_hyperparameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experts(**{"num_experts": 2, "dim": 3, "hidden_dim": 4, **arguments})


def test_rejects_bad_shapes() -> None:
    bank = Experts(2, 3, 4)
    with pytest.raises(ValueError, match=r"Expected x of shape \(\.\.\., 3\), got \(5, 4\)\."):
        bank(torch.zeros(5, 4), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"expert_weight of shape \(\.\.\., 2\), got \(5, 3\)\."):
        bank(torch.zeros(5, 3), torch.zeros(5, 3))


def test_repr() -> None:
    wanted = "Experts(num_experts=2, dim=3, hidden_dim=4, out_dim=5, activation='relu')"
    assert str(Experts(2, 3, 4, 5, activation="relu")) == wanted
