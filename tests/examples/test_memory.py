"""Tests for cammsr.memory, and for models beside which it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from cammsr.batches import Batch, TrainingPrefixes, TrainingSequences, known_items
from cammsr.blockwise import BlockRanker, model_ranks
from cammsr.config import Config, ModelConfig, ObjectiveConfig
from cammsr.dataset import write_folder
from cammsr.evaluate_cli import examine, parse_request
from cammsr.floors import ItemKNN
from cammsr.memory import Added, Memory, add_to, added_at, joined
from cammsr.metrics import target_ranks
from cammsr.module import RecommenderModule
from cammsr.next_item import full_cross_entropy
from cammsr.ranking import Reader
from cammsr.recommend_cli import answer, parse_question
from cammsr.run import run
from cammsr.scoring import ModelScorer
from cammsr.serving import Recommender, ServingError, load
from cammsr.split import Ragged
from cammsr.training import train
from cammsr.variants import build, configure
from tests.examples.pages import Page

VARIANTS = ("sasrec + memory", "cammsr + memory", "hm4sr + memory")
Seeds = st.integers(0, 10_000)
Sizes = st.sampled_from([1, 2, 4, 9])
fewer = settings(max_examples=25)  # a pair after the other is counted by hand
ITEMS = 9


def sequences(seed: int, users: int = 8, items: int = ITEMS, most: int = 7) -> Ragged:
    """Of one item or more, with items that come again."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, most + 1, (users,), generator=generator)
    values = torch.randint(0, items, (int(lengths.sum()),), generator=generator)
    return Ragged.from_lengths(values, lengths)


def fitted(train: Ragged, size: int = ITEMS, decay: float = 0.7, items: int = ITEMS) -> Memory:
    memory = Memory(items, size, decay).double()
    memory.fit(train)
    with torch.no_grad():
        memory.log_weight.fill_(0.3)
    return memory


def neighbours(memory: Memory, item: int) -> list[int]:
    return memory.neighbours[item].tolist()


def dense(added: Added, size: int) -> Tensor:
    """Read aloud: for every row, what is said of every item."""
    table = torch.zeros(len(added.items), size, dtype=added.values.dtype)
    for row in range(len(added.items)):
        for item, value in zip(added.items[row].tolist(), added.values[row].tolist(), strict=True):
            if item < size:
                table[row, item] += value
    return table


def users_of(train: Ragged, *items: int, without: int | None = None) -> int:
    """How many users have all these items, one of the users aside."""
    return sum(
        set(items) <= set(train[user].tolist()) for user in range(len(train)) if user != without
    )


def naive_similarity(train: Ragged, i: int, j: int, without: int | None = None) -> float:
    if i == j or not users_of(train, i) or not users_of(train, j):
        return 0.0
    both = users_of(train, i, j, without=without)
    return both / (users_of(train, i) * users_of(train, j)) ** 0.5


def naive(
    memory: Memory,
    train: Ragged,
    history: Sequence[int],
    user: int | None = None,
    known: Sequence[int] = (),
) -> Tensor:  # (V,)
    """The formula; pairs of what is known of a user are counted again without this user."""
    said = torch.zeros(ITEMS, dtype=torch.float64)
    for j in set(range(ITEMS)) - set(history):
        for place, i in enumerate(history):
            if j in neighbours(memory, i):
                similarity = naive_similarity(train, i, j, user if j in known else None)
                said[j] += memory.decay ** (len(history) - 1 - place) * similarity
    return said * memory.log_weight.detach().exp()


# -- fit ------------------------------------------------------------------------------------------


@fewer
@given(seed=Seeds)
def test_all_neighbours_are_the_similarity_of_item_knn(seed):
    train = sequences(seed)
    memory = Memory(ITEMS, ITEMS, 0.5)
    memory.fit(train)
    similarity = torch.zeros(ITEMS, ITEMS).scatter(1, memory.neighbours.long(), memory.similarity)
    torch.testing.assert_close(similarity, ItemKNN.fit(train, ITEMS).similarity)
    for i in range(ITEMS):
        for j in range(ITEMS):
            assert similarity[i, j].item() == pytest.approx(naive_similarity(train, i, j), abs=1e-6)


