"""Tests for mmfuse.losses.alignment."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmfuse.losses import AlignmentLoss, UniformityLoss, alignment_loss, uniformity_loss
from mmfuse.testing import assert_block_contract
from tests.contrast import (
    assert_autocast_changes_nothing,
    assert_half_precision_is_summed_in_float32,
    assert_nan_reaches_nothing,
    assert_zero_in_the_graph,
    naive_reduction,
    value_and_gradients,
)
from tests.strategies import seeds, sizes

few = settings(max_examples=25)
many = settings(max_examples=60)
rows = st.integers(1, 6)
exponents = st.sampled_from([1.0, 2.0, 3.0])
pulls = st.sampled_from([0.5, 2.0, 10.0])
chunks = st.sampled_from([1, 2, 3, 1024])
reductions = st.sampled_from(["mean", "sum", "none"])


def drawn(number: int, count: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Some (count, dim) tensors, a row of which may be zero, and which rows are valid."""
    torch.manual_seed(seed)
    x = torch.randn(number, count, dim, dtype=torch.float64)
    x[0, 0] *= seed % 2
    return x, torch.rand(count) < 0.7


# -- reference: the formulas, read aloud ----------------------------------------------------------


def on_the_sphere(vector: Tensor) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector.tolist()))
    return [value / length if length else 0.0 for value in vector.tolist()]


def distance(one: Tensor, other: Tensor) -> float:
    return math.dist(on_the_sphere(one), on_the_sphere(other))


@given(rows, sizes, seeds, exponents, reductions, st.booleans())
@many
def test_alignment_matches_naive(count, dim, seed, alpha, reduction, masked):
    (query, key), valid = drawn(2, count, dim, seed)
    losses = [
        None if masked and not ok else distance(q, k) ** alpha
        for q, k, ok in zip(query, key, valid, strict=True)
    ]
    result = alignment_loss(
        query, key, alpha=alpha, reduction=reduction, valid=valid if masked else None
    )
    torch.testing.assert_close(result, naive_reduction(losses, reduction))


@given(rows, sizes, seeds, pulls, chunks, st.booleans())
@many
def test_uniformity_matches_naive(count, dim, seed, t, chunk_size, masked):
    (x,), valid = drawn(1, count, dim, seed)
    there = [i for i in range(count) if valid[i] or not masked]
    powers = [math.exp(-t * distance(x[i], x[j]) ** 2) for i in there for j in there if i != j]
    wanted = math.log(sum(powers) / len(powers)) if powers else 0.0
    result = uniformity_loss(x, t=t, valid=valid if masked else None, chunk_size=chunk_size)
    torch.testing.assert_close(result, torch.tensor(wanted, dtype=torch.float64))


