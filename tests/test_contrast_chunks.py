"""Tests for mmfuse._contrast_chunks."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse._contrast_chunks import Pairs, in_chunks
from mmfuse._contrast_pairs import summaries
from tests.strategies import seeds, sizes

many = settings(max_examples=60)
chunk_sizes = st.none() | st.integers(1, 6)


class Case(NamedTuple):
    rows: Tensor  # (n, D)
    columns: Tensor  # (m, D)
    pairs: Pairs


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Rows of which each has its own column or none does; some ids, some not valid."""
    n, more, dim, own = draw(st.integers(0, 5)), draw(st.integers(0, 3)), draw(sizes), draw(sizes)
    with_ids, with_own, positives = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    of_rows, of_columns = draw(st.booleans()), draw(st.booleans())
    torch.manual_seed(draw(seeds))
    start = own - 1 if with_own else -1
    m = n + more + max(start, 0) if with_own else more
    rows, columns = torch.randn(n, dim).double(), torch.randn(m, dim).double()
    pairs = Pairs(
        row_ids=torch.randint(3, (n,)) if with_ids else None,
        column_ids=torch.randint(3, (m,)) if with_ids else None,
        row_valid=torch.rand(n) < 0.6 if of_rows else None,
        column_valid=torch.rand(m) < 0.6 if of_columns else None,
        own=start,
        positives=positives,
    )
    return Case(rows, columns, pairs)


# -- reference: pair by pair ----------------------------------------------------------------------


def naive(case: Case) -> tuple[Tensor, Tensor]:
    """What each row, and each column, has met: log of powers, sum of its own id's, their number."""
    rows, columns, pairs = case
    met: dict[tuple[int, int], tuple[float, bool]] = {}
    for i, row in enumerate(rows.tolist()):
        for j, column in enumerate(columns.tolist()):
            alike = pairs.row_ids is not None and bool(pairs.row_ids[i] == pairs.column_ids[j])
            if (
                (pairs.own >= 0 and j == pairs.own + i)
                or (alike and not pairs.positives)
                or (pairs.row_valid is not None and not pairs.row_valid[i])
                or (pairs.column_valid is not None and not pairs.column_valid[j])
            ):
                continue
            met[i, j] = sum(a * b for a, b in zip(row, column, strict=True)), alike

    def summary(side: int, size: int) -> Tensor:
        found = rows.new_zeros(3, size)
        for place in range(size):
            here = [value for pair, value in met.items() if pair[side] == place]
            total = sum(math.exp(logit) for logit, _ in here)
            found[0, place] = math.log(total) if total else -math.inf
            found[1, place] = sum(logit for logit, alike in here if alike)
            found[2, place] = sum(alike for _, alike in here)
        return found

    return summary(0, len(rows)), summary(1, len(columns))


def without_lowest(summary: Tensor) -> Tensor:
    """The lowest number stands for minus infinity."""
    return summary.masked_fill(summary < torch.finfo(summary.dtype).min / 2, -torch.inf)


@given(cases(), st.booleans(), chunk_sizes)
@many
def test_chunks_match_naive(case, both, chunk_size):
    of_rows, of_columns = in_chunks(*case, both=both, chunk_size=chunk_size)
    wanted = naive(case)
    torch.testing.assert_close(without_lowest(of_rows), wanted[0])
    if both:
        torch.testing.assert_close(without_lowest(of_columns), wanted[1])
    else:
        assert of_columns.shape == (3, 0)


def gradients(case: Case, *, both: bool, chunk_size: int | str | None) -> tuple[Tensor, ...]:
    rows, columns = (x.clone().requires_grad_() for x in case[:2])
    found = torch.cat(summaries(rows, columns, case.pairs, both=both, chunk_size=chunk_size), dim=1)
    met = found.detach()[0] > torch.finfo(found.dtype).min / 2
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).double() * met
    total = torch.where(met, found, 0) * weight
    return torch.autograd.grad(total.sum(), (rows, columns))


@given(cases(), st.booleans(), st.just("auto") | st.integers(1, 6))
@many
def test_gradients_are_those_of_the_whole_matrix(case, both, chunk_size):
    found = gradients(case, both=both, chunk_size=chunk_size)
    torch.testing.assert_close(found, gradients(case, both=both, chunk_size=None))


def test_a_row_that_met_nothing_has_no_gradient():
    rows, columns = torch.randn(2, 3, 2).double().requires_grad_().unbind(0)
    pairs = Pairs(None, None, None, torch.zeros(3, dtype=torch.bool), -1, False)
    of_rows, of_columns = in_chunks(rows, columns, pairs, both=True, chunk_size=2)
    for gradient in torch.autograd.grad(of_rows[0].sum() + of_columns[0].sum(), (rows, columns)):
        assert torch.equal(gradient, torch.zeros(3, 2).double())


MEMORY = """
import resource, torch
from mmfuse import info_nce

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def train(rows):
    query, key = (torch.randn(rows, 16, requires_grad=True) for _ in range(2))
    ids = torch.arange(rows) // 2
    info_nce(query, key, ids=ids, symmetric=True, chunk_size="auto").backward()

torch.set_num_threads(1)
train(64)
before = peak()
train(8192)
print(1024 * (peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak has another unit")
def test_memory_is_a_small_part_of_the_matrix():
    run = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    assert int(run.stdout) < 4 * 8192**2 / 8


PAIRS = Pairs(
    torch.tensor([0, 1, 0, 2]),
    torch.tensor([0, 1, 2, 0]),
    torch.tensor([True, True, True, False]),
    torch.tensor([True, True, True, False]),
    0,
    True,
)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("positives", [False, True])
def test_gradcheck(both, positives):
    def summary(rows: Tensor, columns: Tensor) -> Tensor:
        pairs = PAIRS._replace(positives=positives, row_valid=None)
        of_rows, of_columns = in_chunks(rows, columns, pairs, both=both, chunk_size=3)
        return torch.cat([of_rows[:2], of_columns[:2, :3]], dim=1)  # the last has met nothing

    rows, columns = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(summary, (rows.requires_grad_(), columns.requires_grad_()))


def test_operator_keeps_the_rules_of_torch():
    rows, columns = (x.requires_grad_() for x in torch.randn(2, 4, 3))
    for both in (False, True):
        found = torch.library.opcheck(torch.ops.mmfuse.contrast, (rows, columns, *PAIRS, both, 3))
        assert set(found.values()) == {"SUCCESS"}


def test_is_differentiable_once():
    rows, columns = (x.requires_grad_() for x in torch.randn(2, 4, 3))
    of_rows, _ = in_chunks(rows, columns, PAIRS, both=False, chunk_size=2)
    (gradient,) = torch.autograd.grad(of_rows[0, :3].sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r"backward through mmfuse\.contrast_backward"):
        gradient.sum().backward()


def test_backward_pass_under_autocast_is_not_rounded():
    rows, columns = (x.requires_grad_() for x in torch.randn(2, 4, 3))

    def gradient() -> tuple[Tensor, ...]:
        of_rows, _ = in_chunks(rows, columns, PAIRS, both=False, chunk_size=2)
        return torch.autograd.grad(of_rows[0, :3].sum(), (rows, columns))

    wanted = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
