"""A GPU finds what the processor finds: every model, every softmax, the loop around them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cammsr.batches import Batch, training_loader
from cammsr.config import Config
from cammsr.dataset import write_folder
from cammsr.memory import fit_memory
from cammsr.metrics import evaluate
from cammsr.objective import Objective
from cammsr.run import run
from cammsr.scoring import ModelScorer
from cammsr.serving import Recommender, load
from cammsr.training import train
from cammsr.variants import VARIANTS, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TRAINED = ("sasrec", "gru4rec", "missrec", "tedrec", "hm4sr", "cammsr", "cammsr + memory")


@pytest.fixture
def quiet(config: Config) -> Config:
    """Without anything drawn in a step: a GPU draws other numbers."""
    return replace(
        config,
        model=replace(config.model, dropout=0.0),
        objective=replace(config.objective, contrast_weight=0.0, placeholder_weight=0.0),
    )


def on(batch: Batch, device: str) -> Batch:
    return Batch(*(part if part is None else part.to(device) for part in batch))


def built(variant, dataset, split, config):
    counts = torch.bincount(split.train.values, minlength=dataset.num_items)
    model, objective = build(variant, dataset, config, counts)
    fit_memory(model, split.train)
    return model, objective


def step(model, objective: Objective, batch: Batch, device: str):
    """Losses and gradients, on the processor again; nothing is dropped and no noise is added."""
    model.to(device).eval().zero_grad()
    objective.to(device)
    with torch.backends.cudnn.flags(enabled=False):  # its GRU has gradients in training alone
        losses = objective(model, on(batch, device))
        losses["loss"].backward()
    gradients = {
        name: parameter.grad.cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {name: loss.item() for name, loss in losses.items()}, gradients


def assert_the_same_step(model, objective, batch):
    expected, slopes = step(model, objective, batch, "cpu")
    found, gradients = step(model, objective, batch, "cuda")
    for drawn in (found, expected):
        drawn.pop("placeholder_contrast", None)  # HM4SR draws which items a placeholder replaces
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert gradients.keys() == slopes.keys()
    largest = max(slope.norm().item() for slope in slopes.values())
    for name, slope in slopes.items():
        difference = (gradients[name] - slope).norm().item()
        assert difference < 1e-3 * slope.norm().item() + 1e-5 * largest, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_has_the_same_losses_and_gradients(variant, tiny, split, quiet):
    model, objective = built(variant, tiny, split, quiet)
    batch = next(iter(training_loader(split.train, quiet.model.max_length, 16, seed=0)))
    assert_the_same_step(model, objective, batch)


@pytest.mark.parametrize("variant", ["sasrec", "cammsr", "hm4sr"])
@pytest.mark.parametrize("softmax", ["full", "chunked", "in_batch"])
def test_every_softmax_that_draws_nothing_has_the_same_loss(variant, softmax, tiny, split, quiet):
    settings = replace(quiet, objective=replace(quiet.objective, softmax=softmax))
    model, objective = built(variant, tiny, split, settings)
    batch = next(iter(training_loader(split.train, quiet.model.max_length, 16, seed=0)))
    assert_the_same_step(model, objective, batch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_users_get_the_same_scores(variant, tiny, split, quiet):
    model, _ = built(variant, tiny, split, quiet)
    items, valid = split.test.history.padded(torch.arange(len(split.test.item)))
    times = split.test.history.padded_times(torch.arange(len(split.test.item)))
    expected = ModelScorer(model.eval()).scores(items, valid, times)
    found = ModelScorer(model.to("cuda")).scores(items, valid, times)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
    by_gpu = evaluate(ModelScorer(model), split.test)
    assert by_gpu == pytest.approx(evaluate(ModelScorer(model.cpu()), split.test), abs=0.05)


@pytest.mark.parametrize("variant", TRAINED)
@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_training_there_keeps_the_best_weights(variant, precision, tiny, split, config, tmp_path):
    settings = replace(config, training=replace(config.training, precision=precision))
    trained = train(variant, tiny, split, settings, tmp_path / "run", progress=False)
    assert trained.validation["ndcg@10"] == pytest.approx(max(trained.curve), abs=0.05)
    assert {value.device.type for value in trained.model.state_dict().values()} == {"cpu"}
    assert {value.dtype for value in trained.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("softmax", ["sampled", "in_batch", "chunked"])
def test_training_there_with_a_part_of_the_catalogue_keeps_them_too(
    softmax, tiny, split, config, tmp_path
):
    objective = replace(config.objective, softmax=softmax, num_sampled=8)
    trained = train(
        "cammsr", tiny, split, replace(config, objective=objective), tmp_path, progress=False
    )
    assert trained.validation["ndcg@10"] == pytest.approx(max(trained.curve), abs=0.05)


def test_training_from_the_same_weights_takes_the_same_way(tiny, split, quiet, tmp_path):
    curves = {}
    for accelerator in ("cpu", "gpu"):
        settings = replace(quiet, training=replace(quiet.training, accelerator=accelerator))
        trained = train("cammsr", tiny, split, settings, tmp_path / accelerator, progress=False)
        curves[accelerator] = trained.curve
    assert curves["gpu"] == pytest.approx(curves["cpu"], abs=0.05)


def test_a_stopped_training_goes_on_there(tiny, split, config, tmp_path):
    whole = train("cammsr", tiny, split, config, tmp_path / "whole", progress=False)
    first = replace(config, training=replace(config.training, max_epochs=1))
    train("cammsr", tiny, split, first, tmp_path / "parts", progress=False)
    second = train("cammsr", tiny, split, config, tmp_path / "parts", progress=False)
    assert second.curve == pytest.approx(whole.curve, abs=0.05)


@pytest.mark.filterwarnings("default")  # of the compiler
def test_a_compiled_model_trains_there(tiny, split, quiet, tmp_path):
    curves = []
    for compiled in (False, True):
        training = replace(quiet.training, compile=compiled)
        settings = replace(quiet, training=training)
        trained = train("cammsr", tiny, split, settings, tmp_path / f"{compiled}", progress=False)
        curves.append(trained.curve)
    assert curves[1] == pytest.approx(curves[0], abs=0.05)


def test_what_was_trained_there_recommends_here(tiny, config, tmp_path):
    write_folder(tiny, tmp_path / "data")
    settings = replace(config, data=str(tmp_path / "data"), output=str(tmp_path / "runs"))
    result = run(settings, ["cammsr + memory"], progress=False)
    recommender = load(result.folder)
    trained = Recommender(result.models[0].model.cpu(), recommender.catalogue.dataset)
    for user in range(3):
        expected = [choice.item for choice in trained.recommend(user=user, k=3)]
        assert [choice.item for choice in recommender.recommend(user=user, k=3)] == expected
