"""Tests for cammsr.model, cammsr.items, cammsr.encoder and cammsr.baselines."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from cammsr.baselines import fused_recommender, sasrec
from cammsr.config import ModelConfig
from cammsr.encoder import StreamEncoder
from cammsr.items import ItemStreams, look_up, standardise
from cammsr.model import CAMMSR, last_position, last_valid
from cammsr.scoring import ModelScorer
from cammsr.variants import build
from mmfuse.fusion import available

SMALL = ModelConfig(dim=8, hidden_dim=16, num_experts=2, max_length=6, dropout=0.0)
CONFIGS = {
    "default": SMALL,
    "layernorm": replace(SMALL, norm="layernorm"),
    "affine dynamic tanh": replace(SMALL, norm="affine_dyt"),
    "shared, normalised experts": replace(SMALL, shared_experts=True, normalize_experts=True),
    "difficulty": replace(SMALL, guidance="difficulty", reduction="sum", detach_gate=True),
    "sparse": replace(SMALL, num_experts=4, top_k=2),
    "no guidance": replace(SMALL, category_guidance=False),
    "no id": replace(SMALL, use_id=False),
}
MODELS = {
    **{name: (CAMMSR, config) for name, config in CONFIGS.items()},
    "concat": (partial(fused_recommender, fusion="concat"), SMALL),
    "low rank": (partial(fused_recommender, fusion="low_rank"), SMALL),
    **{
        name: (partial(fused_recommender, fusion=name), SMALL)
        for name in ("dynamic", *available("sequences"))
    },
    "sasrec": (sasrec, SMALL),
}


@pytest.fixture(params=MODELS)
def model(request, tiny):
    build, config = MODELS[request.param]
    return build(tiny.features, tiny.labels, config).double().eval()


@pytest.fixture
def camm(tiny):
    return CAMMSR(tiny.features, tiny.labels, SMALL).double().eval()


HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


# -- causality ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(6))
def test_changing_a_later_item_never_changes_an_earlier_state(model, position):
    before = model(HISTORY, VALID).states
    changed = HISTORY.clone()
    changed[:, position:] = (changed[:, position:] + 7) % 15
    after = model(changed, VALID).states
    # A Fourier transform adds what cancels out: there, and only there, the rounding may differ.
    rounding = 1e-12 if "FrequencyFusion" in str(model) else 0.0
    torch.testing.assert_close(
        before[:, :position], after[:, :position], rtol=rounding, atol=rounding
    )


def test_an_earlier_item_does_change_later_states(model):
    changed = HISTORY.clone()
    changed[:, 0] = 8
    assert not torch.allclose(
        model(HISTORY, VALID).states[:, 3], model(changed, VALID).states[:, 3]
    )


def test_one_causal_pass_equals_one_pass_for_every_prefix(model):
    states = model(HISTORY, VALID).states
    for length in range(1, 7):
        prefix = model(HISTORY[:1, :length], VALID[:1, :length]).states
        torch.testing.assert_close(prefix[0, -1], states[0, length - 1])


def test_padding_never_reaches_a_real_position(model):
    states = model(HISTORY, VALID).states
    alone = model(HISTORY[1:, :4], VALID[1:, :4]).states
    torch.testing.assert_close(alone[0], states[1, :4])
    other = HISTORY.clone()
    other[1, 4:] = 11
    assert torch.equal(model(other, VALID).states[1, :4], states[1, :4])


# -- formulas -------------------------------------------------------------------------------------


def test_score_is_the_sum_over_modalities_of_interest_times_item(camm):
    catalogue = camm.items()
    output = camm(HISTORY, VALID)
    scores = ModelScorer(camm).scores(HISTORY, VALID)
    interests = [camm.encode(stream, m) for m, stream in enumerate(output.enriched.x.unbind(-2))]
    for row, last in enumerate((5, 3)):
        for item in range(15):
            parts = [
                interest[row, last] @ catalogue.x[item, m] for m, interest in enumerate(interests)
            ]
            assert scores[row, item].item() == pytest.approx(sum(parts).item())


def test_a_candidate_scores_nothing_by_a_modality_that_it_lacks(camm, tiny):
    lacking = (tiny.features["image"] == 0).all(-1)
    image = camm.items.names.index("image")
    assert lacking.any()
    assert (camm.items().x[lacking, image] == 0).all()
    assert torch.equal(~camm.items().present[:, image], lacking)


def test_unknown_category_gives_equal_weights_over_what_is_present(camm):
    weights = camm(torch.tensor([[1]]), torch.tensor([[True]])).enriched.weights
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))


def test_category_matters_unless_guidance_is_off(tiny):
    labels = tiny.labels.roll(1, dims=1)
    for config, same in ((CONFIGS["default"], False), (CONFIGS["no guidance"], True)):
        outputs = []
        for given in (tiny.labels, labels):
            torch.manual_seed(0)
            outputs.append(CAMMSR(tiny.features, given, config).eval()(HISTORY, VALID).states)
        assert torch.equal(*outputs) == same


@pytest.mark.parametrize("name", available())
def test_any_fusion_makes_a_recommender_that_learns(name, tiny):
    model = fused_recommender(tiny.features, tiny.labels, SMALL, fusion=name)
    output = model(HISTORY, VALID)
    assert output.candidates.shape == (len(tiny.labels), 8)
    loss = (output.states @ output.candidates.T).square().mean() + sum(output.losses.values())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradient.any() for gradient in gradients.values()), gradients


def test_each_position_keeps_its_best_experts(tiny):
    outputs = []
    for config in (replace(SMALL, num_experts=4), CONFIGS["sparse"]):
        torch.manual_seed(0)
        outputs.append(CAMMSR(tiny.features, tiny.labels, config).eval()(HISTORY, VALID))
    every, kept = (output.enriched.router for output in outputs)
    best = every.expert_weight.abs().topk(2).indices
    present = outputs[0].present & VALID.unsqueeze(-1)
    assert torch.equal(kept.expert_index, torch.where(present.unsqueeze(-1), best, -1))
    torch.testing.assert_close(kept.expert_weight, every.expert_weight.gather(-1, best))
    assert not torch.allclose(outputs[0].states, outputs[1].states)


def test_encoding_one_position_equals_encoding_all(camm):
    stream = torch.randn(2, 6, 8, dtype=torch.float64)
    last = last_position(VALID)
    torch.testing.assert_close(
        camm.encode(stream, 1, last), last_valid(camm.encode(stream, 1), VALID)
    )


def test_every_parameter_is_trained(camm):
    output = camm(HISTORY, VALID)
    loss = (output.states @ output.candidates.T).square().sum() + output.losses["category"]
    loss.backward()
    for name, parameter in camm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


# -- item streams ---------------------------------------------------------------------------------


def test_standardised_features_are_centred_with_unit_variance_and_keep_absent_rows():
    raw = torch.randn(50, 4) * 3 + 5
    raw[::7] = 0
    present = (raw != 0).any(-1)
    scaled = standardise(raw)
    assert (scaled[~present] == 0).all()
    torch.testing.assert_close(scaled[present].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert scaled[present].square().mean().item() == pytest.approx(1, rel=1e-5)


def test_items_with_the_same_features_stay_present():
    items = ItemStreams({"text": torch.ones(3, 2)}, 3, 4)
    assert items().present.all()


def test_standardising_nothing_but_absent_rows_changes_nothing():
    assert torch.equal(standardise(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_looking_up_takes_the_rows_of_the_items(camm):
    catalogue = camm.items()
    x, present = look_up(catalogue, HISTORY)
    assert torch.equal(x, catalogue.x[HISTORY])
    assert torch.equal(present, catalogue.present[HISTORY])


def test_a_feature_may_not_be_called_id():
    with pytest.raises(ValueError, match="Expected features of other names than 'id'"):
        ItemStreams({"id": torch.ones(2, 3)}, 2, 4)


def test_some_modality_is_needed():
    with pytest.raises(ValueError, match="at least one modality, got no features and use_id=False"):
        ItemStreams({}, 2, 4, use_id=False)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="Expected dim divisible by num_heads, got 6 and 4"):
        StreamEncoder(6, num_layers=1, num_heads=4, hidden_dim=8, dropout=0.0)


@pytest.mark.parametrize(
    ("name", "settings", "scale"),
    [
        ("cammsr", {}, 0.25),
        ("cammsr", {"norm": "dyt"}, 0.25),
        ("cammsr w/o DyT", {}, 0.05),
        ("cammsr w/o DyT", {"init_scale": 0.5}, 0.5),
        ("sasrec", {}, 0.05),
        ("unisrec", {}, 0.05),
        ("missrec", {}, 0.05),
        ("hm4sr", {}, 0.05),
        ("hm4sr", {"init_scale": 0.5}, 0.5),
        ("gru4rec", {}, 0.25),
    ],
)
def test_streams_start_as_large_as_the_norm_behind_them_asks(name, settings, scale, tiny, config):
    config = replace(config, model=ModelConfig(dim=256, hidden_dim=8, num_heads=1, **settings))
    built, _ = build(name, tiny, config)
    assert built.items.embedding.weight.std().item() == pytest.approx(scale, rel=0.1)
    positions = getattr(built, "positions", None)
    if positions is not None and positions.numel():  # a GRU needs none
        assert positions.std().item() == pytest.approx(scale, rel=0.1)
