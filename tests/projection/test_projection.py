"""Tests for mmfuse.projection.projection."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from mmfuse import ModalityProjection
from mmfuse.testing import assert_block_contract
from tests.outcomes import assert_same, drawn, places
from tests.references import Raw, naive_linear, raw_features
from tests.strategies import with_nan

few = settings(max_examples=25)


def projection_of(case: Raw, **options: bool) -> ModalityProjection:
    """Random weights, and biases too, so that a bias in the wrong place shows."""
    return drawn(ModalityProjection(case.widths, case.dim, **options))


def observed(case: Raw, name: str, place: tuple[int, ...]) -> bool:
    return name in case.features and bool(
        case.present.get(name, torch.tensor(True)).expand(case.features[name].shape[:-1])[place]
    )


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_stream(case: Raw, layer: nn.Module, name: str, place: tuple[int, ...]) -> list[float]:
    """W f + b where the modality was observed, the features themselves without a W, else zero."""
    if not observed(case, name, place):
        return [0.0] * case.dim
    features = case.features[name][place].tolist()
    if not isinstance(layer, nn.Linear):
        return features
    projected = naive_linear(layer.weight.tolist(), features)
    bias = [0.0] * case.dim if layer.bias is None else layer.bias.tolist()
    return [value + b for value, b in zip(projected, bias, strict=True)]


@given(raw_features(), st.booleans())
@settings(max_examples=50)
def test_matches_naive(case, bias):
    projection = projection_of(case, bias=bias)
    x, present = projection(case.features, case.present)
    lead = next(iter(case.features.values())).shape[:-1]
    assert x.shape == (*lead, len(case.widths), case.dim)
    for place in places(lead):
        for m, name in enumerate(case.widths):
            wanted = naive_stream(case, projection.layers[m], name, place)
            torch.testing.assert_close(x[place][m], torch.tensor(wanted, dtype=x.dtype))
            assert present[place][m] == observed(case, name, place)


# -- properties -----------------------------------------------------------------------------------


@given(raw_features())
@few
def test_order_of_the_keys_changes_nothing(case):
    projection = projection_of(case)
    turned = {name: case.features[name] for name in reversed(case.features)}
    masks = {name: case.present[name] for name in reversed(case.present)}
    assert_same(projection(turned, masks), projection(case.features, case.present))


@given(raw_features())
@few
def test_dropping_a_modality_equals_masking_it_everywhere(case):
    projection = projection_of(case)
    lead = next(iter(case.features.values())).shape[:-1]
    nowhere = torch.zeros(lead, dtype=torch.bool)
    missing = set(case.widths) - set(case.features)
    noise = {n: torch.randn(*lead, case.widths[n] or case.dim).double() for n in missing}
    masked = projection(case.features | noise, case.present | dict.fromkeys(missing, nowhere))
    assert_same(masked, projection(case.features, case.present))


@given(raw_features())
@few
def test_presence_of_a_name_without_features_is_ignored(case):
    projection = projection_of(case)
    lead = next(iter(case.features.values())).shape[:-1]
    everywhere = torch.ones(lead, dtype=torch.bool)
    missing = set(case.widths) - set(case.features)
    claimed = projection(case.features, case.present | dict.fromkeys(missing, everywhere))
    assert_same(claimed, projection(case.features, case.present))


def outputs_and_gradients(
    projection: ModalityProjection, features: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> list[Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in features.items()}
    x, seen = projection(leaves, present)
    generator = torch.Generator().manual_seed(1)
    loss = (x * torch.randn(x.shape, generator=generator)).sum()
    wanted = [*leaves.values(), *projection.parameters()]
    return [x.detach(), seen, *torch.autograd.grad(loss, wanted, materialize_grads=True)]


@given(raw_features())
@few
def test_nan_of_an_absent_modality_reaches_nothing(case):
    projection = projection_of(case)
    dirty = {
        name: with_nan(tensor, case.present[name]) if name in case.present else tensor
        for name, tensor in case.features.items()
    }
    clean = outputs_and_gradients(projection, case.features, case.present)
    assert_same(outputs_and_gradients(projection, dirty, case.present), clean)


def test_modality_learns_from_its_own_features_only():
    projection = ModalityProjection({"text": 3, "image": 2}, 4)
    x, _ = projection({"text": torch.randn(5, 3), "image": torch.randn(5, 2)})
    x[:, 0].sum().backward()
    text, image = projection.layers
    assert (text.weight.grad != 0).any()
    assert (image.weight.grad == 0).all()


def test_starts_without_bias():
    projection = ModalityProjection({"text": 3, "image": 2}, 4)
    assert all((layer.bias == 0).all() for layer in projection.layers)


def test_names_may_be_any_string():
    widths = {"": 2, "a.b": 3, "type": 4, "forward": 5, "layers": None}
    projection = ModalityProjection(widths, 6)
    features = {name: torch.randn(2, width or 6) for name, width in widths.items()}
    fresh = copy.deepcopy(projection)
    fresh.reset_parameters()
    fresh.load_state_dict(projection.state_dict())
    assert_same(fresh(features), projection(features))


def test_order_is_that_of_the_constructor():
    projection = ModalityProjection({"b": None, "a": None}, 1)
    x, _ = projection({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])})
    assert x.tolist() == [[2.0], [1.0]]


@pytest.mark.parametrize("lead", [(), (0,), (2, 0), (1, 1)])
def test_any_leading_dimensions(lead):
    projection = ModalityProjection({"text": 1, "image": 2}, 3)
    x, present = projection({"text": torch.ones(*lead, 1)})
    assert_same(x[..., 0, :], projection.layers[0](torch.ones(*lead, 1)))
    assert_same(x[..., 1, :], torch.zeros(*lead, 3))
    assert_same(present, torch.tensor([True, False]).expand(*lead, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.uint8])
def test_features_come_in_the_dtype_of_the_weights(dtype):
    projection = ModalityProjection({"text": 3}, 4)
    features = torch.randint(0, 5, (2, 3))
    x, _ = projection({"text": features.to(dtype)})
    assert_same(x, projection({"text": features.float()}).x)


def test_autocast_keeps_absent_streams_zero():
    projection = drawn(ModalityProjection({"text": 3, "image": None}, 4)).float()
    features = {"text": torch.randn(2, 3), "image": torch.randn(2, 4)}
    absent = {"text": torch.tensor([True, False])}
    with torch.autocast("cpu", torch.bfloat16):
        x, _ = projection(features, absent)
    assert (x[1, 0] == 0).all()
    torch.testing.assert_close(x, projection(features, absent).x, rtol=0.05, atol=0.05)


def test_strided_features_give_the_same_streams():
    projection = ModalityProjection({"text": 3}, 4)
    features = torch.randn(3, 5).mT
    assert_same(projection({"text": features}), projection({"text": features.contiguous()}))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copy_gives_the_same_streams(copied):
    projection = ModalityProjection({"text": 3, "image": None}, 4)
    features = {"text": torch.randn(2, 3)}
    assert_same(copied(projection)(features), projection(features))


def test_constructor_keeps_no_hold_of_the_mapping():
    widths = {"text": 3}
    projection = ModalityProjection(widths, 4)
    widths["text"] = 5
    assert projection.widths == {"text": 3}


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    projection = drawn(ModalityProjection({"text": 3, "image": 2, "id": None}, 2))
    present = {"text": torch.tensor([True, False])}
    weights = dict(projection.named_parameters())

    def stream(text: Tensor, image: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(weights, parameters, strict=True))
        return functional_call(projection, state, ({"text": text, "image": image}, present)).x

    inputs = [torch.randn(2, width, dtype=torch.float64, requires_grad=True) for width in (3, 2)]
    assert torch.autograd.gradcheck(stream, (*inputs, *weights.values()))


def test_contract():
    features = {"text": torch.randn(5, 3), "image": torch.randn(5, 2)}
    present = {"image": torch.tensor([True, False, True, True, False])}
    projection = ModalityProjection({"text": 3, "image": 2, "id": None}, 4)
    assert_block_contract(projection, features, present)


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "dim", "message"),
    [
        ({}, 4, r"Expected at least one modality in widths, got none\."),
        ({"text": 3}, 0, r"Expected dim > 0, got 0\."),
        ({"text": 3, "image": 0}, 4, r"Expected widths\['image'\] > 0, got 0\."),
        ({"text": -1}, 4, r"Expected widths\['text'\] > 0, got -1\."),
    ],
)
def test_rejects_bad_hyperparameters(widths, dim, message):
    with pytest.raises(ValueError, match=message):
        ModalityProjection(widths, dim)


TEXT, IMAGE, ID = torch.ones(2, 3), torch.ones(2, 5), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("features", "present", "message"),
    [
        ({}, None, r"Expected features of at least one of \('text', 'image', 'id'\), got none\."),
        ({"txt": TEXT}, None, r"Expected features named among .*'id'\), got \['txt'\]\."),
        ({"text": TEXT}, {"i": 0}, r"Expected present named among .*'id'\), got \['i'\]\."),
        (
            {"text": IMAGE},
            None,
            r"Expected features\['text'\] of shape \(\.\.\., 3\), got \(2, 5\)\.",
        ),
        (
            {"text": torch.ones(())},
            None,
            r"Expected features\['text'\] .*\(\.\.\., 3\), got \(\)\.",
        ),
        ({"id": TEXT}, None, r"Expected features\['id'\] of shape \(\.\.\., 4\), got \(2, 3\)\."),
        (
            {"text": TEXT, "image": IMAGE[None]},
            None,
            r"Expected features\['image'\] of shape \(2, 5\), got \(1, 2, 5\)\.",
        ),
        (
            {"image": IMAGE[:1], "text": TEXT},
            None,
            r"Expected features\['image'\] of shape \(2, 5\), got \(1, 5\)\.",
        ),
        (
            {"text": TEXT[0], "image": IMAGE},
            None,
            r"Expected features\['image'\] of shape \(5,\), got \(2, 5\)\.",
        ),
        (
            {"text": TEXT},
            {"text": torch.ones(2)},
            r"Expected present\['text'\] of dtype torch\.bool, got torch\.float32\.",
        ),
        (
            {"text": TEXT},
            {"text": torch.ones(2, 1, dtype=torch.bool)},
            r"Expected present\['text'\] of shape \(2,\), got \(2, 1\)\.",
        ),
        (
            {"text": TEXT},
            {"image": torch.ones(3, dtype=torch.bool)},
            r"Expected present\['image'\] of shape \(2,\), got \(3,\)\.",
        ),
        (
            {"id": ID.long()},
            None,
            r"Expected features\['id'\] of a floating dtype, got torch\.int64\.",
        ),
    ],
)
def test_rejects_bad_inputs(features, present, message):
    projection = ModalityProjection({"text": 3, "image": 5, "id": None}, 4)
    with pytest.raises(ValueError, match=message):
        projection(features, present)


def test_repr():
    wanted = "widths={'text': 3, 'id': None}, dim=4"
    assert wanted in repr(ModalityProjection({"text": 3, "id": None}, 4))
