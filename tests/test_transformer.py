"""Tests for mmfuse._transformer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmfuse._transformer import (
    Attention,
    SideAttention,
    TransformerLayer,
    attend,
    make_layer,
    through,
)
from tests.outcomes import assert_same, drawn, outcome, places
from tests.references import (
    linear,
    mixed,
    naive_attention,
    naive_layer,
    naive_linear,
    seen_by,
)
from tests.strategies import chances, leads, seeds, sizes

few = settings(max_examples=25)
PLACE: Any = {"device": None, "dtype": torch.float64}


class Reading(NamedTuple):
    query: Tensor  # (..., H, L, d)
    key: Tensor  # (..., H, S, d)
    value: Tensor  # (..., H, S, v)
    seen: Tensor  # (..., S)
    causal: bool


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    """Queries and keys, of which some are not there; as many of both if no query looks ahead."""
    lead, heads, causal = draw(leads()), draw(sizes), draw(st.booleans())
    length, width, depth = draw(sizes), draw(sizes), draw(sizes)
    told, chance = length if causal else draw(sizes), draw(chances)
    torch.manual_seed(draw(seeds))
    query = torch.randn(*lead, heads, length, width, dtype=torch.float64)
    key = torch.randn(*lead, heads, told, width, dtype=torch.float64)
    value = torch.randn(*lead, heads, told, depth, dtype=torch.float64)
    return Reading(query, key, value, torch.rand(*lead, told) < chance, causal)


def naive(case: Reading, seen: Tensor, scale: float) -> Tensor:
    """Loop over rows, heads and queries; what a query does not see is left out."""
    read = torch.zeros(*case.query.shape[:-1], case.value.shape[-1], dtype=torch.float64)
    for place in places(case.query.shape[:-1]):
        *row, h, i = place
        keys, values = case.key[*row, h].tolist(), case.value[*row, h].tolist()
        there = [j for j in range(len(keys)) if seen[*row, j] and not (case.causal and j > i)]
        products = [naive_linear([case.query[place].tolist()], keys[j])[0] for j in there]
        scores = [scale * product for product in products]
        read[place] = read.new_tensor(mixed(scores, [values[j] for j in there], read.shape[-1]))
    return read


# -- attend ----------------------------------------------------------------------------------------


@few
@given(case=readings(), scale=st.sampled_from([None, 0.3]))
def test_attend_matches_naive(case: Reading, scale: float | None) -> None:
    factor = 1 / math.sqrt(case.query.shape[-1]) if scale is None else scale
    *parts, seen, causal = case
    read = attend(*parts, seen, causal=causal, scale=scale)
    torch.testing.assert_close(read, naive(case, seen, factor))
    read = attend(*parts, causal=causal, scale=scale)
    torch.testing.assert_close(read, naive(case, torch.ones_like(seen), factor))


@few
@given(case=readings())
def test_a_key_that_is_not_seen_gets_no_gradient(case: Reading) -> None:
    *parts, seen, causal = case
    leaves = [part.clone().requires_grad_() for part in parts]
    gradients = torch.autograd.grad(attend(*leaves, seen, causal=causal).square().sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    for gradient in gradients[1:]:
        hidden = ~seen[..., None, :, None].expand_as(gradient)
        assert_same(gradient[hidden], torch.zeros_like(gradient[hidden]))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_visible_key_reads_zeros(causal: bool, dtype: torch.dtype) -> None:
    """Exactly, and there is nothing to learn from it."""
    query, key, value = torch.randn(3, 2, 4, 5, 3).to(dtype).requires_grad_()  # (B, H, L, d) each
    seen = torch.tensor([[False] * 5, [False, False, True, True, False]])
    read = attend(query, key, value, seen, causal=causal)
    blind = torch.tensor([[True] * 5, [causal, causal, False, False, False]])
    nothing = read.movedim(1, 2)[blind]
    assert_same(nothing, torch.zeros_like(nothing))
    (gradient,) = torch.autograd.grad(nothing.sum(), query)
    assert_same(gradient, torch.zeros_like(query))
    assert read.dtype == dtype
    assert read.movedim(1, 2)[~blind].ne(0).all()


def test_a_first_query_sees_itself_alone() -> None:
    query, key, value = torch.randn(3, 2, 5, 3)
    torch.testing.assert_close(attend(query, key, value, causal=True)[:, 0], value[:, 0])


# -- attention -------------------------------------------------------------------------------------


def mask(shape: tuple[int, ...], chance: float = 0.6) -> Tensor:
    return torch.rand(shape) < chance


@pytest.mark.parametrize("num_heads", [1, 2])
@settings(max_examples=15)
@given(seed=seeds, length=sizes, causal=st.booleans())
def test_attention_among_rows_matches_naive(
    num_heads: int, seed: int, length: int, causal: bool
) -> None:
    torch.manual_seed(seed)
    attention = drawn(Attention(4, num_heads, 0.1, **PLACE)).eval()
    x, seen = torch.randn(length, 4, dtype=torch.float64), mask((length,))
    there = [i for i in range(length) if seen[i]]
    visible = seen_by(range(length), there, causal=causal)
    wanted = naive_attention(attention, x.tolist(), x[there].tolist(), visible)
    read = attention(x, seen=seen, causal=causal)
    torch.testing.assert_close(read, torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(attention(x, x, seen=seen, causal=causal), read)


@pytest.mark.parametrize("num_heads", [1, 2])
@settings(max_examples=15)
@given(seed=seeds, length=sizes, told=sizes)
def test_attention_to_a_source_matches_naive(
    num_heads: int, seed: int, length: int, told: int
) -> None:
    torch.manual_seed(seed)
    attention = drawn(Attention(4, num_heads, 0.1, **PLACE)).eval()
    x, source = torch.randn(length + told, 4, dtype=torch.float64).split([length, told])
    seen = mask((told,))
    there = source[seen].tolist()
    wanted = naive_attention(attention, x.tolist(), there, [range(len(there))] * length)
    read = attention(x, source, seen=seen)
    torch.testing.assert_close(read, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("own", [True, False])
@settings(max_examples=15)
@given(seed=seeds, length=sizes, num_sides=sizes, causal=st.booleans())
def test_side_attention_is_a_literal_sum_of_maps(
    num_heads: int, own: bool, seed: int, length: int, num_sides: int, causal: bool
) -> None:
    torch.manual_seed(seed)
    attention = drawn(SideAttention(num_sides + own, 4, num_heads, 0.1, **PLACE)).eval()
    x = torch.randn(length, 4, dtype=torch.float64)
    sides = torch.randn(length, num_sides, 4, dtype=torch.float64)
    seen, width = mask((length,)), 4 // num_heads
    wanted = []
    for i in range(length):
        there = [j for j in range(length) if seen[j] and not (causal and j > i)]
        read: list[float] = []
        for start in range(0, 4, width):
            head, scores = slice(start, start + width), [0.0 for _ in there]
            for a, weight in enumerate(attention.weight.tolist()):
                side = (x if own and a == 0 else sides[:, a - own]).tolist()
                query = naive_linear(weight[:4], side[i])[head]
                for n, j in enumerate(there):
                    key = naive_linear(weight[4:], side[j])[head]
                    scores[n] += naive_linear([query], key)[0] / math.sqrt(width)
            values = [linear(attention.value, x[j].tolist())[head] for j in there]
            read += mixed(scores, values, width)
        wanted.append(linear(attention.out, read))
    got = attention(x, sides, seen=seen, causal=causal)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_a_side_of_zeros_adds_nothing() -> None:
    more, less = drawn(SideAttention(3, 4, 2, 0.0, **PLACE)), SideAttention(2, 4, 2, 0.0, **PLACE)
    state = more.state_dict()
    less.load_state_dict({**state, "weight": state["weight"][[0, 2]]})
    x, sides = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 2, 4).double()
    sides[..., 0, :] = 0
    torch.testing.assert_close(more(x, sides), less(x, sides[..., 1:, :]))


# -- layers ----------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=seeds, length=sizes, told=st.none() | sizes)
def test_a_layer_matches_naive(seed: int, length: int, told: int | None) -> None:
    torch.manual_seed(seed)
    layer = drawn(make_layer(4, 2, 3, 0.1, **PLACE)).eval()
    x = torch.randn(length, 4, dtype=torch.float64)
    source = None if told is None else torch.randn(told, 4, dtype=torch.float64)
    visible = [range(told or length)] * length
    wanted = naive_layer(layer, x.tolist(), visible, None if source is None else source.tolist())
    torch.testing.assert_close(layer(x, source), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("causal", [True, False])
def test_what_is_not_seen_has_no_influence(causal: bool) -> None:
    """On no position that counts; a row where nobody is seen has finite gradients too."""
    layer, valid = drawn(make_layer(4, 2, 3, 0.0, **PLACE)), mask((3, 5))
    valid[0] = False
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    other = torch.where(valid.unsqueeze(-1), x, torch.randn_like(x))
    (read,), _ = outcome(layer, x, seen=valid, causal=causal)
    (changed,), _ = outcome(layer, other, seen=valid, causal=causal)
    torch.testing.assert_close(changed[valid], read[valid])
    _, gradients = outcome(lambda x: layer(x, seen=valid, causal=causal)[valid], x)
    assert_same(gradients[0][~valid], torch.zeros_like(x[~valid]))
    _, gradients = outcome(layer, x, seen=valid, causal=causal)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_network_is_four_times_as_wide_by_default() -> None:
    assert make_layer(6, 2, None, 0.1, **PLACE).hidden.out_features == 24
    assert make_layer(6, 2, 5, 0.1, **PLACE).hidden.out_features == 5


def test_through_is_one_layer_after_the_other() -> None:
    first, second = (drawn(make_layer(4, 2, 3, 0.1, **PLACE)).eval() for _ in range(2))
    x, seen = torch.randn(2, 5, 4, dtype=torch.float64), mask((2, 5))
    options: Any = {"seen": seen, "causal": True}
    wanted = second(first(x, x, **options), x, **options)
    assert_same(through([first, second], x, x, **options), wanted)
    assert_same(through([], x), x)


def test_dropout_thins_out_every_part_in_training_only() -> None:
    """Everything drops out at rate one, so that the residual is left."""
    layer, x = drawn(make_layer(4, 2, 3, 1.0, **PLACE)), torch.randn(5, 4, dtype=torch.float64)
    assert_same(layer(x), x)
    assert not torch.allclose(layer.eval()(x), x)


@pytest.mark.parametrize(
    "read",
    [
        lambda attention, x: attention(x),
        lambda attention, x: attention(x, x),
    ],
)
def test_dropout_of_attention_weights(read: Callable[[nn.Module, Tensor], Tensor]) -> None:
    attention, x = Attention(4, 2, 0.5, **PLACE), torch.randn(5, 4, dtype=torch.float64)
    assert not torch.equal(read(attention, x), read(attention, x))
    attention.eval()
    assert_same(read(attention, x), read(attention, x))


def test_dropout_of_the_weights_of_summed_maps() -> None:
    attention, x = SideAttention(1, 4, 2, 0.5, **PLACE), torch.randn(5, 4, dtype=torch.float64)
    assert not torch.equal(attention(x, x.unsqueeze(-2)), attention(x, x.unsqueeze(-2)))
    attention.eval()
    assert_same(attention(x, x.unsqueeze(-2)), attention(x, x.unsqueeze(-2)))


def side_layer() -> TransformerLayer:
    return TransformerLayer(SideAttention(3, 4, 2, 0.1, **PLACE), 4, 3, 0.1, **PLACE)


@pytest.mark.parametrize("make", [lambda: make_layer(4, 2, 3, 0.1, **PLACE), side_layer])
def test_reset_draws_every_parameter_afresh(make: Callable[[], TransformerLayer]) -> None:
    layer = make()
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 7.0)
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        assert not (parameter == 7).any(), name
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    for name in ("hidden.weight", "out.weight", "attention.out.weight"):
        assert not torch.equal(layer.state_dict()[name], before[name])


# -- errors ----------------------------------------------------------------------------------------


def test_rejects_bad_options() -> None:
    divisible = r"Expected dim divisible by num_heads = 3, got 4\."
    with pytest.raises(ValueError, match=divisible):
        Attention(4, 3, 0.1, **PLACE)
    with pytest.raises(ValueError, match=divisible):
        SideAttention(1, 4, 3, 0.1, **PLACE)
    with pytest.raises(ValueError, match=r"Expected num_heads > 0, got 0\."):
        make_layer(4, 0, None, 0.1, **PLACE)
    with pytest.raises(ValueError, match=r"Expected hidden_dim > 0, got 0\."):
        make_layer(4, 2, 0, 0.1, **PLACE)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got -1\."):
        make_layer(4, 2, None, -1, **PLACE)
