"""Expected ranks, ranking metrics, masking and evaluation."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cammsr.metrics import (
    METRIC_NAMES,
    RankingMetrics,
    evaluate,
    expected_rank,
    ranking_values,
    summarise,
    target_ranks,
    unseen_rank,
)
from cammsr.split import Ragged, Target

Seeds = st.integers(0, 2**31 - 1)


@dataclass
class Table:
    """Scores that depend on the first item of the history."""

    table: Tensor  # (V, V)

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        return self.table[items[:, 0]]


def few_scores(seed: int, batch: int, size: int) -> Tensor:
    """Scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (batch, size), generator=generator).float()


def draw_targets(seed: int, users: int, size: int) -> Target:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (users,), generator=generator)
    items = torch.randint(0, size, (int(lengths.sum()),), generator=generator)
    history = Ragged.from_lengths(items, lengths)
    return Target(history, torch.randint(0, size, (users,), generator=generator))


# -- ranks ----------------------------------------------------------------------------------------


def naive_rank(scores: list[float], target: int) -> float:
    """The mean place of the target over all orders that sort the scores."""
    better = sum(score > scores[target] for score in scores)
    level = sum(score == scores[target] for score in scores)
    places = range(better + 1, better + level + 1)
    return sum(places) / len(places)


@given(seed=Seeds, batch=st.integers(1, 5), size=st.integers(1, 30))
def test_rank_is_the_mean_place_over_all_ways_to_break_ties(
    seed: int, batch: int, size: int
) -> None:
    scores = few_scores(seed, batch, size)
    target = torch.arange(batch) % size
    rank = expected_rank(scores, target)
    assert rank.tolist() == [
        naive_rank(row, t) for row, t in zip(scores.tolist(), target.tolist(), strict=True)
    ]


