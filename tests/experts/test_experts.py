"""Tests for mmfuse.experts.experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import Experts
from mmfuse._activation import ACTIVATIONS as LIBRARY
from mmfuse.experts import expert_rows
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


# -- chosen experts --------------------------------------------------------------------------------

BACKENDS = ("dense", "loop", "grouped")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
wide_or_odd = pytest.mark.parametrize("widths", [(8, 16, 8), (3, 5, 2)], ids=["even", "odd"])
SMOOTH = ("geglu", "gelu", "silu", "swiglu")  # rounding moves no derivative by a jump
LAYOUTS = ("plain", "transposed", "strided", "expanded")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A tensor of the same shape that lies in memory in another way."""
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "strided":
        return x.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    return x[:1].expand_as(x) if layout == "expanded" else x


def chosen(bank: Experts, tokens: int, top_k: int, lowest: int = 0) -> tuple[Tensor, ...]:
    """Tokens, weights and any experts, some of them twice; -1 too, if that is the lowest."""
    index = torch.randint(lowest, bank.num_experts, (tokens, top_k))
    dtype = bank.in_weight.dtype
    return torch.randn(tokens, bank.dim).to(dtype), torch.randn(tokens, top_k).to(dtype), index


def naive_choice(bank: Experts, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Loop over tokens and their choices."""
    rows = []
    for token, gates, picks in zip(x, weight, index.tolist(), strict=True):
        y = token.new_zeros(bank.out_dim)
        for gate, k in zip(gates, picks, strict=True):
            if k < 0:
                continue
            hidden = token @ bank.in_weight[k]
            hidden = hidden if bank.in_bias is None else hidden + bank.in_bias[k]
            output = LIBRARY[bank.activation].forward(hidden) @ bank.out_weight[k]
            y = y + gate * (output if bank.out_bias is None else output + bank.out_bias[k])
        rows.append(y)
    return torch.stack(rows)


def values_and_gradients(
    bank: Experts,
    x: Tensor,
    weight: Tensor,
    index: Tensor | None,
    function: Callable[..., Tensor] | None = None,
) -> list[Tensor]:
    """The output, then the gradients of tokens, weights and parameters for a random mean of it."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = bank(x, weight, index) if function is None else function(bank, x, weight, index)
    draw = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    total = (y * draw).sum() / max(len(x), 1)
    leaves = [x, weight, *bank.parameters()]
    got = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [y.detach(), *got]


def each(bank: Experts, *inputs: Any) -> dict[str, list[Tensor]]:
    """The same bank with every backend."""
    results = {}
    for backend in BACKENDS:
        bank.backend = backend
        results[backend] = values_and_gradients(bank, *inputs)
    return results


def biased(bank: Experts) -> Experts:
    """With biases that are not zero."""
    for bias in (bank.in_bias, bank.out_bias):
        if bias is not None:
            torch.nn.init.normal_(bias)
    return bank


@settings(max_examples=60)
@given(
    seed=seeds,
    tokens=st.integers(0, 40),
    widths=st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 3),
    num_experts=st.integers(1, 5),
    top_k=st.integers(1, 5),
    activation=st.sampled_from(sorted(LIBRARY)),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    lowest=st.sampled_from([-1, 0]),
    layout=st.sampled_from(LAYOUTS),
)
def test_all_backends_give_the_numbers_of_the_loop(
    seed: int,
    tokens: int,
    widths: tuple[int, int, int],
    num_experts: int,
    top_k: int,
    activation: str,
    bias: bool,
    dtype: torch.dtype,
    lowest: int,
    layout: str,
) -> None:
    torch.manual_seed(seed)
    bank = biased(Experts(num_experts, *widths, activation=activation, bias=bias, dtype=dtype))
    x, weight, index = chosen(bank, tokens, top_k, lowest)
    inputs = laid_out(x, layout), laid_out(weight, layout), laid_out(index, layout)
    got = each(bank, *inputs)
    for backend in ("loop", "grouped"):
        torch.testing.assert_close(got[backend], got["dense"], rtol=1e-5, atol=1e-5)
    if tokens:
        wanted = naive_choice(bank, *inputs)
        torch.testing.assert_close(got["loop"][0], wanted, rtol=1e-5, atol=1e-5)


