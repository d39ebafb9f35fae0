"""Tests for mmfuse.losses.modality_swap."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import ModalitySwapInfoNCE, info_nce, swap_modalities
from mmfuse.losses import LearnedTemperature
from mmfuse.testing import assert_block_contract
from tests.references import naive_info_nce
from tests.strategies import Sequences, seeds, sequences, sizes, with_nan

few = settings(max_examples=25)
shares = st.sampled_from([0.0, 0.3, 0.5, 1.0])
batches = sequences(lead=st.tuples(sizes), num_modalities=st.integers(2, 4))

Encode = Callable[[Tensor, int], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder(length: int) -> Encode:
    """Every modality adds up the positions in its own way."""
    weights = torch.randn(5, length, dtype=torch.float64)

    def encode(stream: Tensor, modality: int) -> Tensor:
        return torch.einsum("bld,l->bd", stream, weights[modality].to(stream.dtype))

    return encode


class Recorder:
    """Remembers what it was asked to encode."""

    def __init__(self) -> None:
        self.streams: list[Tensor] = []
        self.modalities: list[int] = []

    def __call__(self, stream: Tensor, modality: int) -> Tensor:
        self.streams.append(stream)
        self.modalities.append(modality)
        return stream.mean(1)


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_swap(
    a: Tensor, b: Tensor, p: float, exact: bool, allowed: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Walk over sequences and positions; exchange where the draw is below p, or the smallest."""
    a, b = a.clone(), b.clone()
    draws = torch.rand(a.shape[:2], generator=generator).tolist()
    odd = torch.rand(a.shape[0], generator=generator).tolist() if exact else []
    for row in range(a.shape[0]):
        places = [place for place in range(a.shape[1]) if allowed[row, place]]
        if exact:
            places.sort(key=draws[row].__getitem__)
            whole = math.floor(p * len(places))
            places = places[: whole + (odd[row] < p * len(places) - whole)]
        for position in places:
            if exact or draws[row][position] < p:
                kept = a[row, position].clone()
                a[row, position] = b[row, position]
                b[row, position] = kept
    return a, b


def naive_loss(
    case: Sequences,
    encode: Encode,
    ids: Sequence[int],
    loss: ModalitySwapInfoNCE,
    generator: torch.Generator,
) -> float:
    """Sum over pairs of modalities, mean over the sequences in which both meet."""
    total = 0.0
    x = torch.where(case.present.unsqueeze(-1), case.x, 0)
    for m, n in loss.pairs or combinations(range(x.shape[2]), 2):
        both = case.present[..., m] & case.present[..., n] & case.valid
        a, b = naive_swap(x[:, :, m], x[:, :, n], loss.p, loss.exact, both, generator)
        q, k = encode(a, m).tolist(), encode(b, n).tolist()
        rows = [row for row in range(len(q)) if both[row].any()]
        total += naive_mean(q, k, ids, rows, loss.contrast.temperature)
        if loss.contrast.symmetric:
            total += naive_mean(k, q, ids, rows, loss.contrast.temperature)
    return total / 2 if loss.contrast.symmetric else total


def naive_mean(
    q: list[list[float]], k: list[list[float]], ids: Sequence[int], rows: list[int], tau: float
) -> float:
    negatives = [[k[j] for j in rows if j != i and ids[j] != ids[i]] for i in rows]
    losses = naive_info_nce([q[i] for i in rows], [k[i] for i in rows], negatives, tau)
    return sum(losses) / max(len(rows), 1)


@given(batches, shares, *[st.booleans()] * 3, st.sampled_from([None, ((1, 0),)]))
@settings(max_examples=40)
def test_matches_naive(case, p, exact, symmetric, shared_ids, pairs):
    rows = case.x.shape[0]
    ids = torch.randint(2, (rows,)) if shared_ids else torch.arange(rows)
    encode = encoder(case.x.shape[1])
    loss = ModalitySwapInfoNCE(p, exact=exact, pairs=pairs, temperature=0.5, symmetric=symmetric)
    result = loss(case.x, encode, case.valid, present=case.present, ids=ids, generator=seeded())
    wanted = naive_loss(case, encode, ids.tolist(), loss, seeded())
    torch.testing.assert_close(result, torch.tensor(wanted, dtype=torch.float64))