@fewer
@given(seed=Seeds, size=Sizes)
def test_an_item_keeps_its_nearest(seed, size):
    train = sequences(seed)
    memory = Memory(ITEMS, size, 0.5)
    memory.fit(train)
    whole = ItemKNN.fit(train, ITEMS).similarity
    torch.testing.assert_close(memory.similarity, whole.topk(size).values)
    torch.testing.assert_close(whole.gather(1, memory.neighbours.long()), memory.similarity)


def test_more_items_than_are_looked_at_together():
    train = sequences(0, users=300, items=1100)
    memory = Memory(1100, 3, 0.5)
    memory.fit(train)
    whole = ItemKNN.fit(train, 1100).similarity
    torch.testing.assert_close(whole.gather(1, memory.neighbours.long()), whole.topk(3).values)


# -- after a history ------------------------------------------------------------------------------


@fewer
@given(seed=Seeds, size=Sizes, decay=st.sampled_from([0.0, 0.5, 1.0]))
def test_what_is_said_after_a_history_is_the_formula(seed, size, decay):
    train, histories = sequences(seed), sequences(seed + 1)
    memory = fitted(train, size, decay)
    items, valid = histories.padded(torch.arange(len(histories)))
    added = memory(items, valid)
    expected = [naive(memory, train, histories[user].tolist()) for user in range(len(histories))]
    torch.testing.assert_close(dense(added, ITEMS), torch.stack(expected), atol=1e-6, rtol=1e-5)
    for row in added.items.tolist():
        real = [item for item in row if item < ITEMS]
        assert real == sorted(set(real)), "each once and in order"
        assert row == real + [ITEMS] * (len(row) - len(real)), "and then nothing"
    padding = torch.randint(0, ITEMS, items.shape)
    again = memory(torch.where(valid, items, padding), valid)
    torch.testing.assert_close(dense(again, ITEMS), dense(added, ITEMS))
    wider = memory(torch.cat([items, items * 0], 1), torch.cat([valid, valid & False], 1))
    torch.testing.assert_close(dense(wider, ITEMS), dense(added, ITEMS))


def test_the_item_zero_is_an_item_and_padding_is_not():
    train = Ragged.from_lengths(torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([2, 2, 2]))
    memory = fitted(train, decay=1.0)
    items, valid = torch.tensor([[0, 0], [2, 0], [1, 0]]), torch.tensor([[1, 0], [1, 0], [1, 0]])
    said = dense(memory(items, valid.bool()), ITEMS)
    assert said[0].nonzero().flatten().tolist() == [1]
    assert said[1].nonzero().flatten().tolist() == [3]
    assert said[2].nonzero().flatten().tolist() == [0], "padding is no item of the history"


# -- along a training sequence --------------------------------------------------------------------


def along(memory: Memory, batch: Batch) -> tuple[Tensor, Tensor]:
    wanted = batch.valid & (batch.targets >= 0)
    return memory.along(batch.items, batch.valid, known_items(batch), wanted), wanted


@fewer
@given(seed=Seeds, size=Sizes, length=st.sampled_from([2, 4, 6]), prefixes=st.booleans())
def test_along_a_sequence_its_own_user_is_not_counted(seed, size, length, prefixes):
    """Every pair counted again; a sequence that is cut tells of what it has left."""
    train = sequences(seed)
    memory = fitted(train, size)
    if prefixes:
        source = TrainingPrefixes(train, length)
        rows = torch.arange(len(source.ends))
        users = train.rows[source.ends].tolist()
    else:
        rows = (train.lengths >= 2).nonzero().flatten()
        source, users = TrainingSequences(train, length), rows.tolist()
    if not len(rows):
        return
    batch = source[rows]
    said, wanted = along(memory, batch)
    expected = []
    for row, user in enumerate(users):
        history = batch.items[row, batch.valid[row]].tolist()
        known = [*history, int(batch.targets[row, len(history) - 1])]
        expected += [
            naive(memory, train, history[: position + 1], user, known)
            for position in wanted[row].nonzero().flatten().tolist()
        ]
    torch.testing.assert_close(said.detach(), torch.stack(expected), atol=1e-6, rtol=1e-5)