@few
@given(
    seed=seeds,
    tokens=st.integers(48, 80),  # enough for roundings to average out
    widths=st.tuples(*[st.sampled_from([8, 11, 16])] * 3),
    num_experts=st.integers(1, 4),
    top_k=st.integers(1, 3),
    activation=st.sampled_from(SMOOTH),
    bias=st.booleans(),
    layout=st.sampled_from(LAYOUTS[:3]),
)
def test_all_backends_are_near_float32_in_bfloat16(
    seed: int,
    tokens: int,
    widths: tuple[int, int, int],
    num_experts: int,
    top_k: int,
    activation: str,
    bias: bool,
    layout: str,
) -> None:
    torch.manual_seed(seed)
    bank = biased(Experts(num_experts, *widths, activation=activation, bias=bias)).bfloat16()
    x, weight, index = chosen(bank, tokens, top_k, lowest=-1)
    got = each(bank, laid_out(x, layout), laid_out(weight, layout), laid_out(index, layout))
    wanted = each(bank.float(), x.float(), weight.float(), index)["dense"]
    true_gradient = torch.cat([part.flatten() for part in wanted[1:]])
    for output, *gradients in got.values():
        assert {part.dtype for part in (output, *gradients)} == {torch.bfloat16}
        gradient = torch.cat([part.float().flatten() for part in gradients])
        assert (output.float() - wanted[0]).norm() <= 1e-2 * wanted[0].norm() + 1e-6
        assert (gradient - true_gradient).norm() <= 1e-2 * true_gradient.norm() + 1e-6


@each_backend
def test_the_gradient_of_a_plain_sum_arrives(backend: str) -> None:
    """It is one number, expanded."""
    torch.manual_seed(0)
    bank = biased(Experts(3, 8, 16, backend=backend))
    x, weight, index = chosen(bank, 40, 2)
    x.requires_grad_()
    bank(x, weight, index).sum().backward()
    (wanted,) = torch.autograd.grad(naive_choice(bank, x, weight, index).sum(), x)
    torch.testing.assert_close(x.grad, wanted, rtol=1e-5, atol=1e-5)


@each_backend
def test_leading_dimensions_are_those_of_the_tokens(backend: str) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(3, 4, 5, 2, backend=backend))
    x, weight, index = chosen(bank, 12, 2, lowest=-1)
    wanted = naive_choice(bank, x, weight, index)
    for shape in ((2, 6), (2, 3, 2)):
        parts = [part.reshape(*shape, -1) for part in (x, weight, index)]
        torch.testing.assert_close(bank(*parts), wanted.reshape(*shape, 2))


@each_backend
def test_a_token_may_come_without_leading_dimensions(backend: str) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(3, 4, 5, 2, backend=backend))
    x, weight, index = chosen(bank, 1, 2)
    wanted = naive_choice(bank, x, weight, index)[0]
    torch.testing.assert_close(bank(x[0], weight[0], index[0]), wanted)


@each_backend
@pytest.mark.parametrize("tokens", [1, 40])
def test_an_expert_chosen_twice_counts_twice(backend: str, tokens: int) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(4, 8, 8, backend=backend))
    x, weight, _ = chosen(bank, tokens, 3)
    twice = torch.tensor([2, 0, 2]).expand(tokens, 3)
    joined = torch.stack([weight[:, 0] + weight[:, 2], weight[:, 1]], -1)
    once = torch.tensor([2, 0]).expand(tokens, 2)
    torch.testing.assert_close(bank(x, weight, twice), bank(x, joined, once), rtol=1e-5, atol=1e-5)


