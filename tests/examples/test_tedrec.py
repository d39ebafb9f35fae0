"""TedRec, against its formula: whitening experts, spectra along a history, cosines with the ids."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace

import pytest
import torch

from cammsr.config import ModelConfig
from cammsr.scoring import ModelScorer
from cammsr.tedrec import TedRec

SMALL = ModelConfig(dim=4, hidden_dim=5, max_length=6, num_layers=2, dropout=0.3)
HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


@pytest.fixture
def model(tiny):
    return TedRec(tiny.features, tiny.labels, SMALL).double().eval()


def whitened(model, x, m):
    """Eight experts of one modality of one item, weighed by a softmax."""
    (adaptor,) = model.adaptors[m].adaptors
    (experts,) = adaptor.experts.parameters()
    gate = (adaptor.gate.weight @ x).softmax(0)
    return sum(gate[k] * (experts[k] @ (x - adaptor.shift[k])) for k in range(8))


def spectrum(values, size):
    """The discrete Fourier transform of numbers, filled up with zeros."""
    return [
        sum(value * cmath.exp(-2j * math.pi * f * t / size) for t, value in enumerate(values))
        for f in range(size)
    ]


def convolved(first, second, length, size):
    """Of two spectra's product, the first numbers back in time."""
    product = [a * b for a, b in zip(spectrum(first, size), spectrum(second, size), strict=True)]
    return [
        sum(p * cmath.exp(2j * math.pi * f * t / size) for f, p in enumerate(product)).real / size
        for t in range(length)
    ]


def test_scores_are_those_of_a_naive_reading(model):
    """Linear convolutions: 2 N places are enough that nothing comes round."""
    items, present = (tensor.detach() for tensor in model.items())
    streams = items.clone()
    for item in range(15):
        for m in (1, 2):
            streams[item, m] = whitened(model, items[item, m], m).detach() * present[item, m]
    scores = ModelScorer(model).scores(HISTORY, VALID)
    fusion, size = model.fusion, 2 * SMALL.max_length
    for row, length in enumerate((6, 4)):
        x = streams[HISTORY[row, :length]]  # (L, M, D)
        mixed = torch.zeros_like(x)
        for d in range(4):
            own = x[:, 0, d].tolist()
            kernel = fusion.kernel[:, d].tolist()
            mixed[:, 0, d] = torch.tensor(convolved(own, kernel, length, size))
            for m in (1, 2):
                other = convolved(x[:, m, d].tolist(), own, length, size)
                mixed[:, m, d] = torch.tensor(other) / math.sqrt(SMALL.max_length)
        fused = torch.zeros(length, 4, dtype=torch.float64)
        for m in range(3):
            gate = torch.sigmoid(mixed[:, m] @ fusion.weight[m] + fusion.bias[m])
            fused += 2 * gate[:, None] * mixed[:, m]
        state = model.encoder((fused + model.positions[:length])[None])[0, -1]
        expected = torch.cosine_similarity(state, streams[:, 0]) / 0.07
        torch.testing.assert_close(scores[row], expected, rtol=1e-6, atol=1e-6)


def test_what_comes_later_is_not_read(model):
    changed = HISTORY.clone()
    changed[:, 3:] = (changed[:, 3:] + 7) % 15
    before, after = model(HISTORY, VALID).states, model(changed, VALID).states
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-12, rtol=0)
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_without_ids_the_first_modality_stands_in_their_place(tiny):
    config = replace(SMALL, use_id=False)
    model = TedRec(tiny.features, tiny.labels, config).double().eval()
    assert model.items.names == ("text", "image")
    streams, present = model.items()
    first = torch.stack([whitened(model, streams[item, 0], 0) for item in range(15)])
    first = torch.nn.functional.normalize(first * present[:, :1], dim=-1)
    torch.testing.assert_close(model(HISTORY, VALID).candidates, first)


def test_its_norm_is_that_of_its_authors(model):
    names = {type(part).__name__ for part in model.encoder.modules()}
    assert "LayerNorm" in names
    assert "DynamicTanh" not in names
