"""Ranks in blocks: exact, bounded, the same for any batch size, block and order of items."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cammsr.blockwise import BlockRanker, grid_bits, model_ranks
from cammsr.metrics import summarise, target_ranks
from cammsr.ranking import Reader, Reading
from cammsr.reading import READ
from cammsr.scoring import ModelScorer
from cammsr.split import Ragged, Target
from cammsr.variants import build

Seeds = st.integers(0, 2**31 - 1)
fewer = settings(max_examples=40)


class Sums:
    """A reader whose state is the sum of the candidates of the history; no weights."""

    max_length = 50

    def __init__(self, candidates):
        self.x = candidates

    def __call__(self, items, valid, times=None):
        states = (self.x[items] * valid.unsqueeze(-1)).sum(1)
        return Reading(states, self.x, None)

    def scores(self, items, valid):
        return self(items, valid).states @ self.x.T


def draw_targets(seed, users, size):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (users,), generator=generator)
    items = torch.randint(0, size, (int(lengths.sum()),), generator=generator)
    history = Ragged.from_lengths(items, lengths)
    return Target(history, torch.randint(0, size, (users,), generator=generator))


def integers(seed, *shape):
    """Small ones: exact in any floating point, with many ties."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def naive_rank(scores, goal, allowed):
    """The mean place of the goal over all orders of the allowed items that sort the scores."""
    better = sum(scores[i] > scores[goal] for i in allowed)
    level = sum(scores[i] == scores[goal] for i in allowed)
    return better + (level + 1) / 2


def same(first, second):
    return torch.equal(first.plain, second.plain) and torch.equal(first.masked, second.masked)


# -- exact ----------------------------------------------------------------------------------------


@fewer
@given(
    seed=Seeds,
    users=st.integers(1, 12),
    size=st.integers(1, 30),
    width=st.integers(1, 5),
    block=st.integers(1, 31),
)
def test_ranks_are_a_loop_over_users(seed, users, size, width, block):
    candidates, states = integers(seed, size, width), integers(seed + 1, users, width)
    target = draw_targets(seed, users, size)
    ranks = BlockRanker(candidates, block=block).ranks(states, target.item, target.history)
    for user in range(users):
        scores, goal = (candidates @ states[user]).tolist(), int(target.item[user])
        unseen = [i for i in range(size) if i == goal or i not in target.history[user]]
        assert ranks.plain[user].item() == naive_rank(scores, goal, range(size))
        assert ranks.masked[user].item() == naive_rank(scores, goal, unseen)
    assert ranks.plain.dtype == torch.float64


@fewer
@given(
    seed=Seeds,
    users=st.integers(1, 40),
    size=st.integers(1, 30),
    batch_size=st.integers(1, 50),
    block=st.integers(1, 31),
)
def test_ranks_are_those_of_the_whole_score_table(seed, users, size, batch_size, block):
    reader, target = Sums(integers(seed, size, 4)), draw_targets(seed, users, size)
    ranks = model_ranks(reader, target, batch_size=batch_size, block=block)
    assert same(ranks, target_ranks(reader, target))


@pytest.mark.parametrize(
    ("batch_size", "block"), [(1, 300), (7, 1), (100, 77), (300, 16), (600, 299)]
)
def test_real_numbers_rank_the_same_in_any_batch_and_block(batch_size, block):
    reader, target = Sums(normal(block, 300, 24)), draw_targets(block, READ + 30, 300)
    whole = model_ranks(reader, target, batch_size=4096, block=300)
    assert same(model_ranks(reader, target, batch_size=batch_size, block=block), whole)


def test_users_one_at_a_time_have_the_same_metrics_as_all_together():
    reader, target = Sums(normal(0, 500, 24)), draw_targets(0, 2 * READ + 5, 500)
    one, all_ = (model_ranks(reader, target, batch_size=size) for size in (1, 4096))
    assert same(one, all_)
    assert summarise(one) == summarise(all_)


@fewer
@given(seed=Seeds, block=st.integers(1, 90))
def test_equal_items_tie_wherever_they_stand(seed, block):
    single = normal(seed, 29, 7)
    candidates = single.repeat(3, 1)  # each item three times
    states, item = normal(seed + 1, 29, 7), torch.arange(29)
    alone = BlockRanker(single).ranks(states, item).plain
    among = BlockRanker(candidates, block=block).ranks(states, item + 29).plain
    assert torch.equal(among, 3 * (alone - 1) + 2)


def test_scale_does_not_matter():
    states, candidates, item = normal(0, 9, 16), normal(1, 40, 16), torch.arange(9)
    ranks = BlockRanker(candidates).ranks(states, item)
    scales = 2.0 ** torch.arange(-60, 66, 14).unsqueeze(1)
    assert same(BlockRanker(candidates * 2.0**-40).ranks(states * scales, item), ranks)


