"""Tests for cammsr.items."""

from __future__ import annotations

import torch

from cammsr import items
from cammsr.items import ItemStreams, standardise


def test_features_are_standardised_over_the_rows_that_are_there():
    torch.manual_seed(0)
    raw = 3 * torch.randn(200, 7) + 5
    raw[::4] = 0
    there = raw.any(-1)
    centred = raw[there].double() - raw[there].double().mean(0)
    expected = torch.zeros_like(raw)
    expected[there] = (centred / centred.square().mean().sqrt()).float()
    assert torch.equal(standardise(raw), expected)
    assert torch.equal(standardise(raw * 0), raw * 0)


def test_features_are_standardised_the_same_in_blocks(monkeypatch):
    torch.manual_seed(0)
    raw = 3 * torch.randn(200, 7) + 5
    raw[3:90] = 0
    whole = standardise(raw)
    monkeypatch.setattr(items, "BLOCK", 7 * 11)
    torch.testing.assert_close(standardise(raw), whole, rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(items, "BLOCK", 1)
    torch.testing.assert_close(standardise(raw), whole, rtol=1e-6, atol=1e-7)


def test_some_items_are_rows_of_all():
    torch.manual_seed(0)
    features = {"text": torch.randn(9, 5), "image": torch.randn(9, 4)}
    features["image"][::2] = 0
    streams = ItemStreams(features, 9, 6)
    some = torch.tensor([7, 0, 4])
    whole, part = streams(), streams(some)
    torch.testing.assert_close(part.x, whole.x[some])
    assert torch.equal(part.present, whole.present[some])
