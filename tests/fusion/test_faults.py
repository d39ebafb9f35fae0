"""Faults that published fusion code has, as checks that every fusion of ours passes.

Each check is also run on a small faulty operator that is planted here, and must catch it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mmfuse.fusion import available, build
from mmfuse.types import FusionOutput
from tests.outcomes import drawn, outcome

SEQUENCES = available("sequences")
#: Their weights are shares of one: of what is present, too.
SHARING = ("mean", "attention_pooling", "dynamic")
each_fusion = pytest.mark.parametrize("name", available())

ROUNDING = 1e-10  # a Fourier transform leaves some everywhere
B, L, M, D = 2, 3, 3, 4  # as many places as modalities: a mixed-up axis raises no error
PRESENT = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])


def made(name: str) -> nn.Module:
    return drawn(build(name, D, M)).eval()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Streams (B, L, M, D), and a mask with something in every row."""
    return torch.randn(B, L, M, D, dtype=dtype), PRESENT.expand(B, L, M)


class Planted(nn.Module):
    """The start of a faulty operator: it weighs modalities, and scores them rightly."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(M * D, M)

    def weights(self, x: Tensor) -> Tensor:  # (..., M, D) -> (..., M)
        return self.score(x.flatten(-2)).softmax(-1)

    def forward(
        self, x: Tensor, present: Tensor | None = None, context: Tensor | None = None
    ) -> FusionOutput:
        weights = self.weights(x)
        return FusionOutput((weights.unsqueeze(-1) * x).sum(-2), weights, {})


# -- untrained factors -----------------------------------------------------------------------------


def leaves_under(output: Tensor) -> set[Tensor]:
    """Every tensor that the gradient arrives at, wherever it is kept."""
    found, seen, ahead = set(), set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        ahead += [following for following, _ in node.next_functions]
    return found


def check_training(fusion: nn.Module) -> None:
    x, _ = inputs()
    x.requires_grad_()
    fusion.train()
    before = {name: weight.detach().clone() for name, weight in fusion.named_parameters()}
    fused = fusion(x).fused
    stray = leaves_under(fused) - {x, *fusion.parameters()}
    assert not stray, f"{len(stray)} tensors get gradients that no optimizer sees"
    if not before:
        return  # there is nothing to train
    optimizer = torch.optim.SGD(fusion.parameters(), lr=1.0)
    (fused * torch.randn_like(fused)).sum().backward()
    optimizer.step()
    after = fusion.state_dict()  # what a checkpoint holds
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still, f"a step of the optimizer leaves {still}"


@each_fusion
def test_untrained_factors(name: str) -> None:
    """Weights in a plain list take part in the computation, but no optimizer moves them, and no
    checkpoint holds them. Every leaf that the gradient reaches must be a parameter, and every
    parameter must move in one step."""
    check_training(made(name))


class FactorsInAList(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.factors = [torch.randn(D, D, dtype=torch.float64, requires_grad=True)]

    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        return super().forward(x @ self.factors[0])


class FactorsInAClosure(Planted):
    def __init__(self) -> None:
        super().__init__()
        factor = torch.randn(D, D, dtype=torch.float64, requires_grad=True)
        self.maps = lambda x: x @ factor

    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        return super().forward(self.maps(x))


class UnusedFactors(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(D, D))


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (FactorsInAList, "1 tensors get gradients that no optimizer sees"),
        (FactorsInAClosure, "1 tensors get gradients that no optimizer sees"),
        (UnusedFactors, r"a step of the optimizer leaves \['factors'\]"),
    ],
)
def test_untrained_factors_are_caught(planted: type[nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_training(planted().double())


# -- time taken for modality -----------------------------------------------------------------------


def check_axes(fusion: nn.Module, *, causal: bool = False) -> None:
    x, _ = inputs()
    x.requires_grad_()
    fused = fusion(x).fused
    reached = torch.zeros(M, dtype=torch.bool)
    for b in range(B):
        for t in range(L):
            draw = torch.randn(D, dtype=torch.float64)
            (of_x,) = torch.autograd.grad(fused[b, t] @ draw, x, retain_graph=True)
            touched = (of_x.abs() > ROUNDING).any(-1)  # (B, L, M)
            reached |= touched[b, t]
            allowed = torch.zeros(B, L, dtype=torch.bool)
            allowed[b, : t + 1] = causal
            allowed[b, t] = True
            assert not touched[~allowed].any(), f"place {(b, t)} reads other places"
    assert reached.all(), "a modality is not read at its own place"


@each_fusion
def test_time_taken_for_modality(name: str) -> None:
    """Where there are as many positions as modalities, an index of the wrong axis raises no error,
    and positions are mixed. A row fusion must read its own position only, a sequence fusion its own
    and earlier ones of its own sequence, and all modalities of its own."""
    check_axes(made(name), causal=name in SEQUENCES)


class TimeForModality(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        weights = self.weights(x)  # (B, L, M)
        terms = [weights[:, m].unsqueeze(-1) * x[..., m, :] for m in range(M)]
        return FusionOutput(torch.stack(terms).sum(0), weights, {})


class ModalityForTime(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        return super().forward(x.transpose(-2, -3))


@pytest.mark.parametrize("planted", [TimeForModality, ModalityForTime])
@pytest.mark.parametrize("causal", [False, True])
def test_time_taken_for_modality_is_caught(planted: type[nn.Module], causal: bool) -> None:
    with pytest.raises(AssertionError, match=r"place \(0, .\) reads other places"):
        check_axes(planted().double(), causal=causal)


class FirstOnly(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        return FusionOutput(x[..., 0, :].tanh(), None, {})


def test_a_modality_never_read_is_caught() -> None:
    with pytest.raises(AssertionError, match="not read at its own place"):
        check_axes(FirstOnly())


# -- too few or too many modalities ----------------------------------------------------------------


def check_counts(fusion: Callable[..., Any]) -> None:
    for count in (0, 1, M - 1, M + 1, 2 * M):
        x = torch.randn(B, L, count, D, dtype=torch.float64)
        for present in (None, torch.ones(B, L, count, dtype=torch.bool)):
            try:
                fusion(x, present)
            except ValueError as error:
                message = str(error)
            else:
                raise AssertionError(f"{count} modalities pass for {M}")
            wanted = f"Expected x of shape (..., {M}, {D}), got ({B}, {L}, {count}, {D})."
            assert message == wanted


@each_fusion
def test_wrong_number_of_modalities(name: str) -> None:
    """Pairing modalities with weights stops at the shorter list, and one modality broadcasts to
    any number: the result looks well and is wrong. Any other number than that of the constructor
    must be an error that says both."""
    check_counts(made(name))


class ShorterListWins(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(D, D) for _ in range(M))

    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        pairs = zip(self.maps, x.unbind(-2), strict=False)
        return FusionOutput(sum((f(one) for f, one in pairs), x.new_zeros(D)), None, {})


class OneBroadcasts(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        if x.shape[-2] not in (1, M):
            raise ValueError(f"Expected x of shape (..., {M}, {D}), got {tuple(x.shape)}.")
        return super().forward(x.expand(*x.shape[:-2], M, D))


@pytest.mark.parametrize(("planted", "count"), [(ShorterListWins, 0), (OneBroadcasts, 1)])
def test_wrong_number_of_modalities_is_caught(planted: type[nn.Module], count: int) -> None:
    with pytest.raises(AssertionError, match=f"{count} modalities pass for 3"):
        check_counts(planted().double())


# -- absent modalities that take weight ------------------------------------------------------------


def check_absence(fusion: nn.Module) -> None:
    x, present = inputs()
    wanted = None
    for fill in (0.0, 1.0, -1e300, torch.inf, torch.nan):
        got = outcome(fusion, x.masked_fill(~present.unsqueeze(-1), fill), present)
        wanted = got if wanted is None else wanted
        for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True):
            assert torch.equal(one, other), f"absent values of {fill} reach the result"
    weights, everything = fusion(x, present).weights, fusion(x).weights
    if weights is None:
        return
    assert (weights[~present] == 0).all(), "an absent modality takes weight"
    ones = weights.new_ones(B, L)
    if torch.allclose(everything.sum(-1), ones):
        assert torch.allclose(weights.sum(-1), ones), "the present do not share all the weight"


@each_fusion
def test_absent_modality_takes_weight(name: str) -> None:
    """A stand-in of zeros for an absent modality is scored like any other, so that the present ones
    lose weight to it. Whatever stands there must change nothing, and where weights are shares, the
    present ones must share all."""
    check_absence(made(name))


@pytest.mark.parametrize("name", SHARING)
def test_weights_that_are_shares_sum_to_one(name: str) -> None:
    """So that the part of the check above that is about shares is not empty."""
    x, present = inputs()
    ones = torch.ones(B, L, dtype=torch.float64)
    for mask in (None, present):
        torch.testing.assert_close(made(name)(x, mask).weights.sum(-1), ones)


class ZerosForAbsent(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        if present is not None:
            x = x.masked_fill(~present.unsqueeze(-1), 0)
        return super().forward(x)


class MaskAfterSoftmax(ZerosForAbsent):
    def weights(self, x: Tensor) -> Tensor:
        return super().weights(x) * (x != 0).any(-1)


class MaskByProduct(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        return super().forward(x if present is None else x * present.unsqueeze(-1))


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (Planted, "absent values of 1.0 reach the result"),
        (MaskByProduct, "absent values of inf reach the result"),
        (ZerosForAbsent, "an absent modality takes weight"),
        (MaskAfterSoftmax, "the present do not share all the weight"),
    ],
)
def test_absent_modality_that_takes_weight_is_caught(
    planted: type[nn.Module], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_absence(planted().double())


# -- state kept during forward ---------------------------------------------------------------------


def check_memory(fusion: nn.Module) -> None:
    """Nothing that went in or came out is alive when its owner has let it go."""
    fusion.train()
    for backward in (False, True):
        x, present = inputs()
        present = present.clone()
        x.requires_grad_(backward)
        output = fusion(x, present)
        tensors = [leaf for leaf in pytree.tree_leaves(output) if leaf is not None]
        if backward:
            tensors[0].sum().backward()
        watched = [weakref.ref(tensor) for tensor in (x, present, *tensors)]
        del x, present, output, tensors
        if any(reference() is not None for reference in watched):
            gc.collect()  # a cycle is no memory
        kept = sum(reference() is not None for reference in watched)
        assert kept == 0, f"{kept} tensors of a forward pass are kept"


@each_fusion
def test_state_kept_during_forward(name: str) -> None:
    """Weights or representations that forward leaves on the module, or in a list beside it, are
    stale in the next call, break copies, and hold a whole graph in memory."""
    check_memory(made(name))


class KeepsItsWeights(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        output = super().forward(x)
        self.last = output.weights
        return output


COLLECTED: list[Tensor] = []


class CollectsBesideItself(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        COLLECTED.append(x)
        return super().forward(x)


@pytest.mark.parametrize("planted", [KeepsItsWeights, CollectsBesideItself])
def test_state_kept_during_forward_is_caught(planted: type[nn.Module]) -> None:
    with pytest.raises(AssertionError, match=r"[12] tensors of a forward pass are kept"):
        check_memory(planted().double())
    COLLECTED.clear()


# -- hard-coded device -----------------------------------------------------------------------------


class Devices(TorchDispatchMode):
    """Remembers where every tensor lies that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves(output)
        self.seen |= {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        return output


def check_device(fusion: nn.Module) -> None:
    x, present = inputs()
    fusion = fusion.train().to("meta")
    with Devices() as devices:
        fusion(x.to("meta"), present.to("meta"))
    assert devices.seen == {"meta"}, f"forward makes tensors on {sorted(devices.seen)}"


@each_fusion
def test_hard_coded_device(name: str) -> None:
    """A tensor that forward makes on a device of its own choice fails on every other, or, if it is
    a single number, passes and waits for the transfer. On a device that computes nothing, all that
    forward makes must be there."""
    check_device(made(name))


class NumberOnTheCPU(Planted):
    def weights(self, x: Tensor) -> Tensor:
        return super().weights(x) * torch.tensor(2.0, device="cpu").square()


class OnesOnTheCPU(Planted):
    def weights(self, x: Tensor) -> Tensor:
        return super().weights(x) * torch.ones(M, device="cpu")


def test_hard_coded_device_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"makes tensors on \['cpu', 'meta'\]"):
        check_device(NumberOnTheCPU().double())
    with pytest.raises((RuntimeError, NotImplementedError), match="device"):
        check_device(OnesOnTheCPU().double())


