"""Tests for mmfuse._checks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mmfuse._checks import (
    check_below,
    check_choice,
    check_divides,
    check_index,
    check_mask,
    check_positive,
    check_probability,
    check_shape,
    check_tensors,
)

X = torch.zeros(2, 3, 4)

# -- what passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(), (4,), (3, 4), (2, 3, 4), ("D",), ("M", 4), (3, "D")])
def test_the_last_dimensions_count(dims: tuple[int | str, ...]) -> None:
    check_shape("x", X, *dims)


@pytest.mark.parametrize("dims", [(2, 3, 4), ("B", "M", 4)])
def test_without_leading_dimensions_all_count(dims: tuple[int | str, ...]) -> None:
    check_shape("x", X, *dims, leading=False)


def test_good_values_pass() -> None:
    check_mask("present", X > 0, (2, 3, 4))
    check_mask("present", X[0, 0, 0] > 0, ())
    check_positive(dim=1, temperature=1e-9, alpha=float("inf"))
    check_probability(p=0, dropout=1.0)
    check_choice("word", "b", ("a", "b"))
    check_choice("word", "b", {"a": 1, "b": 2})
    check_index("index", torch.tensor([[-100, 2]]), "limit", 3)
    check_index("index", torch.zeros(0, dtype=torch.int32), "limit", 0)
    check_index("index", torch.tensor([9], device="meta"), "limit", 3)  # values are not read


def test_whole_numbers_in_their_range_pass() -> None:
    check_index("index", torch.tensor([0, 2]), "limit", 3, least=0)
    check_below("limit", 3, target=0, other=2)
    check_divides(num_heads=2, dim=4)
    check_tensors(x=X, present=X > 0)


# -- what does not, and how that is said -----------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "leading", "sentence"),
    [
        ((5,), True, "Expected x of shape (..., 5), got (2, 3, 4)."),
        ((2, 4), True, "Expected x of shape (..., 2, 4), got (2, 3, 4)."),
        (("M", 3), True, "Expected x of shape (..., M, 3), got (2, 3, 4)."),
        ((1, 2, 3, 4), True, "Expected x of shape (..., 1, 2, 3, 4), got (2, 3, 4)."),
        (("B", 4), False, "Expected x of shape (B, 4), got (2, 3, 4)."),
        (("B",), False, "Expected x of shape (B,), got (2, 3, 4)."),
        ((2, 3, 5), False, "Expected x of shape (2, 3, 5), got (2, 3, 4)."),
    ],
)
def test_wrong_shape(dims: tuple[int | str, ...], leading: bool, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_shape("x", X, *dims, leading=leading)


@pytest.mark.parametrize(
    ("check", "arguments", "sentence"),
    [
        (
            check_mask,
            ("present", X, X.shape),
            "Expected present of dtype torch.bool, got torch.flo",
        ),
        (check_mask, ("valid", X > 0, (3, 4)), "Expected valid of shape (3, 4), got (2, 3, 4)."),
        (
            check_mask,
            ("valid", X > 0, (2, 1, 4)),
            "Expected valid of shape (2, 1, 4), got (2, 3, 4).",
        ),
        (check_choice, ("word", "c", ("a", "b")), "Expected word to be one of 'a', 'b', got 'c'."),
        (check_choice, ("word", "", {"a": 1}), "Expected word to be one of 'a', got ''."),
    ],
)
def test_wrong_mask_or_word(check: Any, arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        check(*arguments)


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan")])
def test_not_positive(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^Expected dim > 0, got {value}\.$"):
        check_positive(temperature=1.0, dim=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_not_a_probability(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^Expected 0 <= p <= 1, got {value}\.$"):
        check_probability(q=0.5, p=value)


def test_nothing_where_a_tensor_is_wanted() -> None:
    with pytest.raises(ValueError, match=r"^Expected probs of shape \(\.\.\., E\), got None\.$"):
        check_shape("probs", None, "E")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (torch.tensor([[0, 3], [1, -1]]), "Expected index < limit = 3, got 3."),
        (torch.tensor([0.0]), "Expected index of an integer dtype, got torch.float32."),
        (torch.tensor([True]), "Expected index of an integer dtype, got torch.bool."),
    ],
)
def test_wrong_index(index: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_index("index", index, "limit", 3)


def test_a_number_below_the_least_one_is_named() -> None:
    with pytest.raises(ValueError, match=r"Expected index >= 0, got -1\."):
        check_index("index", torch.tensor([0, -1]), "limit", 3, least=0)


@pytest.mark.parametrize("target", [-1, 3])
def test_a_number_out_of_range_is_named(target: int) -> None:
    with pytest.raises(ValueError, match=rf"Expected 0 <= target < limit = 3, got {target}\."):
        check_below("limit", 3, target=target)


def test_heads_that_do_not_divide_a_width_are_named() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        check_divides(num_heads=3, dim=4)
    with pytest.raises(ValueError, match=r"Expected num_heads > 0, got 0\."):
        check_divides(num_heads=0, dim=4)


def test_what_is_no_tensor_is_named() -> None:
    for check in (
        lambda: check_tensors(x={}),
        lambda: check_shape("x", {}, 4),
        lambda: check_mask("x", {}, (4,)),
    ):
        with pytest.raises(ValueError, match=r"Expected x as a tensor, got dict\."):
            check()
