"""Tests for cammsr.averaging, and for a training whose weights are averaged."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cammsr.averaging import MovingAverage
from cammsr.config import TrainingConfig
from cammsr.metrics import evaluate
from cammsr.module import RecommenderModule
from cammsr.scoring import ModelScorer
from cammsr.training import train
from cammsr.variants import build


def averaged(history: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The formula, number by number, of the weights before the first step and after every one."""
    found = {name: value.double() for name, value in history[0].items()}
    for n, weights in enumerate(history[1:]):
        d = min(decay, (1 + n) / (10 + n))
        found = {name: d * value + (1 - d) * weights[name] for name, value in found.items()}
    return found


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


# -- by itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.99])
def test_the_average_is_the_formula(decay):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    average, history = MovingAverage(model, decay), [copy_of(model)]
    for n in range(120):  # beyond the step from which 0.9 is the lesser
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        average.update(model, n)
        history.append(copy_of(model))
    expected = averaged(history, decay)
    for value, wanted in zip(average.buffers(), expected.values(), strict=True):
        torch.testing.assert_close(value, wanted)


def test_weights_and_averages_change_places_and_back():
    model = nn.Linear(3, 4)
    average, first = MovingAverage(model, 0.9), copy_of(model)
    with torch.no_grad():
        model.weight.mul_(2)
    trained = copy_of(model)
    average.exchange(model)
    assert torch.equal(model.weight, first["weight"])
    average.exchange(model)
    assert torch.equal(model.weight, trained["weight"])
    assert not list(average.parameters()), "nothing here is trained"


# -- in a training --------------------------------------------------------------------------------


def with_average(config, average, **options):
    return replace(config, training=replace(config.training, average=average, **options))


def losses(folder):
    table = pl.read_csv(folder / "logs" / "csv" / "run-0" / "metrics.csv")
    names = [name for name in table.columns if name.startswith("train/")]
    return {name: table[name].drop_nulls().to_list() for name in names}


@pytest.fixture
def history(monkeypatch):
    """The trained weights before the first step of a training and after every one."""
    found = []
    step = RecommenderModule.optimizer_step

    def watched(module, *arguments, **options):
        if not found:
            found.append(copy_of(module.model))
        step(module, *arguments, **options)
        found.append(copy_of(module.model))

    monkeypatch.setattr(RecommenderModule, "optimizer_step", watched)
    return found


def test_averages_are_ranked_and_kept_and_the_others_train_on(
    tiny, split, config, tmp_path, history
):
    config = with_average(config, 0.5, max_epochs=1)
    trained = train("cammsr", tiny, split, config, tmp_path, progress=False)
    assert len(history) == 4  # three steps
    expected = averaged(history, 0.5)
    kept = load_file(tmp_path / "weights.safetensors")
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for number, (name, wanted) in enumerate(expected.items()):
        torch.testing.assert_close(kept[name].double(), wanted, atol=1e-6, rtol=1e-5)
        assert torch.equal(last[f"model.{name}"], history[-1][name])
        assert torch.equal(last[f"average.{number}"], kept[name])
    assert not torch.equal(kept["positions"], history[-1]["positions"])
    model, _ = build("cammsr", tiny, config)
    model.load_state_dict(kept, strict=False)
    found = evaluate(ModelScorer(model.eval()), split.validation)
    assert trained.curve == [pytest.approx(found["ndcg@10"], rel=1e-5)]


def test_the_validation_sees_the_averages(tiny, split, config, tmp_path, monkeypatch):
    """With a decay near one nothing has moved yet: the metric is that of the first weights."""
    monkeypatch.setattr(MovingAverage, "update", lambda *arguments: None)
    model, _ = build("sasrec", tiny, config)
    first = evaluate(ModelScorer(model.eval()), split.validation)["ndcg@10"]
    config = with_average(config, 0.9, learning_rate=0.02)
    trained = train("sasrec", tiny, split, config, tmp_path, progress=False)
    assert trained.curve == [pytest.approx(first, rel=1e-5)] * 3
    assert losses(tmp_path)["train/loss"][-1] < losses(tmp_path)["train/loss"][0]


def test_what_trains_is_the_same_with_averages_and_without(tiny, split, config, tmp_path):
    for average in (0.0, 0.9):
        folder = tmp_path / str(average)
        train("cammsr", tiny, split, with_average(config, average), folder, progress=False)
    plain, beside = losses(tmp_path / "0.0"), losses(tmp_path / "0.9")
    assert plain == beside
    assert len(plain["train/loss"]) == 3
    last = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("0.0", "0.9")
    ]
    assert set(last[0]) < set(last[1])
    for name, value in last[0].items():
        assert torch.equal(value, last[1][name]), name
    kept = [load_file(tmp_path / name / "weights.safetensors") for name in ("0.0", "0.9")]
    assert not torch.equal(kept[0]["positions"], kept[1]["positions"])


@pytest.mark.parametrize("hook", ["training_step", "validation_step", "on_validation_end"])
@pytest.mark.parametrize("every", [None, 1])
def test_stopped_it_ends_with_the_same_averages(
    hook, every, tiny, split, config, tmp_path, monkeypatch
):
    """In an epoch, and while the model has the averages in place of its weights."""
    config = with_average(config, 0.9, max_epochs=2, checkpoint_steps=every)
    train("sasrec", tiny, split, config, tmp_path / "whole", progress=False)
    whole, done = getattr(RecommenderModule, hook), []
    stop = 5 if hook == "training_step" else 6  # of two epochs of three steps

    def stopping(module, *arguments):
        if module.global_step == stop and not done:
            done.append(stop)
            raise KeyboardInterrupt
        return whole(module, *arguments)

    # The trainer looks at the signature of the steps.
    stopping.__wrapped__ = whole
    monkeypatch.setattr(RecommenderModule, hook, stopping)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train("sasrec", tiny, split, config, folder, progress=False)
    train("sasrec", tiny, split, config, folder, progress=False)
    assert done
    states = [
        load_file(at / "weights.safetensors")
        | torch.load(at / "last.ckpt", weights_only=True)["state_dict"]
        for at in (tmp_path / "whole", folder)
    ]
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [1.0, -0.1, 2.0])
def test_what_is_no_decay_is_refused(average):
    with pytest.raises(ValueError, match=rf"Expected 0 <= average < 1, got {average}"):
        TrainingConfig(average=average)
