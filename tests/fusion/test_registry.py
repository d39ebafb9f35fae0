"""Tests for mmfuse.fusion.registry, and what all fusions promise alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.func import functional_call

from mmfuse.fusion import available, build
from mmfuse.testing import assert_block_contract
from mmfuse.types import Fusion, FusionOutput, Streams
from tests.fusions import OPTIONS, made, made_for
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import streams, with_nan

few = settings(max_examples=15)
each_fusion = pytest.mark.parametrize("name", available())
each_of_rows = pytest.mark.parametrize("name", available("rows"))  # see test_sequences.py

WEIGHING = ("mean", "gated", "attention_pooling", "product_of_experts", "dynamic", "graph")
#: Where an order of the modalities means nothing: they share all parameters, or there are none.
SYMMETRIC = ("sum", "mean", "max", "product", "attention_pooling", "dynamic")
#: Each modality adds something, whatever the others are; a bias is there without any of them.
ADDITIVE = ("sum", "concat", "whitening")
PRESENT = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])


# -- names -----------------------------------------------------------------------------------------


def test_every_name_is_there_once() -> None:
    assert len(set(available())) == len(available()) == 32


@each_fusion
def test_a_fusion_is_built_with_its_options(name: str) -> None:
    fusion = made(name, 4, 3)
    assert isinstance(fusion, Fusion)
    for option, value in OPTIONS.get(name, {}).items():
        assert getattr(fusion, option, value) == value
    assert str(fusion).startswith(f"{type(fusion).__name__}(")
    assert "dim=4, num_modalities=3" in str(fusion)


def test_rows_and_sequences_are_all_there_is() -> None:
    assert available("rows") + available("sequences") == available()
    with pytest.raises(ValueError, match=r"kind to be one of 'rows', 'sequences', got 'tokens'\."):
        available("tokens")


def test_an_unknown_name_or_option_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"name to be one of 'sum', 'mean', .*, got 'bilinear'\."):
        build("bilinear", 4, 2)
    with pytest.raises(
        TypeError, match=r"options of 'low_rank' among 'rank', 'device', 'dtype', got 'ranks'\."
    ):
        build("low_rank", 4, 2, ranks=3)


# -- absent modalities -----------------------------------------------------------------------------


@each_fusion
@few
@given(case=streams())
def test_nan_of_an_absent_modality_reaches_nothing(name: str, case: Streams) -> None:
    fusion = made_for(name, case.x)
    dirty = outcome(fusion, with_nan(case.x, case.present), case.present)
    assert_same(dirty, outcome(fusion, case.x, case.present))


@each_fusion
@few
@given(case=streams())
def test_all_present_is_no_mask(name: str, case: Streams) -> None:
    fusion = made_for(name, case.x)
    got = outcome(fusion, case.x, torch.ones_like(case.present))
    torch.testing.assert_close(got, outcome(fusion, case.x))


@each_of_rows
def test_rows_with_nothing_are_finite_and_alike(name: str) -> None:
    fusion = drawn(made(name, 4, 3))
    x = torch.full((5, 3, 4), torch.nan, dtype=torch.float64)
    (fused, *weights), (of_x, *_) = outcome(fusion, x, torch.zeros(5, 3, dtype=torch.bool))
    assert fused.isfinite().all()
    torch.testing.assert_close(fused, fused[:1].expand_as(fused))
    assert_same(of_x, torch.zeros_like(of_x))
    assert all((weight == 0).all() for weight in weights)


@pytest.mark.parametrize("name", WEIGHING)
@few
@given(case=streams())
def test_weights_are_shares_of_what_is_present(name: str, case: Streams) -> None:
    weights = made_for(name, case.x)(case.x, case.present).weights
    assert ((weights >= 0) & (weights <= 1 + 1e-12)).all()
    assert (weights[~case.present] == 0).all()


# -- shape, order, precision -----------------------------------------------------------------------


@each_of_rows
@few
@given(case=streams())
def test_each_row_is_fused_as_if_alone(name: str, case: Streams) -> None:
    fusion = made_for(name, case.x)
    fused = fusion(case.x, case.present).fused
    assert fused.shape == (*case.x.shape[:-2], case.x.shape[-1])
    for place in places(case.x.shape[:-2]):
        alone = fusion(case.x[place], case.present[place]).fused
        torch.testing.assert_close(fused[place], alone)


@pytest.mark.parametrize("name", SYMMETRIC)
@few
@given(case=streams())
def test_the_order_of_modalities_means_nothing(name: str, case: Streams) -> None:
    fusion, order = made_for(name, case.x), torch.randperm(case.x.shape[-2])
    other = fusion(case.x[..., order, :], case.present[..., order])
    fused, weights, _ = fusion(case.x, case.present)
    torch.testing.assert_close(other.fused, fused)
    if weights is not None:
        torch.testing.assert_close(other.weights, weights[..., order])


@pytest.mark.parametrize("name", sorted({*available()} - {*SYMMETRIC}))
def test_the_order_of_modalities_means_something(name: str) -> None:
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    fusion = made_for(name, x)
    assert not torch.allclose(fusion(x.flip(-2)).fused, fusion(x).fused)


@pytest.mark.parametrize("name", ADDITIVE)
@few
@given(case=streams())
def test_the_whole_is_the_sum_of_its_parts(name: str, case: Streams) -> None:
    fusion = made_for(name, case.x)
    nothing = fusion(case.x, torch.zeros_like(case.present)).fused
    parts = [
        fusion(case.x, case.present & only).fused - nothing
        for only in torch.eye(case.x.shape[-2], dtype=torch.bool)
    ]
    whole = fusion(case.x, case.present).fused - nothing
    torch.testing.assert_close(whole, torch.stack(parts).sum(0))


@each_fusion
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept(name: str, dtype: torch.dtype) -> None:
    fusion, x = made(name, 4, 3), torch.randn(3, 3, 4)
    wanted = fusion(x, PRESENT)
    got = fusion.to(dtype)(x.to(dtype), PRESENT)
    assert isinstance(got, FusionOutput)
    assert got.fused.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(got.fused.float(), wanted.fused, rtol=tolerance, atol=tolerance)


@each_fusion
def test_device_and_dtype_are_taken(name: str) -> None:
    fusion = made(name, 4, 3, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in fusion.parameters()} <= {("meta", torch.float64)}


@each_fusion
@pytest.mark.parametrize("num_modalities", [1, 3])
def test_what_comes_out_is_no_view_of_what_went_in(name: str, num_modalities: int) -> None:
    fusion, x = made(name, 4, num_modalities), torch.randn(3, num_modalities, 4)
    before = x.clone()
    with torch.no_grad():
        fusion(x).fused.zero_()
    assert_same(x, before)


@each_of_rows
@pytest.mark.parametrize("masked", [False, True])
def test_batched_by_vmap_it_gives_the_same_numbers(name: str, masked: bool) -> None:
    fusion, x = made(name, 4, 3), torch.randn(3, 3, 4)
    inputs = (x, PRESENT) if masked else (x,)
    batched = torch.vmap(lambda *parts: fusion(*parts).fused)(*inputs)
    torch.testing.assert_close(batched, fusion(*inputs).fused)


@pytest.mark.parametrize("name", sorted({*available()} - {"dynamic"}))
def test_context_is_ignored(name: str) -> None:
    fusion, x = made(name, 4, 3), torch.randn(3, 3, 4)
    assert_same(fusion(x, PRESENT, torch.randn(3, 9)), fusion(x, PRESENT))


# -- gradients and contract ------------------------------------------------------------------------


@each_fusion
def test_gradcheck(name: str) -> None:
    fusion = drawn(made(name, 2, 3))
    weights = dict(fusion.named_parameters())

    def fused(x: Tensor, *parameters: Tensor) -> list[Tensor]:
        state = dict(zip(weights, parameters, strict=True))
        output = functional_call(fusion, state, (x, PRESENT))
        return [part for part in output[:2] if part is not None and part.requires_grad]

    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused, (x, *weights.values()))


def unused(name: str, num_modalities: int) -> tuple[str, ...]:
    """Parameters that get no gradient, and why."""
    if name == "whitening":  # the noise is drawn in training only
        return tuple(f"adaptors.{m}.noise.weight" for m in range(num_modalities))
    if num_modalities > 1:
        return ()
    single = {
        "attention_pooling": ("query", "key.weight"),  # one answer fits every question
        "dynamic": ("user", "sharpness"),
        "graph": ("query", "layers.0.att", "layers.0.lin_r.weight"),
        "interactive": (
            "mixture.gate.weight",
            "mixture.gate.bias",
            "mixture.experts.weight",
            "mixture.experts.bias",
        ),  # nothing is added to the target at the start
    }
    return single.get(name, ())


@each_fusion
@pytest.mark.parametrize(("num_modalities", "masked"), [(1, False), (2, True), (3, False)])
def test_contract(name: str, num_modalities: int, masked: bool) -> None:
    fusion = made(name, 4, num_modalities)
    present = torch.rand(2, 6, num_modalities) < 0.7 if masked else None
    x = torch.randn(2, 6, num_modalities, 4)
    assert_block_contract(fusion, x, present, unused=unused(name, num_modalities))


@each_of_rows
@pytest.mark.parametrize("masked", [False, True])
def test_exported_it_gives_the_eager_numbers(name: str, masked: bool) -> None:
    fusion = made(name, 4, 3)
    inputs = torch.randn(3, 3, 4), PRESENT if masked else None
    rows = {0: torch.export.Dim("rows")}
    shapes = (rows, rows if masked else None)
    program = torch.export.export(fusion, inputs, dynamic_shapes=shapes).module()
    more = torch.randn(6, 3, 4), PRESENT.repeat(2, 1) if masked else None
    torch.testing.assert_close(program(*more), fusion(*more))


# -- errors ----------------------------------------------------------------------------------------

X = torch.ones(3, 2, 4)


@each_fusion
@pytest.mark.parametrize(
    ("sizes", "message"),
    [((-4, 2), r"Expected dim > 0, got -4\."), ((4, 0), r"Expected num_modalities > 0, got 0\.")],
)
def test_rejects_bad_sizes(name: str, sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, *sizes)


@each_fusion
@pytest.mark.parametrize(
    ("x", "present", "message"),
    [
        (X[:, :1], None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 1, 4\)\."),
        (X[..., :3], None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 2, 3\)\."),
        (X, X[..., 0], r"Expected present of dtype torch\.bool, got torch\.float32\."),
        (X, X[:1, :, 0] > 0, r"Expected present of shape \(3, 2\), got \(1, 2\)\."),
    ],
)
def test_rejects_bad_inputs(name: str, x: Tensor, present: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, 4, 2)(x, present)
