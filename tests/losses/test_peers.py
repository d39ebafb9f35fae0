"""Other libraries: where the definitions agree the numbers do; where not, a test says why.

The definitions, read aloud in plain Python, are compared everywhere. The libraries are no
dependencies: what needs one is skipped where it is not installed. Last compared with
pytorch-metric-learning 2.9.0, lightly 1.6.0 and open_clip 3.3.0, none of which has a debiased loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmfuse.losses import (
    KeyQueue,
    alignment_loss,
    info_nce,
    multiway_info_nce,
    sigmoid_contrastive_loss,
    supervised_contrastive_loss,
    uniformity_loss,
)
from tests.contrast import value_and_gradients
from tests.losses.test_alignment import distance
from tests.losses.test_info_nce import naive_losses
from tests.losses.test_sigmoid import naive_pair
from tests.losses.test_supervised import naive_loss
from tests.references import cosine, naive_info_nce
from tests.strategies import seeds, sizes

few = settings(max_examples=25)
temperatures = st.sampled_from([0.1, 0.5, 3.0])
BIAS, PULL, WEIGHT = -1.5, 2.0, 0.7
PML, LIGHTLY, OPEN_CLIP = "pytorch_metric_learning.losses", "lightly.loss", "open_clip.loss"
SPHERE = "lightly.loss.hypersphere_loss"


def peer(name: str) -> ModuleType:
    """A peer's losses; importorskip ignores what it warns of at import, which is not ours."""
    return pytest.importorskip(name, reason=f"{name} is not installed: no dependency of mmfuse")


def same(got: Tensor, wanted: Tensor | float) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def assert_agree(theirs: Callable[..., Tensor], ours: Callable[..., Tensor], *to: Tensor) -> None:
    """One value, and one gradient for each tensor."""
    for got, wanted in zip(
        value_and_gradients(theirs, *to), value_and_gradients(ours, *to), strict=True
    ):
        same(got, wanted)


class Batch(NamedTuple):
    query: Tensor  # (B, D)
    key: Tensor  # (B, D)
    labels: Tensor  # (B,)


def batch(rows: int, dim: int = 3) -> Batch:
    """Two labels at least: of a single one the definitions differ, see below."""
    query, key = torch.randn(2, rows, dim, dtype=torch.float64)
    return Batch(query, key, torch.cat([torch.arange(2), torch.randint(3, (rows - 2,))]))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows, dim = draw(st.integers(2, 5)), draw(sizes)
    torch.manual_seed(draw(seeds))
    return batch(rows, dim)


# -- the definitions: read aloud, of mmfuse, and of those who have them ----------------------------


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def naive_one_way(query: Tensor, key: Tensor, tau: float) -> float:
    keys = key.tolist()
    others = [keys[:i] + keys[i + 1 :] for i in range(len(keys))]
    return mean(naive_info_nce(query.tolist(), keys, others, tau))


def naive_pairs(x: Tensor, labels: Tensor, tau: float) -> float:
    """NT-Xent: one loss a pair of one label; negatives are the first one's, of other labels."""
    rows, vectors, names = range(len(x)), x.tolist(), labels.tolist()
    pairs = [(a, p) for a in rows for p in rows if a != p and names[a] == names[p]]
    negatives = [[vectors[n] for n in rows if names[n] != names[a]] for a, _ in pairs]
    first, second = [vectors[a] for a, _ in pairs], [vectors[p] for _, p in pairs]
    return mean(naive_info_nce(first, second, negatives, tau))


def pairs(x: Tensor, labels: Tensor, tau: float) -> Tensor:
    a, p = (labels.unsqueeze(1) == labels).fill_diagonal_(False).nonzero(as_tuple=True)
    return info_nce(x[a], x[p], x, ids=labels[a], key_ids=labels, temperature=tau)


def each(rows: Tensor) -> Tensor:
    """Labels of both views of rows that are all different."""
    return torch.arange(len(rows)).repeat(2)


def naive_supcon(x: Tensor, labels: Tensor, tau: float) -> float:
    losses = naive_loss(x.tolist(), (labels.unsqueeze(1) == labels).tolist(), tau, "out")
    return mean([loss for loss in losses if loss is not None])


def naive_across(query: Tensor, key: Tensor, labels: Tensor, tau: float) -> float:
    """SupCon from one view to the other."""
    rows, met = range(len(labels)), labels.unsqueeze(1) == labels
    others = [[(key[j].tolist(), bool(met[i, j])) for j in rows if j != i] for i in rows]
    return mean(naive_losses(query, key, others, cosine, tau, "positive"))