@given(seed=Seeds, size=st.integers(2, 30))
def test_the_order_of_the_catalogue_does_not_matter(seed: int, size: int) -> None:
    scores = few_scores(seed, 4, size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    place = order.argsort()
    target = torch.arange(4) % size
    assert torch.equal(
        expected_rank(scores, target), expected_rank(scores[:, order], place[target])
    )


def test_scores_of_all_targets_share_the_ranks_among_them() -> None:
    scores = torch.tensor([[2.0, 2.0, 1.0, float("-inf")]]).expand(4, -1)
    assert expected_rank(scores, torch.arange(4)).tolist() == [1.5, 1.5, 3.0, 4.0]


def test_a_constant_score_is_no_better_than_chance() -> None:
    size = 101
    chance = torch.arange(1, size + 1).double().mean()  # a random order, rank 51
    scores = torch.zeros(size, size)
    rank = expected_rank(scores, torch.arange(size))
    assert torch.equal(rank, chance.expand(size))
    values = summarise(target_ranks(Table(scores), draw_targets(0, 40, size)), masked=False)
    at_random = {k: sum(1 / math.log2(1 + r) for r in range(1, k + 1)) / size for k in (5, 10, 20)}
    assert all(values[f"ndcg@{k}"] <= at_random[k] for k in at_random)
    assert all(values[f"hr@{k}"] <= k / size for k in at_random)


def test_a_constant_score_in_a_tiny_catalogue_has_the_rank_in_the_middle() -> None:
    values = ranking_values(expected_rank(torch.zeros(1, 7), torch.tensor([2])))
    assert values["ndcg@5"].item() == pytest.approx(1 / math.log2(5))  # rank 4 of 7
    assert values["mrr@10"].item() == pytest.approx(1 / 4)
    assert values["hr@5"].item() == 1


def test_nan_is_never_a_win() -> None:
    scores = torch.zeros(2, 3)
    scores[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"score of item 2 in row 1 is NaN.*overflow or an empty"):
        expected_rank(scores, torch.tensor([0, 0]))


# -- values ---------------------------------------------------------------------------------------


@given(rank=st.integers(2, 80).map(lambda twice: twice / 2))
def test_values_follow_their_formulas(rank: float) -> None:
    values = ranking_values(torch.tensor([rank], dtype=torch.float64))
    assert tuple(values) == METRIC_NAMES
    for k in (5, 10, 20):
        inside = rank <= k
        assert values[f"hr@{k}"].item() == inside
        assert values[f"mrr@{k}"].item() == pytest.approx(inside / rank)
        assert values[f"ndcg@{k}"].item() == pytest.approx(inside / math.log2(rank + 1))


@given(seed=Seeds, users=st.integers(1, 40), batch_size=st.integers(1, 45))
def test_streaming_means_do_not_depend_on_the_batch_size(
    seed: int, users: int, batch_size: int
) -> None:
    scores, target = few_scores(seed, users, 25), torch.arange(users) % 25
    metrics = RankingMetrics()
    batches = torch.split(torch.arange(users), batch_size)
    for rows in batches:
        metrics.update(scores[rows], target[rows])
    whole = ranking_values(expected_rank(scores, target))
    for name, value in metrics.compute().items():
        assert value.item() == pytest.approx(whole[name].mean().item(), abs=1e-12)


def test_a_reset_forgets_everything() -> None:
    metrics = RankingMetrics()
    metrics.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    metrics.reset()
    metrics.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert metrics.compute()["mrr@5"].item() == 1


# -- masking --------------------------------------------------------------------------------------


def ranks_of(scores: list[float], target: int, history: list[int], padding: int = 0) -> float:
    """The rank among unseen items of one user, with padding behind the history."""
    table, goal = torch.tensor([scores]), torch.tensor([target])
    items = torch.tensor([history + [0] * padding])
    valid = torch.arange(items.shape[1]).unsqueeze(0) < len(history)
    return unseen_rank(expected_rank(table, goal), table, goal, items, valid).item()


def test_items_of_the_history_leave_the_ranking_but_padding_does_not() -> None:
    scores = [9.0, 8.0, 7.0, 6.0, 5.0]
    assert ranks_of(scores, target=3, history=[2, 1]) == 2
    assert ranks_of(scores, target=3, history=[2, 1], padding=3) == 2, "item 0 pads"


def test_an_item_that_the_history_repeats_leaves_once() -> None:
    assert ranks_of([9.0, 8.0, 7.0], target=2, history=[1, 1, 1]) == 2


def test_a_tie_with_a_seen_item_is_no_tie() -> None:
    assert ranks_of([5.0, 5.0, 5.0], target=0, history=[1]) == 1.5


def test_a_repeated_target_is_never_masked() -> None:
    assert ranks_of([9.0, 8.0, 7.0], target=1, history=[1, 2]) == 2


# -- evaluation -----------------------------------------------------------------------------------


@given(seed=Seeds, users=st.integers(1, 20), batch_size=st.integers(1, 25))
def test_evaluation_is_a_loop_over_users(seed: int, users: int, batch_size: int) -> None:
    scorer, target = Table(few_scores(seed, 25, 25)), draw_targets(seed, users, 25)
    ranks = target_ranks(scorer, target, batch_size=batch_size)
    for user in range(users):
        history, goal = target.history[user].tolist(), int(target.item[user])
        scores = scorer.table[history[0]].tolist()
        assert ranks.plain[user].item() == naive_rank(scores, goal)
        unseen = [i for i in range(25) if i == goal or i not in history]
        others = [scores[i] for i in unseen]
        assert ranks.masked[user].item() == naive_rank(others, unseen.index(goal))
    assert evaluate(scorer, target, batch_size=batch_size) == summarise(ranks)


def test_masked_values_have_their_own_names() -> None:
    scorer, target = Table(few_scores(0, 25, 25)), draw_targets(0, 30, 25)
    both, plain = evaluate(scorer, target), evaluate(scorer, target, masked=False)
    assert list(plain) == list(METRIC_NAMES)
    assert list(both) == [*METRIC_NAMES, *(f"masked/{name}" for name in METRIC_NAMES)]
    assert all(both[name] == plain[name] for name in METRIC_NAMES)
    assert both["masked/ndcg@10"] > both["ndcg@10"], "fewer items compete"