def test_who_is_alone_is_told_nothing():
    train = Ragged.from_lengths(torch.tensor([0, 3, 0, 5, 2, 3]), torch.tensor([6]))
    memory = fitted(train)
    said, _ = along(memory, TrainingSequences(train, 6)[torch.tensor([0])])
    assert said.shape == (5, ITEMS)
    torch.testing.assert_close(said.detach(), torch.zeros_like(said))
    assert memory.similarity.any()


def test_the_gradient_of_the_weight():
    train = sequences(1)
    memory = fitted(train, 4)
    batch = TrainingSequences(train, 6)[(train.lengths >= 2).nonzero().flatten()]
    targets = batch.targets[batch.valid]
    states = torch.randn(len(targets), 3, dtype=torch.float64)
    candidates = torch.randn(ITEMS, 3, dtype=torch.float64)

    def loss(weight: float) -> Tensor:
        with torch.no_grad():
            memory.log_weight.fill_(weight)
        return full_cross_entropy(states, candidates, targets, added=along(memory, batch)[0])

    loss(0.4).backward()
    slope = (loss(0.4 + 1e-5) - loss(0.4 - 1e-5)) / 2e-5
    assert slope.abs() > 1e-3
    torch.testing.assert_close(
        memory.log_weight.grad.squeeze(0), slope.detach(), rtol=1e-6, atol=1e-9
    )


# -- what is known of a batch ---------------------------------------------------------------------


@given(seed=Seeds, length=st.sampled_from([2, 4, 7]))
def test_known_are_what_is_read_and_the_last_target(seed, length):
    train = sequences(seed)
    long = (train.lengths >= 2).nonzero().flatten()
    if not len(long):
        return
    known = known_items(TrainingSequences(train, length)[long])
    for row, user in enumerate(long.tolist()):
        assert known[row][known[row] >= 0].tolist() == train[user][-length - 1 :].tolist()
    source = TrainingPrefixes(train, length)
    known = known_items(source[torch.arange(len(source.ends))])
    for row, (end, count) in enumerate(
        zip(source.ends.tolist(), source.lengths.tolist(), strict=True)
    ):
        values = train.values[end - count + 1 : end + 1]
        assert known[row][known[row] >= 0].tolist() == values.tolist()


def test_nothing_is_known_of_a_row_of_padding():
    items = torch.zeros(1, 3, dtype=torch.int64)
    assert known_items(Batch(items, items > 0, items + 4)).tolist() == [[-1] * 4]


# -- what is added to scores ----------------------------------------------------------------------


@given(seed=Seeds, block=st.integers(1, 10))
def test_added_to_scores_in_any_blocks(seed, block):
    histories = sequences(seed, users=5)
    added = fitted(sequences(seed + 1), 4)(*histories.padded(torch.arange(5)))
    scores = torch.randn(5, ITEMS, dtype=torch.float64)
    parts = [
        add_to(part, added, start)
        for start, part in zip(range(0, ITEMS, block), scores.split(block, 1), strict=True)
    ]
    assert torch.equal(torch.cat(parts, 1), scores + dense(added, ITEMS))
    assert add_to(scores, None) is scores


@given(seed=Seeds)
def test_pairs_and_parts_are_those_of_the_whole(seed):
    memory = fitted(sequences(seed), 3)
    first = memory(*sequences(seed + 1, users=3, most=2).padded(torch.arange(3)))
    second = memory(*sequences(seed + 2, users=4).padded(torch.arange(4)))
    whole = joined([first, second], ITEMS)
    table = torch.cat([dense(first, ITEMS), dense(second, ITEMS)])
    assert torch.equal(dense(whole, ITEMS), table)
    rows, items = torch.randint(0, 7, (40,)), torch.randint(0, ITEMS, (40,))
    assert torch.equal(added_at(whole, rows, items), table[rows, items])
    assert len(added_at(whole, rows[:0], items[:0])) == 0


