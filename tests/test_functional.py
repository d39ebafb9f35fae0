"""Tests for mmfuse.functional."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from mmfuse import experts, functional, fusion, gating, graph, layers, losses, projection

FAMILIES = (experts, fusion, gating, graph, layers, losses, projection)


def functions(family: ModuleType) -> set[str]:
    return {name for name in family.__all__ if inspect.isfunction(getattr(family, name))}


def test_holds_every_public_function_of_the_families_and_nothing_else():
    assert set(functional.__all__) == set().union(*map(functions, FAMILIES))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_functions_are_those_of_the_family(family):
    for name in functions(family):
        assert getattr(functional, name) is getattr(family, name)


def test_names_are_in_order():
    assert functional.__all__ == sorted(functional.__all__)