def naive_siglip(query: Tensor, key: Tensor, tau: float) -> float:
    rows = range(len(query))
    every = [naive_pair(query[i], key[j], i == j, tau, BIAS) for i in rows for j in rows]
    return sum(every) / len(rows)


def naive_sphere(query: Tensor, key: Tensor) -> float:
    """Alignment, and uniformity of both views with a weight."""
    apart = [
        mean([math.exp(-PULL * distance(one, other) ** 2) for one, other in combinations(x, 2)])
        for x in (query, key)
    ]
    close = mean([distance(q, k) ** 2 for q, k in zip(query, key, strict=True)])
    return close + WEIGHT * mean([math.log(pull) for pull in apart])


def sphere(query: Tensor, key: Tensor) -> Tensor:
    spread = uniformity_loss(query, t=PULL) + uniformity_loss(key, t=PULL)
    return alignment_loss(query, key) + WEIGHT * spread / 2


class Definition(NamedTuple):
    """Each takes query, key, labels and temperature; that of a peer its module before them."""

    naive: Callable[..., float]
    ours: Callable[..., Tensor]
    peers: Mapping[str, Callable[..., Tensor]]


def units(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """As open_clip wants them."""
    return F.normalize(query), F.normalize(key)


DEFINITIONS: Mapping[str, Definition] = {
    "one way": Definition(
        lambda q, k, y, tau: naive_one_way(q, k, tau),
        lambda q, k, y, tau: info_nce(q, k, temperature=tau),
        {PML: lambda m, q, k, y, tau: m.SelfSupervisedLoss(m.NTXentLoss(tau), False)(q, k)},
    ),
    "CLIP": Definition(
        lambda q, k, y, tau: mean([naive_one_way(q, k, tau), naive_one_way(k, q, tau)]),
        lambda q, k, y, tau: info_nce(q, k, temperature=tau, symmetric=True),
        {OPEN_CLIP: lambda m, q, k, y, tau: m.ClipLoss()(*units(q, k), 1 / tau)},
    ),
    "NT-Xent of two views, 2N x 2N": Definition(
        lambda q, k, y, tau: naive_pairs(torch.cat([q, k]), each(y), tau),
        lambda q, k, y, tau: pairs(torch.cat([q, k]), each(y), tau),
        {
            PML: lambda m, q, k, y, tau: m.SelfSupervisedLoss(m.NTXentLoss(tau))(q, k),
            LIGHTLY: lambda m, q, k, y, tau: m.NTXentLoss(tau)(q, k),
        },
    ),
    "NT-Xent of labels": Definition(
        lambda q, k, y, tau: naive_pairs(torch.cat([q, k]), y.repeat(2), tau),
        lambda q, k, y, tau: pairs(torch.cat([q, k]), y.repeat(2), tau),
        {PML: lambda m, q, k, y, tau: m.NTXentLoss(tau)(torch.cat([q, k]), y.repeat(2))},
    ),
    "SupCon": Definition(
        lambda q, k, y, tau: naive_supcon(torch.cat([q, k]), y.repeat(2), tau),
        lambda q, k, y, tau: supervised_contrastive_loss(
            torch.stack([q, k], 1), y, temperature=tau
        ),
        {PML: lambda m, q, k, y, tau: m.SupConLoss(tau)(torch.cat([q, k]), y.repeat(2))},
    ),
    "SupCon from view to view": Definition(
        naive_across,
        lambda q, k, y, tau: info_nce(q, k, ids=y, same_id="positive", temperature=tau),
        {
            PML: lambda m, q, k, y, tau: m.SupConLoss(tau)(
                q, y, ref_emb=k, ref_labels=y.clone()
            )  # a clone: of the very same tensor it leaves out the diagonal
        },
    ),
    "SigLIP": Definition(
        lambda q, k, y, tau: naive_siglip(q, k, tau),
        lambda q, k, y, tau: sigmoid_contrastive_loss(q, k, temperature=tau, bias=BIAS),
        {OPEN_CLIP: lambda m, q, k, y, tau: m.SigLipLoss()(*units(q, k), 1 / tau, BIAS)},
    ),
    "alignment and uniformity": Definition(
        lambda q, k, y, tau: naive_sphere(q, k),
        lambda q, k, y, tau: sphere(q, k),
        {SPHERE: lambda m, q, k, y, tau: m.HypersphereLoss(PULL, WEIGHT)(q, k)},
    ),
}
HELD = [(name, module) for name, held in DEFINITIONS.items() for module in held.peers]


@pytest.mark.parametrize("name", DEFINITIONS)
@given(batches(), temperatures)
@few
def test_mmfuse_has_the_definition(name, case, temperature):
    definition = DEFINITIONS[name]
    same(definition.ours(*case, temperature), definition.naive(*case, temperature))


@pytest.mark.parametrize(("name", "module"), HELD)
@given(batches(), temperatures)
@few
def test_peer_has_the_definition_and_our_gradients(name, module, case, temperature):
    naive, ours, peers = DEFINITIONS[name]
    losses, rest = peer(module), (case.labels, temperature)
    same(peers[module](losses, *case, temperature), naive(*case, temperature))
    assert_agree(
        lambda q, k: peers[module](losses, q, k, *rest), lambda q, k: ours(q, k, *rest), *case[:2]
    )


# -- agreement of what has no definition above -----------------------------------------------------


def test_learned_numbers_have_the_gradients_of_open_clip():
    losses = peer(OPEN_CLIP)
    query, key, _ = batch(5)
    tau, bias = torch.tensor([0.3, -2.0], dtype=torch.float64)
    assert_agree(
        lambda tau: losses.ClipLoss()(*units(query, key), 1 / tau),
        lambda tau: info_nce(query, key, temperature=tau, symmetric=True),
        tau,
    )
    assert_agree(
        lambda tau, bias: losses.SigLipLoss()(*units(query, key), 1 / tau, bias),
        lambda tau, bias: sigmoid_contrastive_loss(query, key, temperature=tau, bias=bias),
        tau,
        bias,
    )


def test_more_than_two_modalities_are_the_mean_of_clip_losses():
    """No peer has more than two: each pair of modalities is one ClipLoss."""
    clip, streams = peer(OPEN_CLIP).ClipLoss(), torch.randn(4, 3, 5, dtype=torch.float64)
    assert_agree(
        lambda x: (
            sum(clip(*units(x[:, m], x[:, n]), 2.0) for m, n in combinations(range(3), 2)) / 3
        ),
        lambda x: multiway_info_nce(x, temperature=0.5),
        streams,
    )


def test_a_product_is_taken_as_it_is_where_ours_is_told_to():
    """open_clip never makes unit vectors, PML not with its DotProductSimilarity."""
    query, key, _ = batch(5)
    product = peer("pytorch_metric_learning.distances").DotProductSimilarity
    nt_xent = peer(PML).NTXentLoss(0.5, distance=product(normalize_embeddings=False))
    one_way = peer(PML).SelfSupervisedLoss(nt_xent, symmetric=False)
    dot = partial(info_nce, similarity="dot", temperature=0.5)
    assert_agree(one_way, dot, query, key)
    clip = peer(OPEN_CLIP).ClipLoss()
    assert_agree(partial(clip, logit_scale=2.0), partial(dot, symmetric=True), query, key)


@pytest.mark.parametrize("rows", [2, 3])
def test_memory_of_pml_is_our_queue_where_keys_come_first(rows):
    """Four places; PML goes on where they begin again, as KeyQueue does.

    CrossBatchMemory enqueues first and takes the loss then: the other keys of the batch are
    negatives too, and the row's own is none by its label. Our queue allows either order; in that
    of its documentation, the loss first, the first batch has no negatives and a loss of zero.
    """
    memory, queue = peer(PML).CrossBatchMemory(peer(PML).NTXentLoss(0.5), 3, 4), KeyQueue(4, 3)
    queue.double()

    def step(number: int) -> None:
        query, key, _ = batch(rows)
        ids, enqueued = number * rows + torch.arange(rows), torch.arange(2 * rows) >= rows
        before = info_nce(query, key, queue.keys(), temperature=0.5)
        queue.enqueue(key, ids)
        ours = partial(info_nce, temperature=0.5, ids=ids, key_ids=queue.ids())
        assert_agree(
            lambda q: memory(torch.cat([q, key]), ids.repeat(2), enqueue_mask=enqueued),
            lambda q: ours(q, key, queue.keys()),
            query,
        )
        if number == 0:
            assert before == 0 < ours(query, key, queue.keys())

    for number in range(4):
        step(number)
    assert set(memory.label_memory.tolist()) == set(queue.ids().tolist())


def bank_of(rows: int, size: int) -> tuple[Any, KeyQueue, list[Tensor]]:
    """What lightly's loss with a memory bank and our queue hold after two batches; their keys."""
    loss = peer(LIGHTLY).NTXentLoss(0.5, memory_bank_size=(size, 3)).double()
    queue, keys = KeyQueue(size, 3).double(), []
    for _ in range(2):
        query, key, _ = batch(rows)
        loss(query.requires_grad_(), key)
        keys.append(F.normalize(key))
        queue.enqueue(keys[-1])
    return loss, queue, keys


def test_bank_of_lightly_is_our_queue_where_batches_fill_it():
    """Four places, filled by two batches of two: the same negatives, and the same loss."""
    loss, queue, keys = bank_of(2, 4)
    same(loss.memory_bank.bank, torch.cat(keys))
    same(queue.keys(), torch.cat(keys))
    query, key, _ = batch(3)
    before = queue.keys()
    assert_agree(loss, lambda q, k: info_nce(q, k, before, temperature=0.5), query, key)


# -- differences: each test says why --------------------------------------------------------------


def test_bank_of_lightly_drops_keys_where_it_begins_again():
    """lightly writes what fits before the end and drops the rest of the batch.

    Of two batches of three in four places one key of the second stays; KeyQueue has all three, and
    the last of the first.
    """
    loss, queue, (first, second) = bank_of(3, 4)
    same(loss.memory_bank.bank, torch.cat([first, second[:1]]))
    same(queue.keys(), torch.cat([first[2:], second]))


def test_bank_of_lightly_begins_with_random_keys():
    """lightly's bank is full of random unit vectors at first, KeyQueue is empty.

    It takes keys only where the query has a gradient, KeyQueue where it is told to.
    """
    query, key, _ = batch(2)
    assert info_nce(query, key, KeyQueue(4, 3).double().keys()) == 0
    loss = peer(LIGHTLY).NTXentLoss(0.5, memory_bank_size=(4, 3)).double()
    bank = loss.memory_bank.bank.clone()
    torch.testing.assert_close(bank.norm(dim=-1).float(), torch.ones(4))
    ours = partial(info_nce, temperature=0.5, similarity="dot")  # the bank is taken as it is
    same(loss(query, key), ours(*units(query, key), bank))
    same(loss.memory_bank.bank, bank)
    loss(query.requires_grad_(), key)
    same(loss.memory_bank.bank, torch.cat([F.normalize(key), bank[2:]]))


def test_two_directions_are_not_two_views():
    """NT-Xent of two views (PML, lightly) also has the row's own view of others for negatives.

    CLIP's mean of both directions, ``symmetric=True``, has the other view of others only, so that
    it is smaller.
    """
    query, key, _ = batch(5)
    ours = info_nce(query, key, temperature=0.5, symmetric=True)
    views = pairs(torch.cat([query, key]), each(query), 0.5)
    assert ours < views - 0.1
    same(peer(PML).SelfSupervisedLoss(peer(PML).NTXentLoss(0.5))(query, key), views)
    same(peer(LIGHTLY).NTXentLoss(0.5)(query, key), views)


def test_other_positives_are_in_no_denominator_of_pml():
    """PML's NTXentLoss has one loss a pair, with that positive and the negatives below.

    The supervised contrastive loss, ours and PML's SupConLoss, has all positives below. ``pairs``
    above has the numbers of PML.
    """
    x, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    ours = supervised_contrastive_loss(x, labels, temperature=0.5)
    assert pairs(x, labels, 0.5) < ours - 0.1
    same(peer(PML).NTXentLoss(0.5)(x, labels), pairs(x, labels, 0.5))
    same(peer(PML).SupConLoss(0.5)(x, labels), ours)


def test_mean_of_pml_leaves_out_losses_of_zero():
    """PML's SupConLoss takes the mean over losses above zero, ours over what has a positive.

    The first two anchors are right beyond what float64 can tell, so that their loss is zero: PML
    divides by two anchors and ours by four.
    """
    angles = torch.tensor([0.0, 0.0, 1.5, -1.5], dtype=torch.float64)
    x, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 1, 1])
    losses = supervised_contrastive_loss(x, labels, temperature=0.01, reduction="none")
    assert (losses > 0).tolist() == [False, False, True, True]
    same(supervised_contrastive_loss(x, labels, temperature=0.01), losses.sum() / 4)
    same(peer(PML).SupConLoss(0.01)(x, labels), losses.sum() / 2)