@each_backend
def test_a_single_expert_is_a_network(backend: str) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(1, 8, 16, backend=backend))
    x, weight, index = chosen(bank, 40, 1)
    hidden = torch.nn.functional.gelu(x @ bank.in_weight[0] + bank.in_bias[0])
    wanted = weight * (hidden @ bank.out_weight[0] + bank.out_bias[0])
    torch.testing.assert_close(bank(x, weight, index), wanted, rtol=1e-5, atol=1e-5)


@each_backend
@pytest.mark.parametrize("tokens", [1, 40])
def test_choosing_all_experts_is_choosing_none(backend: str, tokens: int) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(3, 4, 5, backend=backend))
    x, weight, _ = chosen(bank, tokens, 3)
    order = torch.rand(tokens, 3).argsort(-1)
    wanted = values_and_gradients(bank, x, weight.gather(-1, order.argsort(-1)), None)
    got = values_and_gradients(bank, x, weight, order)
    got[2] = got[2].gather(-1, order.argsort(-1))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@each_backend
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_tokens_choose_nothing(backend: str, top_k: int, shape: tuple[int, ...]) -> None:
    bank = Experts(3, 4, 5, 2, backend=backend)
    x, weight = torch.zeros(*shape, 4), torch.zeros(*shape, top_k)
    output, *gradients = values_and_gradients(bank, x, weight, weight.long())
    assert_same(output, torch.zeros(*shape, 2))
    assert not any(gradient.any() for gradient in gradients)


@each_backend
@pytest.mark.parametrize("tokens", [1, 40])
def test_where_nobody_is_chosen_there_is_nothing(backend: str, tokens: int) -> None:
    bank = biased(Experts(3, 8, 8, backend=backend))
    x, weight, index = chosen(bank, tokens, 2)
    output, *gradients = values_and_gradients(bank, x, weight, torch.full_like(index, -1))
    assert_same(output, torch.zeros(tokens, 8))
    assert not any(gradient.any() for gradient in gradients)


@each_backend
@wide_or_odd
def test_idle_experts_get_gradient_zero(backend: str, widths: tuple[int, int, int]) -> None:
    bank = biased(Experts(3, *widths, backend=backend))
    x, weight, index = chosen(bank, 40, 1)
    _, _, _, *gradients = values_and_gradients(bank, x, weight, torch.where(index == 1, 2, index))
    for gradient in gradients:
        assert [bool(part.any()) for part in gradient] == [True, False, True]


@each_backend
@wide_or_odd
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_gradcheck_of_chosen_experts(
    backend: str, widths: tuple[int, int, int], bias: bool
) -> None:
    """In float64, where the grouped backend falls back."""
    torch.manual_seed(0)
    bank = drawn(Experts(3, *widths, bias=bias, activation="silu", backend=backend))
    x, weight, index = chosen(bank, 4, 2, lowest=-1)
    inputs = (x.requires_grad_(), weight.requires_grad_(), *bank.parameters())
    assert torch.autograd.gradcheck(lambda x, g, *_: bank(x, g, index), inputs, fast_mode=True)


def test_the_dense_backend_has_second_derivatives() -> None:
    bank = drawn(Experts(3, 2, 2, backend="dense"))
    x, weight, index = chosen(bank, 3, 2)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x, g: bank(x, g, index), inputs)


@each_backend
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_contract_of_chosen_experts(backend: str, activation: str) -> None:
    bank = Experts(3, 4, 8, activation=activation, backend=backend)
    inputs = chosen(bank, 48, 2, lowest=-1)
    assert_block_contract(bank, *(part.reshape(2, 24, -1) for part in inputs))


