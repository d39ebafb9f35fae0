"""Tests for the whole models of papers in cammsr.baselines: UniSRec and MMMLP."""

from __future__ import annotations

import pytest
import torch

from cammsr.baselines import mmmlp, unisrec
from cammsr.config import ModelConfig
from cammsr.scoring import ModelScorer

SMALL = ModelConfig(dim=4, hidden_dim=5, max_length=6, num_layers=2, dropout=0.3)
HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def test_unisrec_scores_by_cosine_over_its_temperature(tiny):
    model = unisrec(tiny.features, tiny.labels, SMALL).double().eval()
    x, present = model.items()
    fused = []
    for item in range(15):
        vector = x[item, 0]  # the id as it is
        for m, adaptor in ((1, model.fusion.adaptors[0]), (2, model.fusion.adaptors[1])):
            if present[item, m]:
                gate = (adaptor.gate.weight @ x[item, m]).softmax(0)
                (experts,) = adaptor.experts.parameters()
                for k in range(8):
                    vector = vector + gate[k] * (experts[k] @ (x[item, m] - adaptor.shift[k]))
        fused.append(vector)
    fused = torch.stack(fused)
    scores = ModelScorer(model).scores(HISTORY, VALID)
    for row, length in enumerate((6, 4)):
        stream = fused[HISTORY[row, :length]] + model.positions[:length]
        state = model.encoder(stream[None])[0, -1]
        expected = torch.cosine_similarity(state, fused) / 0.07
        torch.testing.assert_close(scores[row], expected)


def test_mmmlp_is_the_mixers_alone(tiny):
    model = mmmlp(tiny.features, tiny.labels, SMALL).double().eval()
    assert model.encoder is None
    assert "Attention" not in str(model)
    x, present = model.items()
    fused = model.fusion(x[HISTORY], present[HISTORY], valid=VALID).fused
    output = model(HISTORY, VALID)
    torch.testing.assert_close(output.states, fused)
    torch.testing.assert_close(output.candidates, x.sum(1))
    dropouts = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert dropouts == [0.3] * 6  # one in each of two layers a modality


@pytest.mark.parametrize("build", [unisrec, mmmlp])
def test_what_comes_later_is_not_read(build, tiny):
    model = build(tiny.features, tiny.labels, SMALL).double().eval()
    changed = HISTORY.clone()
    changed[:, 3:] = (changed[:, 3:] + 7) % 15
    before, after = model(HISTORY, VALID).states, model(changed, VALID).states
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=0, rtol=0)
    assert not torch.equal(before[:, 3], after[:, 3])