# -- beside a model -------------------------------------------------------------------------------


def fresh(variant, tiny, split, config, size=5):
    """A model with noise on every weight, beside a memory that has counted."""
    config = replace(config, model=replace(config.model, memory_size=size))
    model, _ = build(variant, tiny, config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    model.memory.fit(split.train)
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_the_models_and_the_memorys(variant, tiny, split, config):
    model = fresh(variant, tiny, split, config)
    histories = split.test.history.padded(torch.arange(9))
    cut = split.test.history.padded(torch.arange(9), config.model.max_length)
    scores = ModelScorer(model).scores(*histories)
    memory, model.memory = model.memory, None
    alone = ModelScorer(model).scores(*histories)
    assert not torch.allclose(scores, alone)
    torch.testing.assert_close(scores, alone + dense(memory(*cut), tiny.num_items))


@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_parts_and_the_program_are_by_these_scores(variant, tiny, split, config, tmp_path):
    model = fresh(variant, tiny, split, config)
    recommender = Recommender(model, tiny)
    items, valid = split.test.history.padded(torch.arange(9))
    scores = ModelScorer(model).scores(items, valid)
    for block in (4, 100):
        found = recommender.top_k(items, valid, 6, unseen=False, block=block)
        expected = scores.sort(dim=1, descending=True)
        assert torch.equal(found.items, expected.indices[:, :6])
        torch.testing.assert_close(found.scores, expected.values[:, :6])
    choices = recommender.recommend(user=3, k=20)
    assert any(choice.parts["memory"] > 0 for choice in choices)
    for choice in choices:
        assert list(choice.parts) == [*recommender.modalities, "memory"]
        assert sum(choice.parts.values()) == pytest.approx(choice.score, abs=1e-4)
        assert choice.weights is None or set(choice.weights) == set(recommender.modalities)
    assert recommender.recommend(list(range(tiny.num_items)), k=5) == [], "nothing is left"
    with pytest.raises(ServingError, match="scores that are no products"):
        recommender.index()
    if variant != "sasrec + memory":
        return  # one program is slow enough
    recommender.export(tmp_path / "scoring.pt2", k=6)
    program = torch.export.load(tmp_path / "scoring.pt2").module()
    for rows in (1, 7):
        some = split.test.history.padded(torch.arange(rows))
        best, found = program(*some), recommender.top_k(*some, 6)
        assert torch.equal(best[1], found.items)
        torch.testing.assert_close(best[0], found.scores)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_are_by_these_scores_in_any_batch_and_block(variant, tiny, split, config):
    model = fresh(variant, tiny, split, config)
    reader, expected = Reader(model), target_ranks(ModelScorer(model), split.test)
    for batch_size, block in ((1, 4), (5, 7), (300, 100)):
        ranks = model_ranks(reader, split.test, batch_size=batch_size, block=block)
        assert torch.equal(ranks.plain, expected.plain)
        assert torch.equal(ranks.masked, expected.masked)


def test_ranks_beside_a_memory_where_nothing_else_was_seen():
    added = Added(torch.tensor([[1, 3]]), torch.tensor([[5.0, 0.0]]))
    seen = Ragged.from_lengths(torch.tensor([2]), torch.tensor([1]))
    ranker = BlockRanker(torch.tensor([[3.0], [0.0], [4.0]]), block=2)
    ranks = ranker.ranks(torch.ones(1, 1), torch.tensor([2]), seen, added)
    assert (ranks.plain.item(), ranks.masked.item()) == (2, 2)


# -- trained --------------------------------------------------------------------------------------


def test_training_stopped_ends_with_the_same_memory(tiny, split, config, tmp_path, monkeypatch):
    """Of the train split alone it is fitted, and its weight is trained."""
    options = replace(config.training, max_epochs=2, checkpoint_steps=1, average=0.5)
    config = replace(config, training=options)
    train("cammsr + memory", tiny, split, config, tmp_path / "whole", progress=False)
    step, done = RecommenderModule.training_step, []

    def stopping(module, batch, batch_idx):
        if module.global_step == 4 and not done:
            done.append(4)
            raise KeyboardInterrupt
        return step(module, batch, batch_idx)

    monkeypatch.setattr(RecommenderModule, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train("cammsr + memory", tiny, split, config, tmp_path / "stopped", progress=False)
    train("cammsr + memory", tiny, split, config, tmp_path / "stopped", progress=False)
    whole, stopped = (
        load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "stopped")
    )
    assert set(whole) == set(stopped)
    for name, value in whole.items():
        assert torch.equal(stopped[name], value), name
    assert whole["memory.log_weight"] != Memory(3, 1, 0.5).log_weight
    expected = Memory(tiny.num_items, 200, 0.9)
    expected.fit(split.train)
    assert torch.equal(whole["memory.similarity"], expected.similarity)


def test_a_run_with_a_memory_is_used_and_shown(tiny, config, tmp_path, capsys):
    """Its report, its evaluation with curves, and recommend.py."""
    write_folder(tiny, tmp_path / "tiny")
    options = replace(config.training, max_epochs=1)
    config = replace(
        config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"), training=options
    )
    folder = run(config, ["sasrec + memory"], progress=False).folder
    examine(parse_request([str(folder), "--curves"]))
    found = json.loads((folder / "evaluation.json").read_text())["sasrec + memory"]
    test = json.loads((folder / "metrics.json").read_text())["models"]["sasrec + memory"]["test"]
    assert found["all"]["ndcg@10"] == pytest.approx(test["ndcg@10"])
    for points in found["curves"].values():
        assert points[0]["ndcg@10"] == found["all"]["ndcg@10"]
    page = Page((folder / "report.html").read_text())
    users = [rows for caption, rows in page.tables.items() if caption.startswith("The best")]
    assert users
    for head, *choices in users:
        assert "memory" in head
        assert all(len(choice) == len(head) for choice in choices)
    capsys.readouterr()
    before = torch.get_num_threads()
    answer(parse_question([str(folder), "--user", "3", "-k", "4"]))
    torch.set_num_threads(before)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["rank", "id", "title", "category", "score", "id", "memory"]
    for choice, line in zip(load(folder).recommend(user=3, k=4), lines[2:6], strict=True):
        share = 100 * choice.parts["memory"] / sum(abs(part) for part in choice.parts.values())
        assert re.search(rf" {share:.0f} %$", line)
    assert lines[7] == "memory: the part of what users took together with the history"


# -- settings -------------------------------------------------------------------------------------


def test_what_no_memory_can_be_made_of_is_refused():
    with pytest.raises(ValueError, match=r"Expected memory_size >= 0, got -1"):
        ModelConfig(memory_size=-1)
    with pytest.raises(ValueError, match=r"Expected 0 <= memory_decay <= 1, got 1.5"):
        ModelConfig(memory_decay=1.5)
    for softmax in ("chunked", "sampled", "in_batch"):
        config = Config(objective=ObjectiveConfig(softmax=softmax))
        match = rf"Expected softmax 'full' with a memory \(memory_size 200\), got '{softmax}'"
        with pytest.raises(ValueError, match=match):
            configure("sasrec + memory", config)


def test_a_memory_is_the_only_change_of_its_variants():
    config = Config()
    for name in ("cammsr", "hm4sr", "sasrec"):
        plain = configure(name, config)
        beside = configure(f"{name} + memory", config)
        assert beside == replace(plain, model=replace(plain.model, memory_size=200))
    small = replace(config, model=replace(config.model, memory_size=7))
    assert configure("sasrec + memory", small).model.memory_size == 7
