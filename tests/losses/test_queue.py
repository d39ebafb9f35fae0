"""Tests for mmfuse.losses.queue."""

from __future__ import annotations

import copy
import io
import pickle
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.losses import KeyQueue, debiased_info_nce, info_nce
from tests.strategies import seeds, sizes, with_nan

many = settings(max_examples=60)
few = settings(max_examples=25)
batch_sizes = st.lists(st.integers(0, 9), max_size=6)


def filled(size: int, dim: int, batches: list[int], seed: int) -> KeyQueue:
    torch.manual_seed(seed)
    queue = KeyQueue(size, dim)
    for number in batches:
        queue.enqueue(torch.randn(number, dim), torch.randint(5, (number,)))
    return queue


# -- reference: Python's own queue ----------------------------------------------------------------


@given(sizes, sizes, batch_sizes, seeds, st.booleans(), st.booleans())
@many
def test_is_first_in_first_out(size, dim, batches, seed, with_ids, with_valid):
    torch.manual_seed(seed)
    queue = KeyQueue(size, dim)
    keys: deque[list[float]] = deque(maxlen=size)
    names: deque[int] = deque(maxlen=size)
    for number in batches:
        batch, ids = torch.randn(number, dim), torch.randint(5, (number,))
        valid = torch.rand(number) < 0.6
        queue.enqueue(batch, ids if with_ids else None, valid if with_valid else None)
        for key, name, ok in zip(batch, ids, valid, strict=True):
            if ok or not with_valid:
                keys.append(key.tolist())
                names.append(int(name) if with_ids else -100)
        assert queue.keys().tolist() == list(keys)
        assert queue.ids().tolist() == list(names)


@given(sizes, sizes, batch_sizes, seeds)
@few
def test_one_batch_is_its_rows_one_by_one(size, dim, batches, seed):
    at_once = filled(size, dim, batches, seed)
    keys, ids = torch.randn(7, dim), torch.arange(7)
    by_row = copy.deepcopy(at_once)
    at_once.enqueue(keys, ids)
    for key, name in zip(keys, ids, strict=True):
        by_row.enqueue(key.unsqueeze(0), name.unsqueeze(0))
    for name, buffer in at_once.named_buffers():
        assert torch.equal(buffer, by_row.get_buffer(name)), name


# -- state ----------------------------------------------------------------------------------------


def through_a_file(queue: KeyQueue) -> KeyQueue:
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    resumed = KeyQueue(queue.size, queue.dim)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    return resumed


@pytest.mark.parametrize(
    "copied", [through_a_file, copy.deepcopy, lambda queue: pickle.loads(pickle.dumps(queue))]
)
@pytest.mark.parametrize("batches", [[], [3], [3, 3], [4, 7]])
def test_resumed_queue_goes_on_in_the_same_way(copied, batches):
    queue = filled(5, 3, batches, 0)
    resumed = copied(queue)
    for number in (0, 2, 4, 9):
        assert torch.equal(resumed.keys(), queue.keys())
        assert torch.equal(resumed.ids(), queue.ids())
        keys, ids = torch.randn(number, 3), torch.arange(number)
        queue.enqueue(keys, ids)
        resumed.enqueue(keys, ids)


def test_everything_is_in_the_state_dict():
    queue = KeyQueue(5, 3)
    assert set(queue.state_dict()) == {"key_buffer", "id_buffer", "place", "filled"}
    assert not list(queue.parameters())