@given(batches, shares, st.booleans(), seeds)
@few
def test_swap_matches_naive(case, p, exact, seed):
    a, b = case.x[:, :, 0], case.x[:, :, 1]
    result = swap_modalities(a, b, p, exact=exact, valid=case.valid, generator=seeded(seed))
    wanted = naive_swap(a, b, p, exact, case.valid, seeded(seed))
    for got, want in zip(result, wanted, strict=True):
        assert torch.equal(got, want)


# -- properties of a swap -------------------------------------------------------------------------


def two_streams(*shape: int) -> tuple[Tensor, Tensor]:
    """Zeros and ones, so that what was swapped can be read off."""
    return torch.zeros(*shape, 1), torch.ones(*shape, 1)


def test_never_swaps_at_zero():
    a, b = two_streams(4, 100)
    assert all(map(torch.equal, swap_modalities(a, b, 0.0), (a, b)))


def test_always_swaps_at_one():
    a, b = two_streams(4, 100)
    assert all(map(torch.equal, swap_modalities(a, b, 1.0), (b, a)))


@given(batches, shares)
@few
def test_swap_loses_nothing_and_stays_in_its_place(case, p):
    a, b = case.x[:, :, 0], case.x[:, :, 1]
    one, other = swap_modalities(a, b, p)
    kept = (one == a).all(-1) & (other == b).all(-1)
    moved = (one == b).all(-1) & (other == a).all(-1)
    assert (kept | moved).all()


@given(batches, shares)
@few
def test_padding_never_moves(case, p):
    a, b = case.x[:, :, 0], case.x[:, :, 1]
    one, other = swap_modalities(a, b, p, valid=case.valid)
    assert torch.equal(one[~case.valid], a[~case.valid])
    assert torch.equal(other[~case.valid], b[~case.valid])


@given(seeds)
@few
def test_same_seed_gives_the_same_views(seed):
    a, b = two_streams(4, 100)
    first = swap_modalities(a, b, generator=seeded(seed))
    again = swap_modalities(a, b, generator=seeded(seed))
    assert all(map(torch.equal, first, again))


def test_another_seed_gives_other_views():
    a, b = two_streams(4, 100)
    first, _ = swap_modalities(a, b, generator=seeded(0))
    other, _ = swap_modalities(a, b, generator=seeded(1))
    assert not torch.equal(first, other)


