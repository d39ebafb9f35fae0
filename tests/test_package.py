"""Tests for mmfuse: its public names, what they say about themselves, and what they promise."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

import mmfuse
from mmfuse import (
    AttentiveRouter,
    CategoryGuidedGate,
    CategoryGuidedMoE,
    ConcatFusion,
    ExpertChoiceRouter,
    GatedFusion,
    HashRouter,
    NoisyTopKRouter,
    SigmoidRouter,
    SlotRouter,
    SoftmaxGate,
    SoftRouter,
    SumFusion,
    TopKRouter,
    WeightedFusion,
    types,
)
from mmfuse.fusion import InteractiveMixture, available, build
from mmfuse.types import Enrichment, Fusion, Gate, Router, SequenceFusion

# -- names ----------------------------------------------------------------------------------------


def modules() -> list[str]:
    """Every public module of the library."""
    found = pkgutil.walk_packages(mmfuse.__path__, "mmfuse.")
    return ["mmfuse", *(info.name for info in found if "._" not in info.name)]


@pytest.mark.parametrize("module", modules())
def test_every_listed_name_exists(module):
    listed = importlib.import_module(module).__all__
    assert len(listed) == len(set(listed))
    for name in listed:
        assert hasattr(importlib.import_module(module), name)


def test_star_import_brings_what_is_listed():
    names: dict[str, Any] = {}
    exec("from mmfuse import *", names)
    assert set(names) - {"__builtins__"} == set(mmfuse.__all__)


def test_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", mmfuse.__version__)


# -- documentation --------------------------------------------------------------------------------


def documented() -> dict[str, Any]:
    """Public classes and functions; types are described line by line in their own module."""
    found = {
        name: getattr(importlib.import_module(module), name)
        for module in modules()
        if module != "mmfuse.types"
        for name in importlib.import_module(module).__all__
    }
    return {
        name: thing
        for name, thing in found.items()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ != "mmfuse.types"
    }


def missing_parts(docstring: str) -> set[str]:
    """What a page of the manual needs and this docstring does not have."""
    parts = {
        "summary": r"\A\S.*[.:)]$",
        "formula": r"^\.\. math::$",
        "arguments": r"^Args:$",
        "shapes": r"^Shape:$",
        "result": r"^Returns:$|^    - .*\b(output|fused|weights)\b",
        "errors": r"^Raises:$",
        "example": r"^Example:\n    >>> ",
    }
    return {part for part, text in parts.items() if not re.search(text, docstring, re.MULTILINE)}


@pytest.mark.parametrize("name", sorted(documented()))
def test_docstring_has_every_part(name):
    thing = documented()[name]
    # As it is written: some names are there for type checkers only.
    returns_nothing = inspect.isfunction(thing) and thing.__annotations__["return"] == "None"
    expected = {"result"} if returns_nothing else set()
    expected |= set() if inspect.signature(thing).parameters else {"arguments"}
    assert missing_parts(inspect.getdoc(thing) or "") == expected


@pytest.mark.parametrize("name", sorted(documented()))
def test_docstring_describes_every_argument(name):
    arguments = set(inspect.signature(documented()[name]).parameters)
    described = re.search(r"^Args:\n(.*?)^\S", inspect.getdoc(documented()[name]), re.M | re.S)
    text = described[1] if described else ""
    listed = set(re.findall(r"^    (\w+): ", text, re.MULTILINE))
    assert arguments - listed <= {"device", "dtype"}
    assert listed <= arguments


def test_missing_parts_are_noticed():
    docstring = "Add.\n\nArgs:\n    a: One.\n\nReturns:\n    The sum.\n"
    assert missing_parts(docstring) == {"formula", "shapes", "errors", "example"}


# -- protocols ------------------------------------------------------------------------------------

GATES = (SoftmaxGate(4), CategoryGuidedGate(4, 2, 5))
ROUTERS = (
    AttentiveRouter(4, 3),
    TopKRouter(4, 3),
    NoisyTopKRouter(4, 3),
    SigmoidRouter(4, 3),
    SoftRouter(4, 3),
    SlotRouter(4, 3),
    ExpertChoiceRouter(4, 3),
    HashRouter(4, 3),
)
ENRICHMENTS = (CategoryGuidedMoE(4, 2, 5, 2), InteractiveMixture(4, 2))
FUSIONS = (SumFusion(4, 2), ConcatFusion(4, 2), GatedFusion(4, 2), WeightedFusion(GATES[0]))
PROMISES = [
    *((block, Gate) for block in GATES),
    *((block, Router) for block in ROUTERS),
    *((block, Enrichment) for block in ENRICHMENTS),
    *((block, Fusion) for block in FUSIONS),
    *((build(name, 4, 2), SequenceFusion) for name in available("sequences")),
]


@pytest.mark.parametrize(("block", "protocol"), PROMISES)
def test_block_satisfies_its_protocol(block: nn.Module, protocol: type) -> None:
    assert isinstance(block, protocol)
    promised = [*inspect.signature(protocol.__call__).parameters.values()][1:]
    taken = [*inspect.signature(block.forward).parameters.values()]
    assert [(p.name, p.default) for p in taken[: len(promised)]] == [
        (p.name, p.default) for p in promised
    ]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in taken[len(promised) :])


@pytest.mark.parametrize(("block", "protocol"), PROMISES)
def test_block_returns_what_its_protocol_promises(block: nn.Module, protocol: type) -> None:
    promised = get_type_hints(protocol.__call__)["return"]
    assert get_type_hints(block.forward)["return"] is promised
    x = torch.randn(3, 5, 4) if protocol is Router else torch.randn(3, 5, 2, 4)
    categories = torch.zeros(3, 5, dtype=torch.int64)  # which only a hash cannot do without
    assert type(block(x, None, categories)) is promised


def test_what_is_no_block_satisfies_no_protocol():
    assert not isinstance(torch.ones(2), Gate)
    assert not isinstance({}, Fusion)


def test_outputs_are_trees_that_torch_can_walk():
    output = CategoryGuidedMoE(4, 2, 5, 2)(torch.randn(3, 5, 2, 4))
    leaves, structure = torch.utils._pytree.tree_flatten(output)
    rebuilt = torch.utils._pytree.tree_unflatten(leaves, structure)
    assert type(rebuilt) is types.EnrichmentOutput
    assert all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves)
