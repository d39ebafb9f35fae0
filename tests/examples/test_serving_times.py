"""Models that read times, served: users with their times, typed histories with or without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cammsr.dataset import k_core, read_folder, write_folder
from cammsr.recommend_cli import answer, parse_question
from cammsr.saved import read_run, restore
from cammsr.scoring import ModelScorer
from cammsr.serving import Recommender, ServingError, load
from cammsr.split import leave_one_out
from cammsr.variants import build
from tests.examples.runs import save_run


@pytest.fixture
def dated(tiny):
    """Weeks, and more of them between the steps of every second user."""
    return replace(tiny, timestamps=604_800 * tiny.timestamps * (1 + 5 * (tiny.user_ids % 2)))


def fresh(variant, dataset, config):
    model, _ = build(variant, dataset, config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model.eval()


def scores(choices):
    return {choice.item: choice.score for choice in choices}


def timed(config):
    return replace(config, model=replace(config.model, time_intervals=True, time_routing=True))


@pytest.fixture
def saved(dated, config, tmp_path):
    write_folder(dated, tmp_path / "dated")
    config = replace(timed(config), data=str(tmp_path / "dated"))
    folder = save_run(config, tmp_path / "run", ("hm4sr", "cammsr"))
    for file in folder.glob("*/weights.safetensors"):  # of which some are zero, and hide times
        found = load_file(file)
        save_file({name: raw + 0.1 * torch.randn_like(raw) for name, raw in found.items()}, file)
    return folder


@pytest.mark.parametrize("variant", ["hm4sr", "cammsr"])
def test_a_run_is_served_by_the_scores_of_the_model_with_times(variant, saved):
    recommender, run = load(saved, variant), read_run(saved)
    dataset = k_core(read_folder(run.data))
    scorer = ModelScorer(restore(run, variant, dataset))
    history, rows = leave_one_out(dataset).test.history, torch.arange(9)
    (items, valid), times = history.padded(rows), history.padded_times(rows)
    scores = scorer.scores(items, valid, times)
    expected = scores.sort(dim=1, descending=True, stable=True)
    found = recommender.top_k(items, valid, 15, times=times, unseen=False)
    assert torch.equal(found.items, expected.indices)
    torch.testing.assert_close(found.scores, expected.values)
    blind = recommender.top_k(items, valid, 15, unseen=False).scores
    assert not torch.allclose(blind, found.scores)
    torch.testing.assert_close(blind, scorer.scores(items, valid).sort(descending=True).values)


def test_the_size_of_typed_times_tells_their_unit(dated, config):
    recommender = Recommender(fresh("hm4sr", dated, config), dated)
    seconds = [1_600_000_000, 1_600_086_400]
    for unit in (1, 1000, 1_000_000):
        _, _, times = recommender.encode([1, 2], times=[unit * time for time in seconds])
        assert times.tolist() == [seconds]


def test_the_times_of_a_user_are_known(dated, config):
    recommender = Recommender(fresh("hm4sr", dated, config), dated)
    own = dated.timestamps[dated.user_ids == 5].tolist()
    items, valid, times = recommender.encode(user=5)
    assert times.tolist() == [own]
    assert valid.all()
    history = recommender.history(5)
    assert items[0].tolist() == history
    choices = scores(recommender.recommend(user=5, k=15))
    assert scores(recommender.recommend(history, 15, times=own)) == pytest.approx(choices, abs=1e-4)
    blind = scores(recommender.recommend(history, 15))
    counted = recommender.recommend(history, 15, times=range(len(history)))
    assert scores(counted) == pytest.approx(blind, abs=1e-4)
    assert blind != pytest.approx(choices, abs=1e-3)


@torch.no_grad()
def test_a_score_of_hm4sr_is_the_sum_of_its_modalities(dated, config):
    model = fresh("hm4sr", dated, config)
    recommender = Recommender(model, dated)
    items, valid, times = recommender.encode(user=3)
    kept = slice(-config.model.max_length, None)
    read = [part[:, kept] for part in (items, valid)]
    state = model(*read, times=times[:, kept]).states[0, -1].unflatten(0, (3, -1))
    streams, present = model.items()
    for choice in recommender.recommend(user=3, k=15):
        assert sum(choice.parts.values()) == pytest.approx(choice.score, abs=1e-4)
        for m, name in enumerate(("id", "text", "image")):
            part = float(state[m] @ streams[choice.item, m]) * bool(present[choice.item, m])
            assert choice.parts[name] == pytest.approx(part, abs=1e-5)


@pytest.mark.parametrize("variant", ["hm4sr", "cammsr"])
def test_the_exported_program_takes_times(variant, dated, config, tmp_path):
    config = timed(replace(config, model=replace(config.model, num_layers=1)))
    dated = replace(dated, features={"text": dated.features["text"]})  # exports faster
    recommender = Recommender(fresh(variant, dated, config), dated)
    recommender.export(tmp_path / "scoring.pt2", k=4)
    program = torch.export.load(tmp_path / "scoring.pt2").module()
    history, rows = recommender.histories, torch.arange(9)
    whole = (*history.padded(rows), history.padded_times(rows))
    longer = tuple(part[:, :5].repeat(2, 3) for part in whole)
    one = tuple(part[:1, :1] for part in whole)
    for items, valid, times in (whole, longer, one):
        scores, best = program(items, valid, times)
        expected = recommender.top_k(items, valid, 4, times=times)
        assert torch.equal(best, expected.items)
        torch.testing.assert_close(scores, expected.scores)


def test_the_script_serves_it_and_says_when_times_are_missing(saved, capsys):
    answer(parse_question([str(saved), "--model", "hm4sr", "--user", "7", "-k", "2"]))
    out = capsys.readouterr().out
    assert "reads when items were taken" not in out
    for rank, choice in enumerate(load(saved, "hm4sr").recommend(user=7, k=2), start=1):
        assert out.splitlines()[1 + rank].split()[:2] == [str(rank), str(choice.item)]
    answer(parse_question([str(saved), "--model", "hm4sr", "--history", "3; 4"]))
    assert "of a typed history it reads positions" in capsys.readouterr().out


def test_wrong_times_are_refused(dated, config):
    recommender = Recommender(fresh("hm4sr", dated, config), dated)
    with pytest.raises(ServingError, match="Expected a time for each of 2 items, got 3 times"):
        recommender.recommend([1, 2], times=[1, 2, 3])
    with pytest.raises(ServingError, match="those of a user are known"):
        recommender.recommend(user=2, times=[1])
    items = torch.tensor([[1, 2]])
    with pytest.raises(ServingError, match=r"times of the items' shape \(1, 2\), got \(1, 3\)"):
        recommender.top_k(items, items > 0, times=torch.zeros(1, 3, dtype=torch.int64))