def test_own_generator_leaves_the_default_one_alone():
    before = torch.get_rng_state()
    swap_modalities(*two_streams(4, 5), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_swapped_share_is_binomial(p):
    rows, length = 2000, 50
    swapped, _ = swap_modalities(*two_streams(rows, length), p)
    counts = swapped.sum((1, 2))
    mean, variance = length * p, length * p * (1 - p)
    assert abs(counts.mean() - mean) < 4 * math.sqrt(variance / rows)
    assert abs(counts.var() - variance) < 4 * variance * math.sqrt(2 / rows)


def test_positions_are_swapped_independently():
    swapped, _ = swap_modalities(*two_streams(10_000, 3))
    correlation = torch.corrcoef(swapped.squeeze(-1).T)
    assert (correlation - torch.eye(3)).abs().max() < 4 / math.sqrt(10_000)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_exact_share_is_the_share_of_every_row(p):
    a, b = two_streams(50, 8)
    valid = torch.arange(8) < 4 * torch.randint(3, (50, 1))  # none, four or eight positions
    swapped = swap_modalities(a, b, p, exact=True, valid=valid)[0].squeeze(-1)
    assert torch.equal(swapped.sum(-1), p * valid.sum(-1))
    assert not swapped[~valid].any()


def test_exact_share_is_exact_in_long_rows_and_coarse_types():
    """The sum of a count and a draw, rounded to float32, would be one too large now and then."""
    a, b = (stream.to(torch.bfloat16) for stream in two_streams(2000, 4096))
    number = swap_modalities(a, b, exact=True)[0].squeeze(-1).sum(-1, dtype=torch.int64)
    assert (number == 2048).all()


def test_exact_share_of_an_odd_row_is_right_in_the_mean():
    """Half of five is two or three, each as often, and every position swaps as often as another."""
    a, b = two_streams(20_000, 5)
    swapped = swap_modalities(a, b, exact=True, generator=seeded())[0].squeeze(-1)
    number = swapped.sum(-1)
    assert set(number.tolist()) == {2.0, 3.0}
    assert abs(number.mean() - 2.5) < 0.02  # deviates by .0035
    torch.testing.assert_close(swapped.mean(0), torch.full((5,), 0.5), atol=0.02, rtol=0)


# -- properties of the loss -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "views"),
    [
        (None, {0: 2, 1: 2, 2: 2}),
        ([(0, 1)], {0: 1, 1: 1}),
        ([(2, 0), (1, 2)], {0: 1, 1: 1, 2: 2}),
        ([], {}),
    ],
)
def test_encodes_the_views_of_a_modality_in_one_call(pairs, views):
    """As many as the pairs that it is in, one batch after another."""
    x, encode = torch.randn(2, 5, 3, 4), Recorder()
    ModalitySwapInfoNCE(0.0, pairs=pairs)(x, encode)
    assert encode.modalities == list(views)
    for modality, stream in zip(encode.modalities, encode.streams, strict=True):
        assert torch.equal(stream, x[:, :, modality].repeat(views[modality], 1, 1))


def test_an_encoder_that_loses_rows_is_an_error():
    message = r"Expected what encode returns for modality 0 of shape \(4, D\), got \(3, 4\)\."
    with pytest.raises(ValueError, match=message):
        ModalitySwapInfoNCE()(torch.randn(2, 5, 3, 4), lambda views, modality: views[1:].mean(1))


def test_without_a_batch_it_is_zero():
    assert ModalitySwapInfoNCE()(torch.zeros(0, 5, 3, 4), lambda views, m: views.mean(1)) == 0


@given(batches, shares, st.booleans())
@few
def test_without_sequences_rows_are_the_positions(case, p, exact):
    """The same draws as for one sequence of these rows, each of which is then a row again."""
    x, present, valid = case.x[:, 0], case.present[:, 0], case.valid[:, 0]
    weights = torch.randn(5, x.shape[-1], dtype=torch.float64)
    ids = torch.randint(3, valid.shape)
    loss = ModalitySwapInfoNCE(p, exact=exact, temperature=0.5)
    got = loss(
        x,
        lambda views, modality: views * weights[modality],
        valid,
        present=present,
        ids=ids,
        generator=seeded(),
    )
    wanted, generator = torch.zeros((), dtype=torch.float64), seeded()
    x = torch.where(present.unsqueeze(-1), x, 0)
    for m, n in combinations(range(x.shape[1]), 2):
        both = present[:, m] & present[:, n] & valid
        one, other = x[None, :, m], x[None, :, n]
        a, b = naive_swap(one, other, p, exact, both[None], generator)
        q, k = a[0] * weights[m], b[0] * weights[n]
        rows = both.nonzero().flatten().tolist()
        wanted += naive_mean(q.tolist(), k.tolist(), ids.tolist(), rows, 0.5)
    torch.testing.assert_close(got, wanted)