def test_supcon_of_pml_is_zero_without_negatives():
    """PML wants a positive and a negative in the batch; the paper's formula wants no negative."""
    x, labels = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    same(supervised_contrastive_loss(x, labels), math.log(3))
    same(peer(PML).SupConLoss()(x, labels), 0.0)


def test_one_positive_and_one_negative_are_nothing_to_pml():
    """PML takes lists of at most one pair for empty, and a batch of one row has such lists."""
    query, key, labels = batch(2)
    (wanted,) = naive_info_nce(query[:1].tolist(), key[:1].tolist(), [key[1:].tolist()], 0.5)
    same(info_nce(query[:1], key[:1], key[1:], temperature=0.5), wanted)
    assert wanted > 0.01
    nt_xent = peer(PML).NTXentLoss(0.5)
    same(nt_xent(query[:1], labels[:1], ref_emb=key, ref_labels=labels), 0.0)


def test_float32_of_pml_ends_where_its_exponential_does():
    """PML takes the logarithm of a share plus the least float: at most 87.3, without gradient.

    Ours is a difference of logarithms. The first row finds its key at 100 (1 + sqrt(1/2)).
    """
    query, key = torch.eye(2), torch.tensor([[-1.0, 1.0], [1.0, 0.0]])
    least, second = -math.log(torch.finfo(torch.float32).tiny), 100 * math.sqrt(0.5)

    def assert_first_row(loss: Callable[..., Tensor], wanted: float, moves: bool) -> None:
        value, gradient, _ = value_and_gradients(loss, query, key)
        torch.testing.assert_close(value, torch.tensor((wanted + second) / 2))
        assert bool(gradient[0].any()) == moves

    assert_first_row(partial(info_nce, temperature=0.01), 100 + second, moves=True)
    nt_xent = peer(PML).NTXentLoss(0.01)
    assert_first_row(peer(PML).SelfSupervisedLoss(nt_xent, symmetric=False), least, moves=False)