@each_backend
@wide_or_odd
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_as_a_whole_it_gives_the_eager_numbers(
    backend: str, widths: tuple[int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(3, *widths, backend=backend, dtype=dtype))
    inputs = chosen(bank, 40, 2, lowest=-1)
    torch.compiler.reset()
    compiled = torch.compile(bank, fullgraph=True, backend="aot_eager")
    wanted = values_and_gradients(bank, *inputs)
    got = values_and_gradients(bank, *inputs, lambda _, *parts: compiled(*parts))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_compiled_once_it_takes_any_number_of_tokens(backend: str) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(4, 4, 8, backend=backend))
    torch.compiler.reset()
    compiled = torch.compile(bank, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (40, 7, 100):
        inputs = chosen(bank, tokens, 2, lowest=-1)
        torch.testing.assert_close(compiled(*inputs), bank(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_exported_it_gives_the_eager_numbers(backend: str) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(4, 4, 8, backend=backend))
    inputs = chosen(bank, 40, 2, lowest=-1)
    length = torch.export.Dim("tokens", min=2, max=1000)
    program = torch.export.export(bank, inputs, dynamic_shapes=[{0: length}] * 3)
    for tokens in (40, 9):
        other = chosen(bank, tokens, 2, lowest=-1)
        torch.testing.assert_close(program.module()(*other), bank(*other), rtol=1e-5, atol=1e-5)


@each_backend
@wide_or_odd
def test_autocast_rounds_products_and_keeps_the_dtype(
    backend: str, widths: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    bank = biased(Experts(3, *widths, backend=backend))
    inputs = chosen(bank, 40, 2, lowest=-1)
    wanted = values_and_gradients(bank, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = values_and_gradients(bank, *inputs)
    assert not torch.equal(got[0], wanted[0])
    for part, true in zip(got, wanted, strict=True):
        assert (part.dtype, part.shape) == (torch.float32, true.shape)
        assert (part - true).norm() <= 1e-2 * true.norm()


@each_backend
def test_autocast_leaves_float64_alone(backend: str) -> None:
    bank = drawn(Experts(3, 4, 5, backend=backend))
    inputs = chosen(bank, 40, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = bank(*inputs)
    assert_same(rounded, bank(*inputs))


@pytest.mark.parametrize("activation", sorted(LIBRARY))
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_slots_go_to_their_own_expert(activation: str, lead: tuple[int, ...]) -> None:
    bank = drawn(Experts(3, 4, 5, 2, activation=activation))
    slots = torch.randn(*lead, 3, 2, 4, dtype=torch.float64)
    output = bank.on_slots(slots)
    assert output.shape == (*lead, 3, 2, 2)
    for e in range(3):
        x, index = slots[..., e, :, :].reshape(-1, 4), torch.tensor([[e]])
        one = x.new_ones(len(x), 1)
        wanted = naive_choice(bank, x, one, index.expand(len(x), 1))
        torch.testing.assert_close(output[..., e, :, :].reshape(-1, 2), wanted)


def test_no_slots_give_nothing() -> None:
    bank = Experts(3, 4, 5, 2)
    for lead, slots in ((2, 0), (0, 2)):
        nothing = torch.zeros(lead, 3, slots, 2)
        assert_same(bank.on_slots(torch.zeros(lead, 3, slots, 4)), nothing)


def test_slots_keep_their_dtype_under_autocast() -> None:
    bank = biased(Experts(3, 4, 5))
    slots = torch.randn(2, 3, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = bank.on_slots(slots)
    wanted = bank.on_slots(slots)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, wanted)
    assert (rounded - wanted).norm() <= 1e-2 * wanted.norm()


def sparse_calls(bank: Experts, *inputs: Tensor | None) -> list[bool | None]:
    """For each call of the sparse operator, whether it may group products; none: as it likes."""
    with mock.patch("mmfuse.experts.experts.expert_rows", wraps=expert_rows) as operator:
        bank(*inputs)
    return [call.kwargs["grouped"] for call in operator.call_args_list]


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "sparse"),
    [
        (400, 5, 1, True),
        (400, 5, 3, True),
        (400, 5, 5, True),
        (200, 5, 1, False),
        (400, 2, 2, False),
        (3, 5, 1, False),
        (0, 5, 1, False),
    ],
)
def test_auto_is_sparse_where_all_products_cost_more_than_sorting(
    tokens: int, num_experts: int, top_k: int, sparse: bool
) -> None:
    bank = Experts(num_experts, 64, 256)
    inputs = chosen(bank, tokens, top_k)
    assert sparse_calls(bank, *inputs) == [None] * sparse
    bank.backend = "dense"
    assert sparse_calls(bank, *inputs) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_nobody_processes_may_be_anything(backend: str) -> None:
    """A NaN in a token or a weight of nobody, an overflow in an expert that nobody chose."""
    torch.manual_seed(0)
    bank = Experts(3, 4, 8, activation="relu", backend=backend)
    x, weight = torch.randn(3, 4), torch.rand(3, 2)
    index = torch.tensor([[-1, -1], [0, -1], [1, 0]])
    goal = torch.randn(3, 4)

    def found() -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_(), *bank.parameters()]
        output = bank(leaves[0], leaves[1], index)
        return [output, *torch.autograd.grad((output * goal).sum(), leaves)]

    wanted = found()
    x[0], weight[0], weight[1, 1] = torch.nan, torch.nan, torch.inf
    with torch.no_grad():
        bank.in_weight[2] = 3e38
    assert_same(found(), wanted)


@pytest.mark.parametrize(("backend", "grouped"), [("loop", False), ("grouped", True)])
def test_a_named_backend_is_taken_however_few_tokens_there_are(backend: str, grouped: bool) -> None:
    bank = Experts(2, 4, 8, backend=backend)
    assert sparse_calls(bank, *chosen(bank, 1, 2)) == [grouped]
    x, weight, _ = chosen(bank, 100, 2)
    assert sparse_calls(bank, x, weight) == []


def test_a_gated_expert_draws_each_of_its_projections_by_itself() -> None:
    bank = Experts(64, 8, 16, activation="swiglu")
    assert bank.in_weight.shape == (64, 8, 32)
    for weight in bank.in_weight.split(16, dim=-1):
        assert weight.abs().max() <= math.sqrt(6 / (8 + 16))
        assert weight.var().item() == pytest.approx(2 / (8 + 16), rel=0.1)


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 0}, r"Expected num_experts > 0, got 0\."),
        ({"dim": 0}, r"Expected dim > 0, got 0\."),
        ({"hidden_dim": 0}, r"Expected hidden_dim > 0, got 0\."),
        ({"out_dim": 0}, r"Expected out_dim > 0, got 0\."),
        ({"activation": "x"}, r"one of 'gelu', 'relu', 'silu', .*'swiglu', got 'x'\."),
        (
            {"backend": "x"},
            r"backend to be one of 'auto', 'dense', 'loop', 'grouped', got 'x'\.",
        ),
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
    x, index = torch.zeros(5, 3), torch.zeros(5, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expert_index of shape \(5, K\), got \(4, 1\)\."):
        bank(x, torch.zeros(4, 1), index[:4])
    with pytest.raises(ValueError, match=r"expert_weight of shape \(5, 1\), got \(5, 2\)\."):
        bank(x, torch.zeros(5, 2), index)
    with pytest.raises(ValueError, match=r"slots of shape \(\.\.\., 2, S, 3\), got \(3, 1, 3\)\."):
        bank.on_slots(torch.zeros(3, 1, 3))
    for backend in BACKENDS:
        bank.backend = backend
        with pytest.raises(ValueError, match=r"expert_index < num_experts = 2, got 2\."):
            bank(x, torch.zeros(5, 1), index + 2)
        with pytest.raises(ValueError, match=r"x of a floating dtype, got torch\.int64\."):
            bank(x.long(), torch.zeros(5, 1), index)
    with pytest.raises(ValueError, match=r"slots of a floating dtype, got torch\.int64\."):
        bank.on_slots(torch.zeros(2, 1, 3, dtype=torch.int64))


def test_repr() -> None:
    wanted = (
        "Experts(num_experts=2, dim=3, hidden_dim=4, out_dim=5, activation='relu', backend='auto')"
    )
    assert str(Experts(2, 3, 4, 5, activation="relu")) == wanted
    assert str(Experts(2, 3, 4, backend="loop")).endswith("activation='gelu', backend='loop')")
