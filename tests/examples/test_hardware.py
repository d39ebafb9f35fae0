"""Tests for cammsr.hardware: numbers of half the bits, and compilation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cammsr.batches import training_loader
from cammsr.hardware import compile_model
from cammsr.objective import Objective
from cammsr.training import train
from cammsr.variants import build


@pytest.fixture
def batches(split, config):
    loader = training_loader(split.train, config.model.max_length, 7, seed=0)
    found = list(loader)
    return [*found, *(type(b)(*(t if t is None else t[:, :3] for t in b)) for b in found)]


@pytest.mark.parametrize("name", ["cammsr", "hm4sr", "missrec"])
@pytest.mark.parametrize("softmax", ["full", "chunked", "in_batch"])
def test_losses_in_half_the_bits_are_near_those_of_all(name, softmax, tiny, config, split, batches):
    settings = replace(config, objective=replace(config.objective, softmax=softmax))
    counts = torch.bincount(split.train.values, minlength=tiny.num_items)
    model, objective = build(name, tiny, settings, counts)
    model.eval()
    torch.manual_seed(0)
    expected = objective(model, batches[0])
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = objective(model, batches[0])
    for loss_name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[loss_name].item(), rel=0.02), loss_name


def test_training_in_half_the_bits_keeps_weights_of_all(tiny, split, config, tmp_path):
    curves = {}
    for precision in ("32", "bf16"):
        settings = replace(config, training=replace(config.training, precision=precision))
        trained = train("cammsr", tiny, split, settings, tmp_path / precision, progress=False)
        curves[precision] = trained.curve
        weights = load_file(tmp_path / precision / "weights.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float32}
        assert trained.validation["ndcg@10"] == pytest.approx(max(trained.curve), rel=1e-5)
    assert curves["bf16"] != curves["32"]
    assert curves["bf16"] == pytest.approx(curves["32"], abs=0.1)


# The compiler looks at .grad of what it guards, and hides the warning but where it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_has_the_same_losses_and_names_for_batches_of_any_size(
    tiny, config, batches
):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    settings = replace(config, model=replace(config.model, dropout=0.0))
    model, objective = build("cammsr", tiny, settings)
    names = list(model.state_dict())
    expected = []
    for batch in batches:
        torch.manual_seed(0)
        expected.append(objective(model, batch)["loss"].item())
    compile_model(model, backend)
    assert list(model.state_dict()) == names
    number = []
    for batch, loss in zip(batches, expected, strict=True):
        torch.manual_seed(0)
        assert objective(model, batch)["loss"].item() == pytest.approx(loss, rel=1e-5)
        number.append(len(graphs))
    assert number[0] > 0
    assert number[-1] == number[1]  # nothing is compiled again for other sizes


def test_training_compiles_the_model_and_gives_it_back_as_it_was(
    tiny, split, config, tmp_path, monkeypatch
):
    compiled = []
    monkeypatch.setattr("cammsr.training.compile_model", compiled.append)
    settings = replace(config, training=replace(config.training, compile=True, max_epochs=1))
    trained = train("sasrec", tiny, split, settings, tmp_path / "run", progress=False)
    assert len(compiled) == 1
    assert compiled[0] is not trained.model
    plain = replace(config, training=replace(config.training, max_epochs=1))
    assert train("sasrec", tiny, split, plain, tmp_path / "plain", progress=False).test == (
        trained.test
    )


def test_an_objective_leaves_autocast_to_the_model(tiny, config, batches):
    """A score near 100 has steps of a half in bfloat16; the next item's loss must not."""
    model, _ = build("sasrec", tiny, config)
    output = model(batches[0].items, batches[0].valid)
    near = output.candidates * 0 + 100 + torch.arange(tiny.num_items).unsqueeze(1) / 1000
    told = output._replace(states=torch.ones_like(output.states) / 8, candidates=near)
    objective = Objective(config.objective)
    expected = objective(lambda items, valid: told, batches[0])["next_item"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = objective(lambda items, valid: told, batches[0])["next_item"]
    assert torch.equal(got, expected)