def test_takes_the_options_of_the_contrast():
    """A learned temperature, other similarity, positives by id and chunks: as InfoNCE has them."""
    x, encode = torch.randn(6, 5, 2, 3), encoder(5)
    ids = torch.tensor([0, 1, 0, 2, 1, 0])
    temperature = LearnedTemperature(0.3)
    options = {"similarity": "dot", "same_id": "positive", "chunk_size": 4, "symmetric": True}
    loss = ModalitySwapInfoNCE(0.0, temperature=temperature, **options)
    got = loss(x, encode, ids=ids)
    one, other = encode(x[:, :, 0], 0), encode(x[:, :, 1], 1)
    torch.testing.assert_close(got, info_nce(one, other, temperature=0.3, ids=ids, **options))
    got.backward()
    assert [name for name, _ in loss.named_parameters()] == ["contrast.temperature.log_temperature"]
    assert temperature.log_temperature.grad != 0


def test_encoders_see_the_other_modality_when_everything_is_swapped():
    x, encode = torch.randn(2, 5, 2, 4), Recorder()
    ModalitySwapInfoNCE(1.0)(x, encode)
    assert torch.equal(encode.streams[0], x[:, :, 1])
    assert torch.equal(encode.streams[1], x[:, :, 0])


def test_without_swaps_it_is_the_contrast_of_the_encoded_streams():
    x, encode = torch.randn(4, 5, 2, 3), encoder(5)
    loss = ModalitySwapInfoNCE(0.0, temperature=0.3, symmetric=True)(x, encode)
    one, other = encode(x[:, :, 0], 0), encode(x[:, :, 1], 1)
    torch.testing.assert_close(loss, info_nce(one, other, temperature=0.3, symmetric=True))


@given(batches)
@few
def test_modalities_swap_only_where_both_are_present(case):
    encode = Recorder()
    ModalitySwapInfoNCE(1.0, pairs=[(0, 1)])(case.x, encode, case.valid, present=case.present)
    both = (case.present[..., :2].all(-1) & case.valid).unsqueeze(-1)
    zeroed = torch.where(case.present.unsqueeze(-1), case.x, 0)
    assert torch.equal(encode.streams[0], torch.where(both, zeroed[:, :, 1], zeroed[:, :, 0]))
    assert torch.equal(encode.streams[1], torch.where(both, zeroed[:, :, 0], zeroed[:, :, 1]))


@given(batches)
@few
def test_sequence_without_a_common_position_is_as_if_never_given(case):
    encode, pair = encoder(case.x.shape[1]), ModalitySwapInfoNCE(1.0, pairs=[(0, 1)])
    everything = pair(case.x, encode, case.valid, present=case.present)
    meets = (case.present[..., 0] & case.present[..., 1] & case.valid).any(-1)
    x, present, valid = (part[meets] for part in case)
    torch.testing.assert_close(everything, pair(x, encode, valid, present=present))


