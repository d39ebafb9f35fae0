"""The block contract as one assertion, for mmfuse's blocks and for yours.

Each clause raises an :class:`AssertionError` that begins with the clause's name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["assert_block_contract"]

_OWN = ("_parameters", "_buffers", "_modules")


def assert_block_contract(
    block: nn.Module,
    *inputs: Any,
    keywords: Mapping[str, Any] | None = None,
    unused: Collection[str] = (),
    compile_backend: str = "aot_eager",
) -> None:
    r"""Assert what every block promises.

    1. *registered*: no tensor and no module hides in a plain attribute, list or dict, where neither
       an optimizer nor a checkpoint would find it, and no parameter is without a dimension, which
       :func:`torch.distributed.fsdp.fully_shard` could not cut;
    2. *pure*: ``forward`` changes no attribute, no parameter, no buffer and no input;
    3. *typed*: the output is a tensor, or a (named) tuple or dict of them, and finite;
    4. *trained*: every parameter gets a finite, non-zero gradient;
    5. *restored*: ``reset_parameters`` draws every parameter afresh, and ``load_state_dict``
       brings the outputs back;
    6. *compiled*: :func:`torch.compile` with ``fullgraph=True`` gives the eager numbers;
    7. *portable*: ``forward`` runs on the meta device, so no device is hard-coded;
    8. *float64*: float64 in, float64 out.

    Random draws inside ``forward`` start from the same seed in every clause. For a sparse router
    the inputs must be many enough that every expert is used.

    .. math::
        \mathrm{block}(\theta, x) = \mathrm{block}(\theta, x)
        \quad \text{whatever happened in between}

    Args:
        block: The block, in the mode (train or eval) in which it is to be tested, in float32.
        inputs: Its positional inputs, in float32; mappings, ``None`` and functions are allowed.
        keywords: Its keyword inputs.
        unused: Names of parameters that get no gradient by design.
        compile_backend: Backend of :func:`torch.compile`.

    Shape:
        - inputs: as the block takes them

    Raises:
        AssertionError: If a clause does not hold; the message begins with its name.

    Example:
        >>> from mmfuse import GatedFusion
        >>> assert_block_contract(GatedFusion(4, 2), torch.randn(3, 2, 4))
    """

    def call(target: Callable[..., Any], *, to: Any = None) -> Any:
        cast = (lambda tensor: tensor.clone()) if to is None else (lambda t: _cast(t, to))
        torch.manual_seed(0)
        return target(*_map(cast, list(inputs)), **_map(cast, dict(keywords or {})))

    with torch.random.fork_rng(devices=[]):
        _registered(block)
        _pure(block, inputs, dict(keywords or {}))
        expected = call(block)
        _typed(expected)
        _trained(block, call, unused)
        _restored(block, call, expected)
        _compiled(block, call, expected, compile_backend)
        _portable(block, call, expected)
        _float64(block, call)


def _registered(block: nn.Module) -> None:
    for name, module in block.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _OWN:
                continue
            where = f"{name}.{attribute}" if name else attribute
            for leaf in _leaves(value):
                hidden = isinstance(leaf, (Tensor, nn.Module))
                _demand(not hidden, "registered", f"a {type(leaf).__name__} hides in {where}")
    for name, parameter in block.named_parameters():
        _demand(parameter.ndim > 0, "registered", f"{name} has no dimension to be sharded along")


def _pure(block: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    attributes = {name: _attributes(module) for name, module in block.named_modules()}
    state = {name: value.detach().clone() for name, value in _state(block)}
    before = _map(Tensor.clone, [list(inputs), keywords])
    block(*inputs, **keywords)
    for name, module in block.named_modules():
        same = _attributes(module) == attributes[name]
        _demand(same, "pure", f"forward changed an attribute of {name or 'the block'}")
    for name, value in _state(block):
        same = name in state and _close(value, state[name], 0.0)
        _demand(same, "pure", f"forward changed {name}")
    _demand(_close([list(inputs), keywords], before, 0.0), "pure", "forward changed an input")


def _typed(output: Any) -> None:
    for leaf in _leaves(output):
        _demand(leaf is None or isinstance(leaf, Tensor), "typed", f"output holds a {type(leaf)}")
        if _is_float(leaf):
            _demand(bool(leaf.isfinite().all()), "typed", "output holds NaN or infinity")


def _trained(block: nn.Module, call: Callable[..., Any], unused: Collection[str]) -> None:
    block.zero_grad(set_to_none=True)
    terms = [leaf for leaf in _leaves(call(block)) if _is_float(leaf) and leaf.requires_grad]
    generator = torch.Generator().manual_seed(1)
    for term in terms:
        weights = torch.randn(term.shape, generator=generator, dtype=term.dtype).to(term.device)
        (term * weights).sum().backward(retain_graph=True)
    for name, parameter in block.named_parameters():
        if name in unused or not parameter.requires_grad:
            continue
        gradient = parameter.grad
        _demand(gradient is not None, "trained", f"{name} gets no gradient")
        assert gradient is not None
        _demand(bool(gradient.isfinite().all()), "trained", f"gradient of {name} is not finite")
        _demand(bool((gradient != 0).any()), "trained", f"gradient of {name} is zero")
    block.zero_grad(set_to_none=True)


def _restored(block: nn.Module, call: Callable[..., Any], expected: Any) -> None:
    state = copy.deepcopy(block.state_dict())
    fresh = copy.deepcopy(block)
    for name, module in fresh.named_modules():
        if not hasattr(module, "reset_parameters"):
            continue
        for parameter in module.parameters():
            nn.init.constant_(parameter, torch.nan)
        module.reset_parameters()
        for own, parameter in module.named_parameters(prefix=name):
            drawn = bool(parameter.isfinite().all())
            _demand(drawn, "restored", f"reset_parameters leaves {own}")
    fresh.load_state_dict(state)
    _demand(_close(call(fresh), expected, 0.0), "restored", "the outputs are not the same")


def _compiled(block: nn.Module, call: Callable[..., Any], expected: Any, backend: str) -> None:
    torch.compiler.reset()
    with _errors_of("compiled"):
        output = call(torch.compile(copy.deepcopy(block), fullgraph=True, backend=backend))
    _demand(_close(output, expected, 1e-5), "compiled", "not the eager numbers")


def _portable(block: nn.Module, call: Callable[..., Any], expected: Any) -> None:
    with _errors_of("portable"):
        output = call(copy.deepcopy(block).to("meta"), to="meta")
    for got, want in zip(_leaves(output), _leaves(expected), strict=True):
        if isinstance(want, Tensor):
            _demand(got.is_meta, "portable", f"an output is on {got.device} instead of meta")
            _demand(got.shape == want.shape, "portable", f"{got.shape} instead of {want.shape}")


def _float64(block: nn.Module, call: Callable[..., Any]) -> None:
    with _errors_of("float64"):
        output = call(copy.deepcopy(block).double(), to=torch.float64)
    for leaf in _leaves(output):
        if _is_float(leaf):
            _demand(leaf.dtype == torch.float64, "float64", f"an output is {leaf.dtype}")


@contextmanager
def _errors_of(clause: str) -> Iterator[None]:
    """Let an error of the block itself begin with the clause's name."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{clause}: {error}") from error


def _demand(holds: bool, clause: str, complaint: str) -> None:
    if not holds:
        raise AssertionError(f"{clause}: {complaint}")


def _state(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from block.named_parameters()
    yield from block.named_buffers()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes in a form that can be compared, by value where values compare."""
    return {
        name: value
        if isinstance(value, (bool, int, float, str, tuple, type(None)))
        else repr(value)
        for name, value in vars(module).items()
        if name not in _OWN
    }


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _cast(tensor: Tensor, to: Any) -> Tensor:
    """Move to a device, or to a dtype what is floating."""
    if isinstance(to, torch.dtype) and not tensor.is_floating_point():
        return tensor.clone()
    return tensor.to(to)


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(function, entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(function, entry) for entry in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, entry) for entry in value)
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _leaves(entry)
    elif isinstance(value, (list, tuple, set)):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _close(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two outputs hold tensors of the same shapes and, up to the tolerance, numbers."""
    for got, want in zip_longest(_leaves(a), _leaves(b)):
        if isinstance(got, Tensor) != isinstance(want, Tensor):
            return False
        if isinstance(want, Tensor) and not (
            got.shape == want.shape
            and got.dtype == want.dtype
            and torch.allclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
        ):
            return False
    return True