@pytest.mark.parametrize("module", [PML, LIGHTLY])
def test_gradient_of_a_zero_vector(module):
    """Peers divide by 1e-12 where a vector is zero, and so its gradient is 1e12 times ours."""
    definition, (query, key, labels) = DEFINITIONS["NT-Xent of two views, 2N x 2N"], batch(3)
    losses, rest, query[0] = peer(module), (labels, 0.5), 0
    theirs = value_and_gradients(
        lambda q, k: definition.peers[module](losses, q, k, *rest), query, key
    )
    ours = value_and_gradients(lambda q, k: definition.ours(q, k, *rest), query, key)
    assert ours[1][0].abs().max() > 0.01
    ours[1][0] *= 1e12
    for got, wanted in zip(theirs, ours, strict=True):
        same(got, wanted)


def test_decoupled_loss_of_lightly_leaves_the_positive_out_of_the_denominator():
    """Then log(1 + exp(theirs)) is InfoNCE, row by row, of the same negatives."""
    query, key, _ = batch(4)

    def ours(query: Tensor, key: Tensor) -> Tensor:
        x, other, ids = torch.cat([query, key]), torch.cat([key, query]), each(query)
        losses = info_nce(x, other, x, ids=ids, key_ids=ids, temperature=1.0, reduction="none")
        return losses.expm1().log().mean()

    assert_agree(peer(LIGHTLY).DCLLoss(1.0), ours, query, key)


def test_sphere_of_lightly_is_no_number_where_pairs_meet_or_are_missing():
    """A root has no gradient at zero, and one row no pair; ours are zero by definition."""
    query, key, _ = batch(3)
    key[0] = query[0]
    assert uniformity_loss(query[:1]) == 0
    loss = peer(SPHERE).HypersphereLoss
    theirs = value_and_gradients(loss(alpha=0.5, lam=0.0), query, key)
    ours = value_and_gradients(partial(alignment_loss, alpha=0.5), query, key)
    same(theirs[0], ours[0])
    assert theirs[1][0].isnan().all()
    assert torch.equal(ours[1][0], torch.zeros(3).double())
    same(theirs[1][1:], ours[1][1:])
    assert loss()(query[:1], key[:1]).isnan()