@pytest.mark.parametrize("width", [1, 2, 3, 192, 256, 257, 4096])
def test_the_largest_sums_on_the_grid_are_exact(width):
    bits = grid_bits(width)
    assert 2 * width * 4**bits <= 2**53, "so does the difference of two"
    assert width * 4 ** (bits + 1) > 2**52, "and no bit is wasted"
    # All factors as large as can be: the sums of two items differ by one unit in the last place.
    candidates = torch.full((3, width), 1 - 2.0**-bits, dtype=torch.float64)
    candidates[1, 0] -= 2.0**-bits
    states = torch.full((3, width), 1 - 2.0**-bits, dtype=torch.float64)
    ranks = BlockRanker(candidates).ranks(states, torch.arange(3))
    assert ranks.plain.tolist() == [1.5, 3.0, 1.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_rank(dtype):
    states, candidates = integers(0, 4, 3).to(dtype), integers(1, 9, 3).to(dtype)
    expected = BlockRanker(candidates.float()).ranks(states.float(), torch.arange(4))
    assert same(BlockRanker(candidates).ranks(states, torch.arange(4)), expected)


# -- chance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [torch.zeros(20, 3), torch.ones(20, 3)])
def test_a_constant_score_ranks_in_the_middle(states):
    candidates = torch.full((101, 3), 0.3)
    ranks = BlockRanker(candidates, block=7).ranks(states, torch.arange(20))
    assert ranks.plain.tolist() == [51.0] * 20  # (V + 1) / 2


def test_random_states_rank_at_chance_on_average():
    size = 400
    ranks = BlockRanker(normal(0, size, 8)).ranks(normal(1, 3000, 8), torch.arange(3000) % size)
    error = size / 12**0.5 / 3000**0.5  # of a mean of even ranks
    assert abs(ranks.plain.mean().item() - (size + 1) / 2) < 5 * error


def test_without_histories_the_masked_ranks_are_the_plain_ones():
    plain, masked = BlockRanker(integers(0, 9, 3)).ranks(integers(1, 4, 3), torch.arange(4))
    assert torch.equal(plain, masked)


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["cammsr", "gru4rec", "hm4sr", "mixer", "tedrec", "unisrec"])
def test_a_model_ranks_as_by_whole_scores(variant, tiny, split, config):
    model, _ = build(variant, tiny, config)
    model.eval()
    ranks = model_ranks(Reader(model), split.test, batch_size=5, block=4)
    assert same(ranks, target_ranks(ModelScorer(model), split.test))


# -- memory ---------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor that any operator makes, in numbers."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                held = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numel = max(self.numel, held)
        return output


def test_scores_of_one_block_exist_at_a_time():
    candidates = normal(0, 1, 4).expand(2000, 4)  # hold no more than one row themselves
    history = Ragged.from_lengths(torch.randint(0, 2000, (7 * 300,)), torch.full((7,), 300))
    with Largest() as largest:
        ranker = BlockRanker(candidates, block=100)
        ranker.ranks(normal(1, 7, 4), torch.arange(7), history)
    assert largest.numel == 7 * 300, "the histories are larger than the scores of a block"


# -- errors ---------------------------------------------------------------------------------------


def test_what_cannot_be_ranked_is_refused():
    ranker = BlockRanker(normal(0, 5, 3))
    states, item = normal(1, 2, 3), torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"block >= 1, got 0"):
        BlockRanker(normal(0, 5, 3), block=0)
    with pytest.raises(ValueError, match=r"as wide as the candidates, got 2 and 3"):
        ranker.ranks(states[:, :2], item)
    with pytest.raises(ValueError, match=r"got 2 states, 1 items and 2 histories"):
        ranker.ranks(states, item[:1])
    with pytest.raises(ValueError, match=r"Expected items from 0 to 4, got 0 to 5"):
        ranker.ranks(states, item + torch.tensor([0, 1]))
    seen = Ragged.from_lengths(torch.tensor([1, -1]), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"Expected seen items from 0 to 4, got -1 to 1"):
        ranker.ranks(states, item, seen)
    with pytest.raises(ValueError, match=r"batch_size >= 1, got 0"):
        model_ranks(Sums(normal(0, 5, 3)), draw_targets(0, 2, 5), batch_size=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_a_win(value):
    candidates, states = normal(0, 5, 3), normal(1, 2, 3)
    candidates[3, 1], states[1, 2] = value, value
    with pytest.raises(ValueError, match="candidate of item 3 is not finite"):
        BlockRanker(candidates, block=2)
    with pytest.raises(ValueError, match="state in row 1 is not finite"):
        BlockRanker(normal(0, 5, 3)).ranks(states, torch.tensor([0, 1]))
