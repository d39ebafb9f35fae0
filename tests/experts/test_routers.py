"""What all routers promise alike; what one router does is tested beside it.

Padding is filled with NaN, and with a category that no table holds, wherever a test has padding.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmfuse import (
    AttentiveRouter,
    ExpertChoiceRouter,
    HashRouter,
    NoisyTopKRouter,
    SigmoidRouter,
    SlotRouter,
    SoftRouter,
    TopKRouter,
)
from mmfuse.testing import assert_block_contract
from mmfuse.types import Router, RouterOutput, SoftSlots
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import seeds, sequences, sizes, with_nan

few = settings(max_examples=25)
histories = sequences(num_modalities=st.just(1), length=st.integers(1, 7))
normalize = st.sampled_from([None, True, False])

#: Every router, and the options with which it is drawn.
OPTIONS: Mapping[type[nn.Module], Mapping[str, st.SearchStrategy[Any]]] = {
    TopKRouter: {"normalize": normalize},
    NoisyTopKRouter: {},
    SigmoidRouter: {"normalize": normalize},
    SoftRouter: {"temperature": st.sampled_from([0.5, 1.0, 3.0])},
    SlotRouter: {"slots_per_expert": sizes},
    ExpertChoiceRouter: {"capacity_factor": st.sampled_from([0.25, 1.0, 1.3, 2.0, 9.0])},
    HashRouter: {"seed": seeds},
    AttentiveRouter: {"causal": st.booleans(), "normalize": st.booleans()},
}
KINDS = tuple(OPTIONS)
OF_SEQUENCES = (SlotRouter, ExpertChoiceRouter, AttentiveRouter)  # a token is not routed alone
OF_TOKENS = tuple(kind for kind in KINDS if kind not in OF_SEQUENCES)

Kind = type[Any]


def over(*kinds: Kind) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds)


def takes(kind: Kind, name: str) -> bool:
    return name in inspect.signature(kind).parameters


class Case(NamedTuple):
    router: Any
    x: Tensor  # (..., L, D)
    valid: Tensor  # (..., L)
    context: Tensor  # (..., L), categories


@st.composite
def cases(draw: st.DrawFn, kind: Kind) -> Case:
    """A router in evaluation, tokens, which of them are real, and their categories."""
    history, experts = draw(histories), draw(sizes)
    options = {name: draw(option) for name, option in OPTIONS[kind].items()}
    if kind is AttentiveRouter:
        options["top_k"] = draw(st.none() | st.integers(1, experts))
    elif takes(kind, "top_k"):
        options["top_k"] = draw(st.integers(1, experts))
    categories = draw(st.integers(1, 9))
    first = categories if kind is HashRouter else history.x.shape[-1]
    router = biased(drawn(kind(first, experts, **options))).eval()
    context = torch.randint(0, categories, history.valid.shape)
    context[torch.rand(context.shape) < 0.3] = -100
    return Case(router, history.x.squeeze(-2), history.valid, context)


def biased(router: Any) -> Any:
    """With a bias drawn at random, if the router has one."""
    if isinstance(router, SigmoidRouter):
        router.expert_bias.normal_()
    return router


# Fixed sizes, where drawn ones would show no more: some padding, and one sequence of nothing else.
VALID = torch.tensor([[False, True, True], [False, False, False], [True, True, False]])
TOKENS = (torch.arange(80).reshape(4, 20) % 5 > 0) & (torch.arange(4) != 1).unsqueeze(-1)
CATEGORIES = torch.where(torch.arange(80) % 7 > 0, torch.arange(80), -100).reshape(4, 20)
NO_CATEGORY = 10**9


def make(kind: Kind, dim: int = 8, experts: int = 4, **options: Any) -> Any:
    return kind(CATEGORIES.numel() if kind is HashRouter else dim, experts, **options)


def spoilt(x: Tensor, valid: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs with nothing of use in padding."""
    return with_nan(x, valid), valid, torch.where(valid, context, NO_CATEGORY)