# -- output that depends on the other rows ---------------------------------------------------------


def check_rows(fusion: nn.Module) -> None:
    """In training, too, where statistics of the batch would be taken; dropout is off."""
    fusion.train()
    for part in fusion.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    x, present = inputs()

    def first(x: Tensor) -> list[Tensor]:
        torch.manual_seed(1)  # of the noise, which routers draw
        output = fusion(x, present)
        return [part[0] for part in output[:2] if part is not None]

    wanted = first(x)
    for others in (torch.zeros, torch.randn):
        changed = torch.cat([x[:1], 1e3 * others(B - 1, L, M, D, dtype=x.dtype)])
        same = all(map(torch.allclose, first(changed), wanted))
        assert same, "a row's result depends on the other rows"


@each_fusion
def test_result_depends_on_the_other_rows(name: str) -> None:
    """Statistics of the batch, or a softmax along it, make a row's result depend on who is beside
    it: numbers change with the batch size, and rows of one user leak into another's."""
    check_rows(made(name))


class BatchStatistics(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)

    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        return super().forward(self.norm(x.flatten(0, -2)).unflatten(0, x.shape[:-1]))


class SoftmaxAlongTheBatch(Planted):
    def weights(self, x: Tensor) -> Tensor:
        return self.score(x.flatten(-2)).softmax(0)


