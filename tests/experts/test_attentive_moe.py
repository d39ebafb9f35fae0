"""Tests for mmfuse.experts.attentive_moe."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import AttentiveMoE, Experts
from mmfuse.testing import assert_block_contract
from tests.outcomes import assert_same, drawn, outcome, places, static_shapes
from tests.strategies import Sequences, sequences, sizes, with_nan

few = settings(max_examples=15)
small = st.integers(1, 3)
histories = sequences(num_modalities=small, dim=small)
options = st.fixed_dictionaries(
    {
        "router": st.sampled_from(["attentive", "linear"]),
        "reads": st.sampled_from(["all", "own"]),
        **{name: st.booleans() for name in ("causal", "normalize", "shared_experts")},
    }
)

Mixture = tuple[AttentiveMoE, Sequences]


@st.composite
def mixtures(draw: st.DrawFn, **fixed: Any) -> Mixture:
    case, arguments = draw(histories), draw(options) | fixed
    *_, num_modalities, dim = case.x.shape
    experts, hidden = draw(small), draw(sizes)
    return drawn(AttentiveMoE(dim, num_modalities, experts, hidden_dim=hidden, **arguments)), case


# -- reference: the formula, read aloud ------------------------------------------------------------


def naive_expert(bank: Experts, k: int, x: Tensor) -> Tensor:
    u = x @ bank.in_weight[k] + bank.in_bias[k]
    gelu = u * (1 + torch.erf(u / math.sqrt(2))) / 2
    return gelu @ bank.out_weight[k] + bank.out_bias[k]


def naive_mixture(mixture: AttentiveMoE, case: Sequences) -> Tensor:
    """Eq. 5: loop over positions, modalities and experts; what is not seen enters as zeros."""
    output = torch.zeros_like(case.x)
    seen = case.present & case.valid.unsqueeze(-1)
    banks = list(mixture.experts) * (mixture.num_modalities if mixture.shared_experts else 1)
    for m, (router, bank) in enumerate(zip(mixture.routers, banks, strict=True)):
        gate = router(case.x[..., m, :], seen[..., m]).expert_weight
        for place in places(case.valid.shape):
            if seen[place][m]:
                streams = [e if seen[place][n] else 0 * e for n, e in enumerate(case.x[place])]
                read = streams[m] if mixture.reads == "own" else torch.cat(streams)
                for k in range(bank.num_experts):
                    output[place][m] += gate[place][k] * naive_expert(bank, k, read)
    return output


@settings(max_examples=30)
@given(mixtures())
def test_matches_naive(mixture_and_case: Mixture) -> None:
    mixture, case = mixture_and_case
    output, router, losses = mixture(case.x, case.present, valid=case.valid)
    torch.testing.assert_close(output, naive_mixture(mixture, case))
    seen = case.present & case.valid.unsqueeze(-1)
    gates = [
        route(case.x[..., m, :], seen[..., m]).expert_weight
        for m, route in enumerate(mixture.routers)
    ]
    torch.testing.assert_close(router.expert_weight, torch.stack(gates, -2))
    assert losses == router.losses == {}


# -- properties ------------------------------------------------------------------------------------


@few
@given(mixtures())
def test_nan_where_nothing_is_seen_changes_nothing(mixture_and_case: Mixture) -> None:
    mixture, (x, present, valid) = mixture_and_case
    spoilt = with_nan(x, present & valid.unsqueeze(-1))
    clean = outcome(mixture, x, present, valid=valid)
    assert_same(outcome(mixture, spoilt, present, valid=valid), clean)
    with static_shapes():
        torch.testing.assert_close(outcome(mixture, spoilt, present, valid=valid), clean)


@few
@given(mixtures(causal=True))
def test_no_position_sees_a_later_one(mixture_and_case: Mixture) -> None:
    mixture, (x, present, valid) = mixture_and_case
    length = valid.shape[-1]
    output = mixture(x, present, valid=valid).output
    for last in range(length):
        later = (torch.arange(length) > last).reshape(-1, 1, 1)
        changed = torch.where(later, torch.randn_like(x), x)
        other = mixture(changed, present, valid=valid).output
        torch.testing.assert_close(other[..., : last + 1, :, :], output[..., : last + 1, :, :])


@few
@given(mixtures(), sizes)
def test_padding_is_as_if_it_were_not_there(mixture_and_case: Mixture, padding: int) -> None:
    """On the left as on the right."""
    mixture, (x, present, valid) = mixture_and_case
    alone = mixture(x, present).output
    length = valid.shape[-1]
    for first in (0, padding):
        place = slice(first, first + length)
        padded = torch.full(
            (*valid.shape[:-1], length + padding, *x.shape[-2:]), torch.nan
        ).double()
        there = torch.ones(padded.shape[:-1], dtype=torch.bool)
        real = torch.zeros(padded.shape[:-2], dtype=torch.bool)
        padded[..., place, :, :], there[..., place, :], real[..., place] = x, present, True
        output = mixture(padded, there, valid=real).output
        torch.testing.assert_close(output[..., place, :, :], alone)
        assert not output[~real].any()


@few
@given(mixtures())
def test_an_absent_modality_is_a_zero_modality_to_the_others(mixture_and_case: Mixture) -> None:
    mixture, (x, _, valid) = mixture_and_case
    there = (torch.arange(x.shape[-2]) > 0).expand(x.shape[:-1])
    masked = mixture(x, there, valid=valid).output
    zeroed = mixture(x * there.unsqueeze(-1), None, valid=valid).output
    torch.testing.assert_close(masked[..., 1:, :], zeroed[..., 1:, :])
    assert not masked[..., 0, :].any()


@few
@given(mixtures())
def test_permuting_modalities_permutes_streams(mixture_and_case: Mixture) -> None:
    mixture, (x, present, valid) = mixture_and_case
    order, before = torch.randperm(x.shape[-2]), mixture(x, present, valid=valid)
    mixture.routers = torch.nn.ModuleList(mixture.routers[m] for m in order)
    if not mixture.shared_experts:
        mixture.experts = torch.nn.ModuleList(mixture.experts[m] for m in order)
    for bank in mixture.experts if mixture.reads == "all" else ():  # in their new order
        blocks = bank.in_weight.unflatten(1, (x.shape[-2], x.shape[-1]))
        bank.in_weight = torch.nn.Parameter(blocks[:, order].flatten(1, 2))
    after = mixture(x[..., order, :], present[..., order], valid=valid)
    torch.testing.assert_close(after.output, before.output[..., order, :])
    torch.testing.assert_close(
        after.router.expert_weight, before.router.expert_weight[..., order, :]
    )


@few
@given(mixtures(shared_experts=True, router="attentive"))
def test_shared_experts_are_separate_ones_with_equal_weights(mixture_and_case: Mixture) -> None:
    shared, (x, present, valid) = mixture_and_case
    router, bank = shared.routers[0], shared.experts[0]
    separate = AttentiveMoE(
        shared.dim,
        shared.num_modalities,
        bank.num_experts,
        hidden_dim=bank.hidden_dim,
        router="attentive",
        reads=shared.reads,
        causal=router.causal,
        normalize=router.normalize,
    ).double()
    separate.routers.load_state_dict(shared.routers.state_dict())
    for own in separate.experts:
        own.load_state_dict(bank.state_dict())
    torch.testing.assert_close(separate(x, present, valid=valid), shared(x, present, valid=valid))


@few
@given(mixtures())
def test_none_means_everything_is_seen(mixture_and_case: Mixture) -> None:
    mixture, (x, present, valid) = mixture_and_case
    every, all_valid = torch.ones_like(present), torch.ones_like(valid)
    torch.testing.assert_close(
        outcome(mixture, x), outcome(mixture, x, every, torch.zeros(1), valid=all_valid)
    )


@few
@given(mixtures(router="linear"))
def test_a_linear_router_is_a_softmax_at_each_position(mixture_and_case: Mixture) -> None:
    mixture, (x, present, valid) = mixture_and_case
    gates = mixture(x, present, valid=valid).router.expert_weight
    for place in places(valid.shape):
        for m, router in enumerate(mixture.routers):
            power = (router.weight @ x[place][m]).exp()
            seen = present[place][m] & valid[place]
            torch.testing.assert_close(gates[place][m], seen * (power / power.sum()).nan_to_num())


@few
@given(mixtures(reads="own", shared_experts=False))
def test_who_reads_their_own_stream_never_sees_another(mixture_and_case: Mixture) -> None:
    mixture, (x, present, valid) = mixture_and_case
    before = mixture(x, present, valid=valid).output
    other = (torch.arange(x.shape[-2]) > 0).unsqueeze(-1)
    after = mixture(torch.where(other, torch.randn_like(x), x), present, valid=valid).output
    assert_same(after[..., 0, :], before[..., 0, :])


@few
@given(mixtures(router="attentive", reads="all", normalize=False), st.data())
def test_a_few_experts_are_all_experts_with_the_other_weights_zero(
    mixture_and_case: Mixture, data: st.DataObject
) -> None:
    mixture, (x, present, valid) = mixture_and_case
    num_experts = mixture.experts[0].num_experts
    top_k = data.draw(st.integers(1, num_experts))
    seen = present & valid.unsqueeze(-1)
    banks = list(mixture.experts) * (mixture.num_modalities if mixture.shared_experts else 1)
    joint = (x * seen.unsqueeze(-1)).flatten(-2)
    gates = mixture(x, present, valid=valid).router.expert_weight
    kept = gates.abs().sort(-1, descending=True).values[..., top_k - 1 : top_k]
    gates = torch.where(gates.abs() >= kept, gates, 0.0)
    streams = [bank(joint, gates[..., m, :]) for m, bank in enumerate(banks)]
    for router in mixture.routers:
        router.top_k = top_k
    output, routed, _ = mixture(x, present, valid=valid)
    torch.testing.assert_close(output, torch.stack(streams, -2) * seen.unsqueeze(-1))
    assert routed.expert_index.shape == (*seen.shape, top_k)
    assert_same(routed.expert_index < 0, ~seen.unsqueeze(-1).expand(*seen.shape, top_k))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shared_experts": True, "normalize": True},
        {"router": "linear", "reads": "own"},
        {"router": "linear", "reads": "own", "shared_experts": True},
    ],
)
def test_choosing_all_experts_is_choosing_none(arguments: dict[str, Any]) -> None:
    dense = AttentiveMoE(4, 2, 3, **arguments)
    sparse = AttentiveMoE(4, 2, 3, top_k=3, **arguments)
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(2, 3, 2, 4)
    for masks in ({}, {"present": PRESENT, "valid": VALID}):
        wanted = dense(x, **masks).output
        torch.testing.assert_close(sparse(x, **masks).output, wanted, rtol=1e-4, atol=1e-5)


def test_experts_compute_at_valid_positions_only() -> None:
    mixture, rows = AttentiveMoE(2, 3), []
    mixture.experts[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    mixture(torch.randn(2, 4, 3, 2), valid=torch.tensor([[True] * 4, [False, False, True, False]]))
    assert rows == [5]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_nothing_to_see_gives_zeros(shape: tuple[int, int]) -> None:
    mixture, x = AttentiveMoE(2, 3), torch.zeros(*shape, 3, 2)
    for arguments in ({"valid": x[..., 0, 0] > 0}, {"present": x[..., 0] > 0}):
        outputs, gradients = outcome(mixture, with_nan(x, x > 0), **arguments)
        assert not any(part.any() for part in (*outputs, *gradients))


def test_arguments_reach_the_parts() -> None:
    mixture = AttentiveMoE(
        3, 2, 5, causal=False, normalize=True, dtype=torch.float64, device="meta"
    )
    for router, bank in zip(mixture.routers, mixture.experts, strict=True):
        assert (router.num_experts, router.causal, router.normalize) == (5, False, True)
        assert (bank.num_experts, bank.dim, bank.hidden_dim, bank.out_dim) == (5, 6, 12, 3)
    assert {(p.dtype, p.is_meta) for p in mixture.parameters()} == {(torch.float64, True)}
    assert AttentiveMoE(3, 2, hidden_dim=7).experts[1].hidden_dim == 7
    own = AttentiveMoE(3, 2, router="linear", reads="own", dtype=torch.float64, device="meta")
    assert (own.experts[1].dim, own.experts[1].hidden_dim) == (3, 12)
    assert {(p.dtype, p.is_meta) for p in own.parameters()} == {(torch.float64, True)}


def test_reset_draws_everything_afresh() -> None:
    mixture = AttentiveMoE(2, 3)
    before = {name: value.clone() for name, value in mixture.named_parameters()}
    mixture.reset_parameters()
    same = {name for name, value in mixture.named_parameters() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.endswith("bias")}


def test_bfloat16_stays_bfloat16() -> None:
    mixture, x = AttentiveMoE(3, 2), torch.randn(2, 5, 2, 3)
    wanted = mixture(x).output.bfloat16()
    output = mixture.bfloat16()(x.bfloat16(), valid=torch.ones(2, 5, dtype=torch.bool)).output
    torch.testing.assert_close(output, wanted, rtol=0.1, atol=0.05)


# -- gradients and contract ------------------------------------------------------------------------

VALID = torch.tensor([[False, True, True], [True, True, False]])
PRESENT = torch.tensor(
    [[[True, True], [True, False], [False, True]], [[False, False], [True, True], [True, True]]]
)


@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck(shared: bool) -> None:
    mixture = drawn(AttentiveMoE(1, 2, 2, hidden_dim=1, shared_experts=shared))
    x = torch.randn(2, 3, 2, 1, dtype=torch.float64, requires_grad=True)
    inputs = (x, *mixture.parameters())
    assert torch.autograd.gradcheck(
        lambda x, *_: mixture(x, PRESENT, valid=VALID).output, inputs, fast_mode=True
    )


@pytest.mark.parametrize(
    ("arguments", "present", "valid"),
    [
        ({}, None, None),
        ({"shared_experts": True, "normalize": True, "causal": False}, PRESENT, VALID),
        ({"top_k": 2}, PRESENT, VALID),
        ({"top_k": 1, "shared_experts": True}, None, VALID),
        ({"router": "linear", "reads": "own"}, PRESENT, VALID),
        ({"router": "linear", "reads": "own", "shared_experts": True, "top_k": 2}, PRESENT, VALID),
    ],
)
def test_contract(arguments: dict[str, Any], present: Tensor | None, valid: Tensor | None) -> None:
    mixture = AttentiveMoE(4, 2, 3, **arguments)
    assert_block_contract(mixture, torch.randn(2, 3, 2, 4), present, keywords={"valid": valid})


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dim", "num_modalities", "num_experts", "hidden_dim"])
def test_rejects_bad_hyperparameters(name: str) -> None:
    with pytest.raises(ValueError, match=rf"Expected {name} > 0, got 0\."):
        AttentiveMoE(**{"dim": 2, "num_modalities": 3, name: 0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"router": "x"}, r"Expected router to be one of 'attentive', 'linear', got 'x'\."),
        ({"reads": "x"}, r"Expected reads to be one of 'all', 'own', got 'x'\."),
        ({"top_k": 5, "router": "linear"}, r"Expected top_k <= num_experts = 4, got 5\."),
    ],
)
def test_rejects_words_that_are_no_choice(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentiveMoE(2, 3, **arguments)


@pytest.mark.parametrize(
    ("x", "masks", "message"),
    [
        ((3, 3, 4), {}, r"Expected x of shape \(\.\.\., L, 2, 4\), got \(3, 3, 4\)\."),
        ((2, 4), {}, r"Expected x of shape \(\.\.\., L, 2, 4\), got \(2, 4\)\."),
        ((2, 3, 2, 4), {"present": VALID}, r"present of shape \(2, 3, 2\), got \(2, 3\)\."),
        ((2, 3, 2, 4), {"valid": PRESENT}, r"valid of shape \(2, 3\), got \(2, 3, 2\)\."),
        ((2, 3, 2, 4), {"present": PRESENT.int()}, r"present of dtype torch\.bool, got torch\.int"),
        ((2, 3, 2, 4), {"valid": VALID.int()}, r"valid of dtype torch\.bool, got torch\.int32\."),
    ],
)
def test_rejects_inputs_that_do_not_fit(
    x: tuple[int, ...], masks: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AttentiveMoE(4, 2)(torch.zeros(x), **masks)


def test_repr() -> None:
    text = str(AttentiveMoE(2, 3, 4, shared_experts=True))
    assert text.startswith("AttentiveMoE(\n  num_modalities=3, reads='all', shared_experts=True\n")
    assert "(0-2): 3 x AttentiveRouter(dim=2, num_experts=4, causal=True, normalize=False, " in text
    assert "(0): Experts(num_experts=4, dim=6, hidden_dim=8, out_dim=2" in text