def seen(router: Any, *inputs: Any) -> Any:
    """All that a router gives under the same noise, and the gradients if it learns."""
    torch.manual_seed(0)
    if any(True for _ in router.parameters()):
        return outcome(router, *inputs)
    return [part for part in pytree.tree_leaves(router(*inputs)) if part is not None], ()


def by_token(routed: RouterOutput) -> list[Tensor]:
    """All that is said of each token: (..., L, *)."""
    weight, _, index, logits, probs, slots = routed
    soft = [part.flatten(-2) for part in slots] if isinstance(slots, SoftSlots) else []
    return [part for part in (weight, index, logits, probs, *soft) if part is not None]


def assert_close(kind: Kind, got: Any, wanted: Any) -> None:
    """The same up to rounding, of which a table has none."""
    (assert_same if kind is HashRouter else torch.testing.assert_close)(got, wanted)


def assume_no_ties(router: Any) -> None:
    """One expert finds all tokens equally probable, so that any choice of them is right."""
    assume(not isinstance(router, ExpertChoiceRouter) or router.num_experts > 1)


# -- padding ---------------------------------------------------------------------------------------


@over(*KINDS)
@few
@given(st.data())
def test_nan_in_padding_changes_nothing(kind: Kind, data: st.DataObject) -> None:
    """Neither values nor losses nor gradients, and padding itself has none."""
    router, *inputs = data.draw(cases(kind))
    router.train(data.draw(st.booleans()))
    outputs, gradients = seen(router, *spoilt(*inputs))
    assert_same((outputs, gradients), seen(router, *inputs))
    for gradient in gradients[:1]:
        assert (gradient[~inputs[1]] == 0).all()


@over(*KINDS)
@few
@given(st.data())
def test_padding_has_no_weight_and_no_expert(kind: Kind, data: st.DataObject) -> None:
    router, *inputs = data.draw(cases(kind))
    weight, _, index, logits, probs, slots = router.train(data.draw(st.booleans()))(
        *spoilt(*inputs)
    )
    valid = inputs[1]
    soft = slots if isinstance(slots, SoftSlots) else ()
    for part in (weight, probs, *soft):
        assert part is None or (part[~valid] == 0).all()
    assert logits is None or logits.isfinite().all()
    if index is not None:
        assert (index[~valid] == -1).all()
        chosen = index[valid].sort(-1).values
        assert ((chosen >= 0) & (chosen < router.num_experts)).all()
        assert (chosen.diff(dim=-1) > 0).all()  # no expert twice


@over(*KINDS)
@few
@given(st.data(), sizes)
def test_padding_is_as_if_it_were_not_there(kind: Kind, data: st.DataObject, padding: int) -> None:
    """To the losses too, on the left as on the right."""
    router, x, _, context = data.draw(cases(kind))
    assume_no_ties(router)
    alone = router(x, context=context)
    gap = torch.full((*x.shape[:-2], padding, x.shape[-1]), torch.nan, dtype=x.dtype)
    off, on = torch.zeros(gap.shape[:-1]) > 0, torch.ones(x.shape[:-1]) > 0
    none = torch.full_like(off, NO_CATEGORY, dtype=context.dtype)
    left = router(torch.cat([gap, x], -2), torch.cat([off, on], -1), torch.cat([none, context], -1))
    right = router(
        torch.cat([x, gap], -2), torch.cat([on, off], -1), torch.cat([context, none], -1)
    )
    wanted = by_token(alone)
    assert_close(kind, [part[..., padding:, :] for part in by_token(left)], wanted)
    assert_close(kind, [part[..., :-padding, :] for part in by_token(right)], wanted)
    assert_close(kind, [left.losses, right.losses], [alone.losses] * 2)


@over(*KINDS)
@few
@given(st.data())
def test_none_means_all_valid(kind: Kind, data: st.DataObject) -> None:
    router, x, valid, context = data.draw(cases(kind))
    router.train(data.draw(st.booleans()))
    full = seen(router, x, torch.ones_like(valid), context)
    assert_close(kind, full, seen(router, x, None, context))