@pytest.mark.parametrize("planted", [BatchStatistics, SoftmaxAlongTheBatch])
def test_result_that_depends_on_the_other_rows_is_caught(planted: type[nn.Module]) -> None:
    with pytest.raises(AssertionError, match="depends on the other rows"):
        check_rows(planted().double())


# -- output in another dtype -----------------------------------------------------------------------


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_dtype(fusion: nn.Module, dtype: torch.dtype, default: torch.dtype) -> None:
    fusion = fusion.train().to(dtype)
    x, present = inputs(dtype)
    with default_dtype(default):
        for mask in (None, present):
            fused, weights, _ = fusion(x, mask)
            kinds = {part.dtype for part in (fused, weights) if part is not None}
            assert kinds == {dtype}, f"{dtype} becomes {kinds}"


@each_fusion
@pytest.mark.parametrize(
    ("dtype", "default"),
    [
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float32),
    ],
)
def test_output_in_another_dtype(name: str, dtype: torch.dtype, default: torch.dtype) -> None:
    """A constant of torch's default type, a column of ones say, makes the result wider than the
    input; so does a softmax that is computed in float32 and not cast back. Fused vectors and
    weights must be of the input's type, whatever the default is."""
    check_dtype(made(name), dtype, default)


class ColumnOfOnes(Planted):
    def forward(self, x: Tensor, present: Tensor | None = None) -> FusionOutput:
        return FusionOutput((x * torch.ones(D)).sum(-2), None, {})


class WideSoftmax(Planted):
    def weights(self, x: Tensor) -> Tensor:
        return self.score(x.flatten(-2)).float().softmax(-1)


@pytest.mark.parametrize("planted", [ColumnOfOnes, WideSoftmax])
def test_output_in_another_dtype_is_caught(planted: type[nn.Module]) -> None:
    with pytest.raises(AssertionError, match=r"torch\.bfloat16 becomes .*torch\.float32"):
        check_dtype(planted(), torch.bfloat16, torch.float32)


def test_a_constant_of_the_default_dtype_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"torch\.float32 becomes \{torch\.float64\}"):
        check_dtype(ColumnOfOnes(), torch.float32, torch.float64)