@given(st.integers(2, 6), sizes, seeds, pulls)
@few
def test_uniformity_is_that_of_all_distances_between_different_rows(count, dim, seed, t):
    (x,), _ = drawn(1, count, dim, 2 * (seed // 2) + 1)  # no zero row: normalize has its own rule
    squares = torch.pdist(torch.nn.functional.normalize(x)).square()  # as the paper prints it
    torch.testing.assert_close(uniformity_loss(x, t=t), (-t * squares).exp().mean().log())


@given(rows, sizes, seeds)
@few
def test_modules_equal_functions(count, dim, seed):
    (query, key), valid = drawn(2, count, dim, seed)
    alignment = AlignmentLoss(3.0, reduction="sum")
    wanted = alignment_loss(query, key, alpha=3.0, reduction="sum", valid=valid)
    assert torch.equal(copy.deepcopy(alignment)(query, key, valid=valid), wanted)
    uniformity = UniformityLoss(1.5, chunk_size=2)
    wanted = uniformity_loss(query, t=1.5, chunk_size=2, valid=valid)
    assert torch.equal(copy.deepcopy(uniformity)(query, valid=valid), wanted)


# -- limits ---------------------------------------------------------------------------------------


@given(rows, sizes, seeds)
@few
def test_alignment_with_alpha_two_is_twice_one_minus_cosine(count, dim, seed):
    (query, key), _ = drawn(2, count, dim, 2 * (seed // 2) + 1)
    cosine = torch.nn.functional.cosine_similarity(query, key)
    torch.testing.assert_close(alignment_loss(query, key), (2 - 2 * cosine).mean())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alignment_of_what_meets_is_zero_with_gradient_zero(alpha):
    same = torch.randn(4, 3)
    assert_zero_in_the_graph(partial(alignment_loss, alpha=alpha), same, same.clone())


@pytest.mark.parametrize("t", [2.0, 1000.0])
@pytest.mark.parametrize("row", [torch.ones(3), torch.zeros(3)])
def test_uniformity_of_one_place_is_zero(t, row):
    value, gradient = value_and_gradients(partial(uniformity_loss, t=t), row.expand(4, 3))
    torch.testing.assert_close(value, torch.tensor(0.0), atol=1e-3, rtol=0)
    assert gradient.isfinite().all()


def test_uniformity_far_apart_does_not_underflow():
    loss = uniformity_loss(torch.tensor([[1.0], [-1.0]]), t=1000.0)
    torch.testing.assert_close(loss, torch.tensor(-4000.0))


# -- properties: masks ----------------------------------------------------------------------------


@given(rows, sizes, seeds, chunks)
@few
def test_invalid_row_is_as_if_never_given(count, dim, seed, chunk_size):
    (query, key), valid = drawn(2, count, dim, seed)
    torch.testing.assert_close(
        alignment_loss(query, key, valid=valid), alignment_loss(query[valid], key[valid])
    )
    torch.testing.assert_close(
        uniformity_loss(query, valid=valid, chunk_size=chunk_size), uniformity_loss(query[valid])
    )


@given(rows, sizes, seeds, chunks)
@few
def test_nan_of_an_invalid_row_reaches_nothing(count, dim, seed, chunk_size):
    (query, key), valid = drawn(2, count, dim, seed)
    assert_nan_reaches_nothing(partial(alignment_loss, valid=valid), [query, key], valid)
    uniformity = partial(uniformity_loss, valid=valid, chunk_size=chunk_size)
    assert_nan_reaches_nothing(uniformity, [query], valid)


@given(rows, sizes, seeds, chunks)
@few
def test_permuting_rows(count, dim, seed, chunk_size):
    (query, key), valid = drawn(2, count, dim, seed)
    order = torch.randperm(count)
    alignment = partial(alignment_loss, reduction="none")
    permuted = alignment(query[order], key[order], valid=valid[order])
    torch.testing.assert_close(permuted, alignment(query, key, valid=valid)[order])
    uniformity = partial(uniformity_loss, chunk_size=chunk_size)
    permuted = uniformity(query[order], valid=valid[order])
    torch.testing.assert_close(permuted, uniformity(query, valid=valid))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_alignment_of_nothing_is_zero_in_the_graph(reduction):
    loss = partial(alignment_loss, reduction=reduction)
    nobody = torch.zeros(4, dtype=torch.bool)
    assert_zero_in_the_graph(partial(loss, valid=nobody), *torch.randn(2, 4, 3))
    assert_zero_in_the_graph(loss, *torch.randn(2, 0, 3))


@pytest.mark.parametrize("chunk_size", [2, 1024])
def test_uniformity_without_a_pair_is_zero_in_the_graph(chunk_size):
    loss = partial(uniformity_loss, chunk_size=chunk_size)
    for number in (0, 1):
        valid = torch.arange(4) < number
        assert_zero_in_the_graph(partial(loss, valid=valid), torch.randn(4, 3))
        assert_zero_in_the_graph(loss, torch.randn(number, 3))


# -- properties: numbers --------------------------------------------------------------------------


@given(rows, sizes, seeds, st.floats(-4, 4))
@few
def test_length_of_a_vector_does_not_matter(count, dim, seed, exponent):
    (query, key), _ = drawn(2, count, dim, seed)
    longer = 10**exponent * query
    torch.testing.assert_close(alignment_loss(longer, key), alignment_loss(query, key))
    torch.testing.assert_close(uniformity_loss(longer), uniformity_loss(query))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    query, key = torch.randn(2, 6, 3)
    query[1], key[2], key[3] = 0, 0, query[3]
    alignment = partial(alignment_loss, alpha=1.0)
    assert_half_precision_is_summed_in_float32(alignment, dtype, query, key)
    assert_autocast_changes_nothing(alignment, query, key)
    for chunk_size in (2, 1024):
        uniformity = partial(uniformity_loss, t=100.0, chunk_size=chunk_size)
        assert_half_precision_is_summed_in_float32(uniformity, dtype, query)
        assert_autocast_changes_nothing(uniformity, query)


# -- chunks ---------------------------------------------------------------------------------------


@given(rows, sizes, seeds, pulls, chunks)
@few
def test_chunks_change_neither_the_number_nor_the_gradient(count, dim, seed, t, chunk_size):
    (x,), valid = drawn(1, count, dim, seed)
    loss = partial(uniformity_loss, t=t, valid=valid)
    wanted = value_and_gradients(loss, x)
    chunked = value_and_gradients(partial(loss, chunk_size=chunk_size), x)
    torch.testing.assert_close(chunked, wanted)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


@pytest.mark.parametrize("chunk_size", [10, 100, 1024])
def test_memory_is_that_of_one_chunk(chunk_size):
    count, dim = 300, 4
    x = torch.randn(count, dim, requires_grad=True)
    kept: dict[int, Tensor] = {}  # by address: every chunk keeps the same vectors

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = uniformity_loss(x, chunk_size=chunk_size)
        loss.backward()
    in_memory = sum(tensor.numel() for tensor in kept.values())
    assert largest.elements == min(chunk_size, count) * count
    assert (in_memory < 20 * count * dim) == (chunk_size < count)


# -- gradients and contract -----------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_gradcheck_of_alignment(alpha):
    valid = torch.tensor([True, True, True, False])
    pair = [tensor.requires_grad_() for tensor in torch.randn(2, 4, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(partial(alignment_loss, alpha=alpha, valid=valid), pair)


@pytest.mark.parametrize("chunk_size", [2, 1024])
def test_gradcheck_of_uniformity(chunk_size):
    valid = torch.tensor([True, True, False, True, True])
    loss = partial(uniformity_loss, valid=valid, chunk_size=chunk_size)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


def test_contract_of_alignment():
    masks = {"valid": torch.tensor([True, True, True, False])}
    assert_block_contract(AlignmentLoss(1.0), *torch.randn(2, 4, 3), keywords=masks)


@pytest.mark.parametrize("chunk_size", [2, 1024])
def test_contract_of_uniformity(chunk_size):
    masks = {"valid": torch.tensor([True, True, True, False, True])}
    assert_block_contract(UniformityLoss(chunk_size=chunk_size), torch.randn(5, 3), keywords=masks)


# -- errors and repr ------------------------------------------------------------------------------

QUERY = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((QUERY[0],) * 2, {}, r"Expected query of shape \(B, D\), got \(3,\)\."),
        ((QUERY, QUERY[:1]), {}, r"Expected positive_key of shape \(4, 3\), got \(1, 3\)\."),
        ((QUERY,) * 2, {"alpha": 0.0}, r"Expected alpha > 0, got 0\.0\."),
        ((QUERY,) * 2, {"reduction": "max"}, r"Expected reduction to be one of .*, got 'max'\."),
        ((QUERY,) * 2, {"valid": torch.ones(4)}, r"Expected valid of dtype torch\.bool, got"),
    ],
)
def test_alignment_rejects_bad_inputs(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        alignment_loss(*inputs, **options)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (QUERY[None], {}, r"Expected x of shape \(N, D\), got \(1, 4, 3\)\."),
        (QUERY, {"t": -1.0}, r"Expected t > 0, got -1\.0\."),
        (QUERY, {"chunk_size": 0}, r"Expected chunk_size > 0, got 0\."),
        (
            QUERY,
            {"valid": torch.ones(3, dtype=torch.bool)},
            r"Expected valid of shape \(4,\), got \(3,\)\.",
        ),
    ],
)
def test_uniformity_rejects_bad_inputs(x, options, message):
    with pytest.raises(ValueError, match=message):
        uniformity_loss(x, **options)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (AlignmentLoss, {"alpha": -1.0}, r"Expected alpha > 0, got -1\.0\."),
        (AlignmentLoss, {"reduction": ""}, r"Expected reduction to be one of .*, got ''\."),
        (UniformityLoss, {"t": 0.0}, r"Expected t > 0, got 0\.0\."),
        (UniformityLoss, {"chunk_size": -1}, r"Expected chunk_size > 0, got -1\."),
    ],
)
def test_rejects_bad_hyperparameters(module, options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_repr():
    assert repr(AlignmentLoss()) == "AlignmentLoss(alpha=2.0, reduction='mean')"
    assert repr(UniformityLoss()) == "UniformityLoss(t=2.0, chunk_size=1024)"