def test_reset_forgets_everything():
    queue = filled(5, 3, [4, 4], 0)
    queue.reset()
    assert queue.keys().shape == (0, 3)
    for name, buffer in queue.named_buffers():
        assert torch.equal(buffer, KeyQueue(5, 3).get_buffer(name)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keys_take_the_dtype_of_the_queue(dtype):
    queue = KeyQueue(5, 3).to(dtype)
    keys = torch.randn(2, 3)
    queue.enqueue(keys, torch.tensor([2**40, 7]))
    assert torch.equal(queue.keys(), keys.to(dtype))
    assert queue.ids().tolist() == [2**40, 7]


def test_device_is_that_of_the_constructor():
    assert {buffer.device.type for buffer in KeyQueue(5, 3, device="meta").buffers()} == {"meta"}


# -- gradients and masks --------------------------------------------------------------------------


def test_keys_carry_no_gradient_and_leave_the_batch_alone():
    queue = KeyQueue(5, 3)
    keys = torch.randn(4, 3, requires_grad=True)
    queue.enqueue(2 * keys)
    assert not queue.keys().requires_grad
    before = queue.keys()
    with torch.no_grad():
        keys.zero_()
    assert torch.equal(queue.keys(), before)


def test_what_was_taken_out_does_not_change_with_the_queue():
    queue = filled(3, 2, [3], 0)
    query = torch.randn(4, 2, requires_grad=True)
    keys = queue.keys()
    loss = info_nce(query, query.detach(), keys)
    queue.enqueue(torch.randn(3, 2))  # before the backward pass, which still needs the old ones
    loss.backward()
    assert query.grad.isfinite().all()
    assert not torch.equal(queue.keys(), keys)


def test_nan_of_an_invalid_key_is_not_kept():
    queue, valid = KeyQueue(5, 3), torch.tensor([True, False, True])
    queue.enqueue(with_nan(torch.randn(3, 3), valid), valid=valid)
    assert queue.keys().isfinite().all()
    assert len(queue.keys()) == 2


# -- use ------------------------------------------------------------------------------------------


def step(queue: KeyQueue, query: Tensor, key: Tensor) -> Tensor:
    loss = info_nce(query, key, queue.keys())
    queue.enqueue(key)
    return loss


@given(st.integers(1, 4), sizes, seeds)
@few
def test_keys_are_negatives_of_info_nce(rows, dim, seed):
    torch.manual_seed(seed)
    queue = KeyQueue(2 * rows, dim, dtype=torch.float64)
    batches = torch.randn(3, 2, rows, dim, dtype=torch.float64)
    assert step(queue, *batches[0]) == 0  # nothing in the queue yet
    torch.testing.assert_close(step(queue, *batches[1]), info_nce(*batches[1], batches[0, 1]))
    both = batches[:2, 1].flatten(0, 1)
    torch.testing.assert_close(step(queue, *batches[2]), info_nce(*batches[2], both))


def test_keys_of_the_same_id_are_no_negatives():
    queue, (query, key) = KeyQueue(6, 3), torch.randn(2, 4, 3)
    past, past_ids, ids = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0]), torch.arange(4)
    queue.enqueue(past, past_ids)
    queue.enqueue(past[:1])  # of unknown id: a negative of everybody
    losses = debiased_info_nce(
        query,
        key,
        queue.keys(),
        tau_plus=0.0,
        ids=ids,
        key_ids=queue.ids(),
        reduction="none",
    )
    for row in range(4):
        negatives = torch.cat([past[past_ids != row], past[:1]])
        wanted = info_nce(query[row : row + 1], key[row : row + 1], negatives)
        torch.testing.assert_close(losses[row], wanted)


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "dim", "message"),
    [(0, 3, r"Expected size > 0, got 0\."), (5, -1, r"Expected dim > 0, got -1\.")],
)
def test_rejects_bad_hyperparameters(size, dim, message):
    with pytest.raises(ValueError, match=message):
        KeyQueue(size, dim)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(3),), r"Expected keys of shape \(B, 3\), got \(3,\)\."),
        ((torch.ones(2, 4),), r"Expected keys of shape \(B, 3\), got \(2, 4\)\."),
        ((torch.ones(2, 3), torch.arange(3)), r"Expected ids of shape \(2,\), got \(3,\)\."),
        ((torch.ones(2, 3), torch.ones(2)), r"Expected ids of an integer dtype, got torch\.float"),
        (
            (torch.ones(2, 3), None, torch.ones(2)),
            r"Expected valid of dtype torch\.bool, got torch\.float32\.",
        ),
        (
            (torch.ones(2, 3), None, torch.ones(3, dtype=torch.bool)),
            r"Expected valid of shape \(2,\), got \(3,\)\.",
        ),
    ],
)
def test_rejects_bad_inputs(inputs, message):
    with pytest.raises(ValueError, match=message):
        KeyQueue(5, 3).enqueue(*inputs)


def test_rejected_keys_leave_the_queue_as_it_was():
    queue = filled(5, 3, [4], 0)
    before = queue.keys()
    with pytest.raises(ValueError, match="Expected ids"):
        queue.enqueue(torch.ones(2, 3), torch.arange(3))
    assert torch.equal(queue.keys(), before)


def test_repr():
    assert repr(KeyQueue(5, 3)) == "KeyQueue(size=5, dim=3)"


@given(sizes, sizes, batch_sizes, seeds)
@few
def test_a_queued_key_of_the_row_is_no_negative(size, dim, batches, seed):
    queue = filled(size, dim, batches, seed)
    query, key = torch.randn(2, 3, dim)
    ids = torch.arange(3)
    kept = [queue.keys()[queue.ids() != name] for name in ids]
    losses = info_nce(
        query, key, queue.keys(), ids=ids, key_ids=queue.ids(), reduction="none", temperature=0.5
    )
    for row, others in enumerate(kept):
        one = slice(row, row + 1)
        alone = info_nce(query[one], key[one], others, temperature=0.5)
        torch.testing.assert_close(losses[row], alone)
