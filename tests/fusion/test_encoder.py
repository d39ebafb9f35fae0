"""Tests for mmfuse.fusion.encoder."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmfuse import (
    CategoryGuidedGate,
    ConcatFusion,
    FeatureTable,
    GatedFusion,
    ModalityProjection,
    MultimodalEncoder,
    SoftmaxGate,
    SumFusion,
    WeightedFusion,
)
from mmfuse.fusion import build
from mmfuse.testing import assert_block_contract
from mmfuse.types import FusionOutput
from tests.outcomes import assert_same, drawn
from tests.references import Raw, raw_features
from tests.strategies import with_nan

few = settings(max_examples=25)

#: Every fusion, by its width and number of modalities.
FUSIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "sum": SumFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "softmax": lambda dim, _: WeightedFusion(SoftmaxGate(dim)),
    "category": lambda dim, modalities: WeightedFusion(CategoryGuidedGate(dim, modalities, 5)),
}
fusions = st.sampled_from(sorted(FUSIONS))


def encoder_of(case: Raw, fusion: str) -> MultimodalEncoder:
    projection = ModalityProjection(case.widths, case.dim)
    return drawn(MultimodalEncoder(projection, FUSIONS[fusion](case.dim, len(case.widths))))


# -- reference: one after the other ---------------------------------------------------------------


@given(raw_features(), fusions)
@few
def test_is_the_fusion_of_the_projection(case, fusion):
    encoder = encoder_of(case, fusion)
    x, present = encoder.projection(case.features, case.present)
    assert_same(encoder(case.features, case.present), encoder.fusion(x, present))


# -- properties -----------------------------------------------------------------------------------


@given(raw_features(), fusions)
@few
def test_order_of_the_keys_changes_nothing(case, fusion):
    encoder = encoder_of(case, fusion)
    turned = {name: case.features[name] for name in reversed(case.features)}
    assert_same(encoder(turned, case.present), encoder(case.features, case.present))


@given(raw_features(), fusions)
@few
def test_dropping_a_modality_equals_masking_it_everywhere(case, fusion):
    encoder = encoder_of(case, fusion)
    lead = next(iter(case.features.values())).shape[:-1]
    missing = set(case.widths) - set(case.features)
    noise = {n: torch.randn(*lead, case.widths[n] or case.dim).double() for n in missing}
    nowhere = dict.fromkeys(missing, torch.zeros(lead, dtype=torch.bool))
    masked = encoder(case.features | noise, case.present | nowhere)
    assert_same(masked, encoder(case.features, case.present))


def outputs_and_gradients(
    encoder: MultimodalEncoder, features: dict[str, Tensor], present: dict[str, Tensor]
) -> list[Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in features.items()}
    fused, weights, _ = encoder(leaves, present)
    draws = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1))
    wanted = [*leaves.values(), *encoder.parameters()]
    gradients = torch.autograd.grad((fused * draws).sum(), wanted, materialize_grads=True)
    return [fused, *([] if weights is None else [weights]), *gradients]


@given(raw_features(), fusions)
@few
def test_nan_of_an_absent_modality_reaches_nothing(case, fusion):
    encoder = encoder_of(case, fusion)
    dirty = {
        name: with_nan(tensor, case.present[name]) if name in case.present else tensor
        for name, tensor in case.features.items()
    }
    clean = outputs_and_gradients(encoder, case.features, case.present)
    assert_same(outputs_and_gradients(encoder, dirty, case.present), clean)


def test_context_reaches_the_fusion():
    projection, gate = ModalityProjection({"text": 3, "image": 2}, 4), CategoryGuidedGate(4, 2, 5)
    encoder = MultimodalEncoder(projection, WeightedFusion(gate))
    features = {"text": torch.randn(2, 3), "image": torch.randn(2, 2)}
    categories = torch.tensor([1, -100])
    wanted = gate(*projection(features), categories)
    output = encoder(features, context=categories)
    assert_same((output.weights, output.losses), (wanted.weights, wanted.losses))


def test_any_function_is_a_fusion():
    def first(x: Tensor, present: Tensor | None, context: Tensor | None) -> FusionOutput:
        return FusionOutput(x[..., 0, :], None, {})

    features = {"id": torch.randn(2, 4)}
    encoder = MultimodalEncoder(ModalityProjection({"id": None}, 4), first)
    assert_same(encoder(features).fused, features["id"])


def test_item_without_features_gets_a_zero_vector():
    table = FeatureTable(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    encoder = MultimodalEncoder(ModalityProjection({"text": 3}, 4), GatedFusion(4, 1))
    features, present = table(torch.tensor([[0, 1]]))
    fused = encoder({"text": features}, {"text": present}).fused
    assert (fused[0, 0] != 0).any()
    assert (fused[0, 1] == 0).all()


def test_both_parts_learn():
    encoder = MultimodalEncoder(ModalityProjection({"text": 3, "image": 2}, 4), GatedFusion(4, 2))
    features = {"text": torch.randn(5, 3), "image": torch.randn(5, 2)}
    target, optimizer = torch.rand(5, 4), torch.optim.Adam(encoder.parameters(), lr=0.05)
    errors = []
    for _ in range(50):
        optimizer.zero_grad()
        error = ((encoder(features).fused - target) ** 2).mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copy_gives_the_same_vector(copied):
    encoder = MultimodalEncoder(ModalityProjection({"text": 3}, 4), GatedFusion(4, 1))
    features = {"text": torch.randn(2, 3)}
    assert_same(copied(encoder)(features), encoder(features))


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    projection = ModalityProjection({"text": 3, "image": None}, 2)
    encoder = drawn(MultimodalEncoder(projection, GatedFusion(2, 2)))
    present = {"text": torch.tensor([True, False])}

    def fused(text: Tensor, image: Tensor) -> Tensor:
        return encoder({"text": text, "image": image}, present).fused

    inputs = [torch.randn(2, width, dtype=torch.float64, requires_grad=True) for width in (3, 2)]
    assert torch.autograd.gradcheck(fused, inputs)


def test_contract():
    encoder = MultimodalEncoder(ModalityProjection({"text": 3, "image": 2}, 4), GatedFusion(4, 2))
    features = {"text": torch.randn(5, 3), "image": torch.randn(5, 2)}
    present = {"image": torch.tensor([True, False, True, True, False])}
    assert_block_contract(encoder, features, present)


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "fusion", "message"),
    [
        ({"sound": torch.ones(2, 3)}, SumFusion(4, 2), r"Expected features named among .*'sound'"),
        (
            {},
            SumFusion(4, 2),
            r"Expected features of at least one of \('text', 'image'\), got none",
        ),
        (
            {"text": torch.ones(2, 5)},
            SumFusion(4, 2),
            r"Expected features\['text'\] of shape \(\.\.\., 3\), got \(2, 5\)\.",
        ),
        (
            {"text": torch.ones(2, 3)},
            SumFusion(4, 3),
            r"Expected x of shape \(\.\.\., 3, 4\), got \(2, 2, 4\)\.",
        ),
    ],
)
def test_rejects_what_its_parts_reject(features, fusion, message):
    encoder = MultimodalEncoder(ModalityProjection({"text": 3, "image": 2}, 4), fusion)
    with pytest.raises(ValueError, match=message):
        encoder(features)


def test_padding_is_handed_on_to_a_fusion_over_sequences():
    projection = ModalityProjection({"text": 3, "image": None}, 4)
    encoder = MultimodalEncoder(projection, build("fdsa", 4, 2)).eval()
    features, valid = {"text": torch.randn(2, 5, 3)}, torch.arange(5) < torch.tensor([[5], [2]])
    x, present = projection(features)
    fused = encoder(features, valid=valid).fused
    assert torch.equal(fused, encoder.fusion(x, present, valid=valid).fused)
    assert (fused[1, 2:] == 0).all()
    with pytest.raises(TypeError, match="valid"):
        MultimodalEncoder(projection, SumFusion(4, 2))(features, valid=valid)


def test_repr():
    encoder = MultimodalEncoder(ModalityProjection({"text": None}, 4), SumFusion(4, 1))
    assert "(projection): ModalityProjection(" in repr(encoder)
    assert "(fusion): SumFusion(dim=4, num_modalities=1)" in repr(encoder)