@over(*KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_where_all_is_padding_nothing_happens(kind: Kind, training: bool) -> None:
    router, x = make(kind, 3).train(training), torch.full((2, 5, 3), torch.nan)
    inputs = x, torch.zeros(2, 5) > 0, torch.full((2, 5), NO_CATEGORY)
    weight, losses, index, _, probs, slots = router(*inputs)
    width = getattr(router, "top_k", None) or 4
    assert_same(weight.detach(), torch.zeros(2, 5, width))
    assert index is None or (index == -1).all()
    floats = [
        part for part in (probs, *(slots or ())) if part is not None and part.is_floating_point()
    ]
    for nothing in (*floats, *losses.values(), *seen(router, *inputs)[1]):
        assert_same(nothing.detach(), torch.zeros_like(nothing))


# -- tokens and sequences --------------------------------------------------------------------------


@over(*KINDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_tokens_have_no_losses(kind: Kind, training: bool, shape: tuple[int, ...]) -> None:
    router, x = make(kind, 3).train(training), torch.zeros(*shape, 3)
    width = getattr(router, "top_k", None) or 4
    for valid in (None, torch.ones(shape, dtype=torch.bool)):
        inputs = x, valid, torch.zeros(shape, dtype=torch.int64)
        routed = router(*inputs)
        assert_same(routed.expert_weight.detach(), torch.zeros(*shape, width))
        if routed.expert_index is not None:
            assert_same(routed.expert_index, torch.zeros(*shape, width, dtype=torch.int64))
        for nothing in (*routed.losses.values(), *seen(router, *inputs)[1]):
            assert_same(nothing.detach(), torch.zeros_like(nothing))


@over(*KINDS)
@few
@given(st.data())
def test_each_is_routed_as_if_alone(kind: Kind, data: st.DataObject) -> None:
    """Sequences do not compete; nor do tokens, of the routers that see no sequence."""
    router, *inputs = data.draw(cases(kind))
    assume_no_ties(router)
    together, valid = by_token(router(*spoilt(*inputs))), inputs[1]
    for row in places(valid.shape if kind in OF_TOKENS else valid.shape[:-1]):
        alone = router(*spoilt(*(part[row] for part in inputs)))
        assert_close(kind, [part[row] for part in together], by_token(alone))


@over(*KINDS)
@few
@given(st.data())
def test_leading_dimensions_are_one_batch(kind: Kind, data: st.DataObject) -> None:
    """To the losses as well; a single token or sequence is a batch of one."""
    router, *inputs = data.draw(cases(kind))
    inputs = spoilt(*inputs)
    if kind in OF_TOKENS and data.draw(st.booleans()):
        inputs = tuple(part[(0,) * inputs[1].ndim] for part in inputs)
    kept = 0 if kind in OF_TOKENS else 1  # a sequence stays one
    lead = inputs[1].ndim - kept
    routed = router(*inputs)
    flat = router(*(part.reshape(-1, *part.shape[lead:]) for part in inputs))
    wanted = [part.reshape(-1, *part.shape[lead:]) for part in by_token(routed)]
    assert_close(kind, by_token(flat), wanted)
    assert_close(kind, flat.losses, routed.losses)


@over(*KINDS)
@few
@given(st.data())
def test_weights_sum_to_one_if_they_are_normalized(kind: Kind, data: st.DataObject) -> None:
    router, *inputs = data.draw(cases(kind))
    router.train(data.draw(st.booleans()))
    sums, valid = router(*spoilt(*inputs)).expert_weight.sum(-1), inputs[1].double()
    if kind is not ExpertChoiceRouter and getattr(router, "normalize", True):
        torch.testing.assert_close(sums, valid)
    elif kind is not AttentiveRouter:  # whose weights are any numbers
        most = router.top_k if kind is SigmoidRouter else 1
        assert ((sums >= 0) & (sums <= most * valid + 1e-12)).all()


@over(*KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_single_expert_gets_everything(kind: Kind, training: bool) -> None:
    options: dict[str, Any] = {"top_k": 1} if takes(kind, "top_k") else {}
    if kind in (SigmoidRouter, AttentiveRouter):  # whose weights are not shares of one otherwise
        options["normalize"] = True
    router = make(kind, 8, 1, **options).train(training)
    routed = router(*spoilt(torch.randn(4, 20, 8), TOKENS, CATEGORIES))
    assert_same(routed.expert_weight.detach(), TOKENS.unsqueeze(-1).float())
    if routed.expert_index is not None:
        assert_same(routed.expert_index, TOKENS.unsqueeze(-1).long() - 1)
    assert all(loss.isfinite() for loss in routed.losses.values())


@over(*KINDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
def test_values_and_gradients_are_finite(kind: Kind, training: bool, scale: float) -> None:
    """Of tokens that are zero, next to zero, and far away."""
    router = make(kind).train(training)
    inputs = spoilt(scale * torch.randn(4, 20, 8), TOKENS, CATEGORIES)
    outputs, gradients = seen(router, *inputs)
    assert all(part.isfinite().all() for part in (*outputs, *gradients))


# -- modes and precision ---------------------------------------------------------------------------


@over(*KINDS)
@few
@given(st.data())
def test_evaluation_is_deterministic_and_training_the_same_without_noise(
    kind: Kind, data: st.DataObject
) -> None:
    router, *inputs = data.draw(cases(kind))
    state = torch.get_rng_state()
    wanted = router(*inputs)
    assert_same(router(*inputs), wanted)
    if kind is not NoisyTopKRouter:
        assert_same(router.train()(*inputs), wanted)
    assert_same(torch.get_rng_state(), state)


@over(*KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mixed", [False, True])
def test_dtype_stays_and_scores_are_those_of_float32(
    kind: Kind, dtype: torch.dtype, mixed: bool
) -> None:
    """Whether the parameters have the dtype of the tokens or stay in float32."""
    wide = torch.promote_types(dtype, torch.float32)
    experts = 3000 if kind is HashRouter else 4  # more than half precision could count
    router = make(kind, 8, experts).eval().to(torch.float32 if mixed else dtype)
    x, valid, context = spoilt(torch.randn(4, 20, 8).to(dtype), TOKENS, CATEGORIES)
    like = make(kind, 8, experts).eval().to(wide)
    like.load_state_dict(router.state_dict())
    routed, wanted = router(x, valid, context), like(x.to(wide), valid, context)
    weight, want = routed.expert_weight, wanted.expert_weight.to(dtype)
    if kind is SlotRouter:  # a sum over slots that are rounded
        torch.testing.assert_close(weight, want)
    else:
        assert_same(weight, want)
    assert_same(routed[1:5], wanted[1:5])
    for got, part in zip(routed.slots or (), wanted.slots or (), strict=True):
        assert_same(got, part.to(dtype) if part.is_floating_point() else part)
    for loss in routed.losses.values():
        assert (loss.shape, loss.dtype) == ((), wide)


class Autocast(nn.Module):
    """A router called under autocast; gradients are taken outside, as torch advises."""

    def __init__(self, router: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.router, self.dtype = router, dtype

    def forward(self, *inputs: Tensor) -> Any:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.router(*inputs)


@over(*KINDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_router(kind: Kind, training: bool, dtype: torch.dtype) -> None:
    router = make(kind).train(training)
    inputs = spoilt(torch.randn(4, 20, 8), TOKENS, CATEGORIES)
    assert_same(seen(Autocast(router, dtype), *inputs), seen(router, *inputs))


# -- gradients and contract ------------------------------------------------------------------------


Manner = tuple[Kind, dict[str, Any]]

#: Routers with three experts.
MANNERS: tuple[Manner, ...] = (
    *((kind, {"top_k": top_k}) for kind in (TopKRouter, SigmoidRouter) for top_k in (1, 2, 3)),
    *((kind, {"normalize": False}) for kind in (TopKRouter, SigmoidRouter)),
    (NoisyTopKRouter, {}),
    *((SoftRouter, {"temperature": temperature}) for temperature in (1.0, 0.5)),
    *((SlotRouter, {"slots_per_expert": slots}) for slots in (1, 3)),
    *((ExpertChoiceRouter, {"capacity_factor": factor}) for factor in (1.0, 2.0)),
    *((HashRouter, options) for options in ({}, {"top_k": 2}, {"counts": range(80)})),
    *((AttentiveRouter, {"causal": causal}) for causal in (False, True)),
    (AttentiveRouter, {"normalize": True, "top_k": 2}),
)
#: Gradients of these are checked as well.
MORE_MANNERS: tuple[Manner, ...] = (
    *((kind, {"top_k": 1, "normalize": True}) for kind in (TopKRouter, SigmoidRouter)),
    *((kind, {"top_k": 3, "normalize": False}) for kind in (TopKRouter, SigmoidRouter)),
    *((NoisyTopKRouter, {"top_k": top_k}) for top_k in (1, 3)),
    (SlotRouter, {"slots_per_expert": 2}),
    (ExpertChoiceRouter, {"capacity_factor": 3.0}),
    (AttentiveRouter, {"causal": False, "normalize": True}),
)


def in_modes(*manners: Manner) -> pytest.MarkDecorator:
    """Each manner in training, and in evaluation where that differs."""
    return pytest.mark.parametrize(
        ("kind", "options", "training"),
        [
            pytest.param(kind, options, training, id=f"{kind.__name__}-{options}-{training}")
            for kind, options in manners
            for training in ((False, True) if kind is NoisyTopKRouter else (True,))
        ],
    )


@in_modes(*(manner for manner in (*MANNERS, *MORE_MANNERS) if manner[0] is not HashRouter))
def test_gradcheck(kind: Kind, options: dict[str, Any], training: bool) -> None:
    """Of every value and loss, for tokens and parameters."""
    router = biased(drawn(make(kind, 2, 3, **options))).train(training)
    x = with_nan(torch.randn(3, 3, 2, dtype=torch.float64), VALID).requires_grad_()

    def route(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        parts = pytree.tree_leaves(router(x, VALID))
        return tuple(part for part in parts if part is not None and part.requires_grad)

    assert torch.autograd.gradcheck(route, (x, *router.parameters()))


@in_modes(*MANNERS)
@pytest.mark.parametrize("padded", [False, True])
def test_contract(kind: Kind, options: dict[str, Any], training: bool, padded: bool) -> None:
    x, valid, context = torch.randn(4, 20, 8), None, CATEGORIES
    if padded:
        x, valid, context = spoilt(x, TOKENS, context)
    router = make(kind, 8, 3, **options).train(training)
    unused = () if training else ("noise_weight",)
    assert_block_contract(router, x, valid, keywords={"context": context}, unused=unused)


@over(*KINDS)
def test_exports_for_any_number_of_sequences(kind: Kind) -> None:
    router = make(kind).eval()
    inputs = spoilt(torch.randn(4, 20, 8), TOKENS, CATEGORIES)
    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(router, inputs, dynamic_shapes=[{0: batch}] * 3)
    other = spoilt(torch.randn(3, 20, 8), TOKENS[:3], CATEGORIES[1:])
    torch.testing.assert_close(program.module()(*other), router(*other))


@over(*KINDS)
def test_is_a_router(kind: Kind) -> None:
    assert isinstance(make(kind), Router)


@over(*(kind for kind in KINDS if kind is not HashRouter))
def test_context_is_ignored(kind: Kind) -> None:
    router, x = make(kind).eval(), torch.randn(4, 20, 8)
    assert_same(router(x, TOKENS, torch.randn(7)), router(x, TOKENS))


@over(*KINDS)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_parameters_and_buffers_have_the_wanted_dtype_and_device(kind: Kind, device: str) -> None:
    router = make(kind, **({"dtype": torch.float64} if takes(kind, "dtype") else {}), device=device)
    assert all(parameter.dtype == torch.float64 for parameter in router.parameters())
    state = [*router.parameters(), *router.buffers()]
    assert {part.device.type for part in state} == {device}


# -- errors and repr -------------------------------------------------------------------------------

SIZES: Mapping[str, float] = {
    "dim": 0,
    "num_categories": 0,
    "num_experts": -1,
    "top_k": 0,
    "slots_per_expert": 0,
    "temperature": 0.0,
    "capacity_factor": 0.0,
    "bias_rate": 0.0,
}


def complaint(message: str) -> str:
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in SIZES if takes(kind, name)]
)
def test_rejects_what_is_not_positive(kind: Kind, name: str) -> None:
    first = "num_categories" if kind is HashRouter else "dim"
    arguments = {first: 2, "num_experts": 4, name: SIZES[name]}
    with pytest.raises(ValueError, match=complaint(f"Expected {name} > 0, got {SIZES[name]}.")):
        kind(**arguments)


@over(*(kind for kind in KINDS if takes(kind, "top_k")))
def test_rejects_more_choices_than_experts(kind: Kind) -> None:
    message = complaint("Expected top_k <= num_experts = 4, got 5.")
    with pytest.raises(ValueError, match=message):
        make(kind, 2, 4, top_k=5)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((kind, (3, 4)) for kind in KINDS if kind is not HashRouter),
        *((kind, (2,)) for kind in OF_SEQUENCES),
    ],
)
def test_rejects_tokens_that_do_not_fit(kind: Kind, shape: tuple[int, ...]) -> None:
    wanted = "(..., L, 2)" if kind in OF_SEQUENCES else "(..., 2)"
    with pytest.raises(ValueError, match=complaint(f"Expected x of shape {wanted}, got {shape}.")):
        make(kind, 2)(torch.zeros(shape))


@over(*KINDS)
@pytest.mark.parametrize(
    ("valid", "message"),
    [
        (VALID[:2], "Expected valid of shape (3, 3), got (2, 3)."),
        (VALID.int(), "Expected valid of dtype torch.bool, got torch.int32."),
    ],
)
def test_rejects_masks_that_do_not_fit(kind: Kind, valid: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=complaint(message)):
        make(kind, 2)(torch.zeros(3, 3, 2), valid, torch.zeros(3, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("router", "text"),
    [
        (lambda: TopKRouter(2, 3, 1), "TopKRouter(dim=2, num_experts=3, top_k=1, normalize=False)"),
        (lambda: NoisyTopKRouter(2, 3), "NoisyTopKRouter(dim=2, num_experts=3, top_k=2)"),
        (
            lambda: SigmoidRouter(2, 3, 1, bias_rate=0.5),
            "SigmoidRouter(dim=2, num_experts=3, top_k=1, normalize=False, bias_rate=0.5)",
        ),
        (
            lambda: SoftRouter(2, 3, temperature=0.5),
            "SoftRouter(dim=2, num_experts=3, temperature=0.5)",
        ),
        (lambda: SlotRouter(2, 3, 4), "SlotRouter(dim=2, num_experts=3, slots_per_expert=4)"),
        (
            lambda: ExpertChoiceRouter(2, 3, 1.5),
            "ExpertChoiceRouter(dim=2, num_experts=3, capacity_factor=1.5)",
        ),
        (
            lambda: HashRouter(5, 4, 2, seed=7),
            "HashRouter(num_categories=5, num_experts=4, top_k=2, seed=7)",
        ),
        (
            lambda: AttentiveRouter(2, 3, causal=False),
            "AttentiveRouter(dim=2, num_experts=3, causal=False, normalize=False, top_k=None)",
        ),
    ],
)
def test_repr(router: Callable[[], nn.Module], text: str) -> None:
    assert str(router()) == text