def loss_and_gradient(x: Tensor, *inputs: object, **options: object) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = ModalitySwapInfoNCE()(x, *inputs, generator=seeded(), **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@given(batches)
@few
def test_nan_of_an_absent_modality_reaches_nothing(case):
    encode, options = encoder(case.x.shape[1]), {"present": case.present}
    wanted = loss_and_gradient(case.x, encode, case.valid, **options)
    dirty = with_nan(case.x, case.present)
    for got, want in zip(
        loss_and_gradient(dirty, encode, case.valid, **options), wanted, strict=True
    ):
        assert torch.equal(got, want)


@given(batches)
@few
def test_padding_that_the_encoder_leaves_out_reaches_nothing(case):
    weights = encoder(case.x.shape[1])

    def encode(stream: Tensor, modality: int) -> Tensor:
        valid = case.valid.repeat(len(stream) // len(case.valid), 1)  # of each view
        return weights(torch.where(valid.unsqueeze(-1), stream, 0), modality)

    wanted = loss_and_gradient(case.x, encode, case.valid)
    dirty = with_nan(case.x, case.valid)
    for got, want in zip(loss_and_gradient(dirty, encode, case.valid), wanted, strict=True):
        assert torch.equal(got, want)


def test_sequences_of_one_id_are_no_negatives():
    ids = torch.zeros(4, dtype=torch.int64)
    assert ModalitySwapInfoNCE()(torch.randn(4, 5, 3, 2), encoder(5), ids=ids) == 0


@pytest.mark.parametrize(
    ("options", "num_modalities"),
    [({}, 1), ({"pairs": []}, 3)],
)
def test_without_a_pair_it_is_zero_and_stays_in_the_graph(options, num_modalities):
    x = torch.randn(2, 5, num_modalities, 4, requires_grad=True)
    loss = ModalitySwapInfoNCE(**options)(x, encoder(5))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


def test_without_a_valid_position_it_is_zero_and_stays_in_the_graph():
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    loss = ModalitySwapInfoNCE()(x, encoder(5), torch.zeros(2, 5, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("rows", [0, 1])
def test_without_negatives_it_is_zero(rows):
    assert ModalitySwapInfoNCE()(torch.randn(rows, 5, 3, 4), encoder(5)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_half_precision_at_low_temperature_stays_finite(dtype, scale):
    x = (scale * torch.randn(4, 5, 3, 2)).to(dtype).requires_grad_()
    loss = ModalitySwapInfoNCE(temperature=0.01)(x, lambda stream, _: stream.mean(1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_gradient_reaches_both_encoders_and_the_streams():
    x = torch.randn(4, 5, 2, 3, requires_grad=True)
    scale = torch.ones(2, 3, requires_grad=True)
    ModalitySwapInfoNCE()(x, lambda stream, m: scale[m] * stream.mean(1)).backward()
    assert (scale.grad != 0).any(-1).all()
    assert (x.grad != 0).any(-1).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copy_gives_the_same_loss(copied):
    x, encode = torch.randn(4, 5, 3, 2), encoder(5)
    loss = ModalitySwapInfoNCE(pairs=[(0, 2)], temperature=0.2)
    again = copied(loss)(x, encode, generator=seeded())
    assert torch.equal(again, loss(x, encode, generator=seeded()))


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    present = torch.rand(3, 4, 3) < 0.7
    present[1] = False
    valid = torch.tensor([[True, True, True, False]]).expand(3, 4)
    encode = encoder(4)

    def loss(x: Tensor) -> Tensor:
        return ModalitySwapInfoNCE()(x, encode, valid, present=present, generator=seeded())

    x = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, x)


@pytest.mark.parametrize("pairs", [None, [(0, 2), (1, 0)]])
def test_contract(pairs):
    valid = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    masks = {"present": torch.rand(3, 5, 3) < 0.7, "ids": torch.arange(3)}
    assert_block_contract(
        ModalitySwapInfoNCE(symmetric=True, pairs=pairs),
        torch.randn(3, 5, 3, 4),
        lambda stream, modality: (modality + 1) * stream.cumsum(1).tanh().mean(1),
        valid,
        keywords=masks,
    )


# -- errors and repr ------------------------------------------------------------------------------

X = torch.ones(2, 5, 3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, r"Expected 0 <= p <= 1, got 1\.5\."),
        ({"p": math.nan}, r"Expected 0 <= p <= 1, got nan\."),
        ({"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        ({"pairs": [(1, 1)]}, r"Expected pairs of two different modalities, got \(1, 1\)\."),
        ({"pairs": [(0, -1)]}, r"Expected pairs of two different modalities, got \(0, -1\)\."),
        ({"pairs": [(0, 1, 2)]}, r"Expected pairs .* modalities, got \(0, 1, 2\)\."),
        ({"pairs": [()]}, r"Expected pairs of two different modalities, got \(\)\."),
        ({"pairs": (0, 1)}, r"Expected pairs of two different modalities, got 0\."),
        ({"pairs": [(0.0, 1.0)]}, r"Expected pairs .* modalities, got \(0\.0, 1\.0\)\."),
        ({"temperature": None}, r"Expected temperature as a number, got None\."),
        ({"chunk_size": 2.5}, r"Expected chunk_size as a whole number, got 2\.5\."),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        ModalitySwapInfoNCE(**options)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[0, 0], {}, r"Expected streams of shape \(B, L, M, D\), got \(3, 4\)\."),
        (X[None], {}, r"Expected streams of shape \(B, L, M, D\), got \(1, 2, 5, 3, 4\)\."),
        (X, {"valid": X[:, :, 0, 0]}, r"Expected valid of dtype torch\.bool, got torch\.float32\."),
        (X, {"valid": X[0, :, 0, 0] > 0}, r"Expected valid of shape \(2, 5\), got \(5,\)\."),
        (X, {"present": X[..., 0]}, r"Expected present of dtype torch\.bool, got torch\.float32\."),
        (X, {"present": X > 0}, r"Expected present of shape \(2, 5, 3\), got \(2, 5, 3, 4\)\."),
        (X, {"ids": torch.arange(3)}, r"Expected ids of shape \(2,\), got \(3,\)\."),
        (X[:, 0], {"valid": X[..., 0, 0] > 0}, r"Expected valid of shape \(2,\), got \(2, 5\)\."),
        (X[:, 0], {"present": X > 0}, r"Expected present of shape \(2, 3\), got \(2, 5, 3, 4\)\."),
    ],
)
def test_rejects_bad_inputs(x, options, message):
    with pytest.raises(ValueError, match=message):
        ModalitySwapInfoNCE()(x, encoder(5), **options)


def test_rejects_a_mask_that_does_not_fit_beside_one_that_does():
    masks = {"present": X[..., 0] > 0, "valid": X[0, :, 0, 0] > 0}
    with pytest.raises(ValueError, match=r"Expected valid of shape \(2, 5\), got \(5,\)\."):
        ModalitySwapInfoNCE()(X, encoder(5), **masks)


def test_rejects_an_encoder_that_returns_no_tensor():
    message = r"Expected what encode returns for modality 0 as a tensor, got tuple\."
    with pytest.raises(ValueError, match=message):
        ModalitySwapInfoNCE()(X, lambda views, modality: (views.mean(1), None))


def test_rejects_a_pair_beyond_the_streams():
    message = r"Expected streams of at least 4 modalities for pairs \(\(0, 3\),\), got 3\."
    with pytest.raises(ValueError, match=message):
        ModalitySwapInfoNCE(pairs=[(0, 3)])(X, encoder(5))


def test_rejects_an_encoder_that_keeps_the_positions():
    message = r"Expected what encode returns for modality 0 of shape \(4, D\), got \(4, 5, 4\)\."
    with pytest.raises(ValueError, match=message):
        ModalitySwapInfoNCE()(X, lambda stream, modality: stream)


@pytest.mark.parametrize(
    ("b", "options", "message"),
    [
        (X[0, :, 0], {"p": -0.1}, r"Expected 0 <= p <= 1, got -0\.1\."),
        (X[0, :, 0, :2], {}, r"Expected b of shape \(5, 4\), got \(5, 2\)\."),
        (X[:, :, 0], {}, r"Expected b of shape \(5, 4\), got \(2, 5, 4\)\."),
        (X[0, :, 0], {"valid": X[0, :, 0, 0]}, r"Expected valid of dtype torch\.bool, got .*"),
        (X[0, :, 0], {"valid": X[0] > 0}, r"Expected valid of shape \(5,\), got \(5, 3, 4\)\."),
    ],
)
def test_swap_rejects_bad_inputs(b, options, message):
    with pytest.raises(ValueError, match=message):
        swap_modalities(X[0, :, 0], b, **options)


def test_swap_rejects_a_single_vector():
    with pytest.raises(ValueError, match=r"Expected a of shape \(\.\.\., L, D\), got \(4,\)\."):
        swap_modalities(torch.ones(4), torch.ones(4))


def test_repr():
    wanted = (
        "ModalitySwapInfoNCE(\n"
        "  p=0.5, exact=False, pairs=((0, 1),)\n"
        "  (contrast): InfoNCELoss(temperature=1.0, reduction='mean', symmetric=False)\n"
        ")"
    )
    assert repr(ModalitySwapInfoNCE(pairs=[(0, 1)])) == wanted
