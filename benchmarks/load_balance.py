"""Do the balance losses keep experts alive, and what happens without them?

A skewed stream: tokens come from clusters whose frequencies fall like 1 / rank, and each cluster
has a linear map of its own to learn. A mixture is trained on it with each way of balancing, and
once without any. Reported for fresh tokens of the same stream: experts without a token, the
coefficient of variation of the load, and the error of the task relative to predicting nothing.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measuring import write_result
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse import Experts, MixtureOfExperts, NoisyTopKRouter, SigmoidRouter, TopKRouter
from mmfuse.diagnostics import dead_experts, load_cv, tokens_per_expert

DIM, EXPERTS, TOP_K, CLUSTERS = 16, 16, 1, 24
WEIGHTS = {"balance": 1.0, "importance": 1.0, "load": 1.0, "z": 1e-3}


class Stream:
    """Tokens of skewed clusters, and what is to be predicted from them."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.centres = 2 * self._normal(CLUSTERS, DIM)
        self.maps = self._normal(CLUSTERS, DIM, DIM) / DIM**0.5
        self.frequency = 1 / torch.arange(1, CLUSTERS + 1)

    def draw(self, tokens: int) -> tuple[Tensor, Tensor]:
        cluster = torch.multinomial(self.frequency, tokens, True, generator=self.generator)
        x = self.centres[cluster] + self._normal(tokens, DIM)
        return x, torch.einsum("td,tde->te", x, self.maps[cluster])

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def router_of(way: str) -> nn.Module:
    if way == "noisy, importance and load loss":
        return NoisyTopKRouter(DIM, EXPERTS, TOP_K)
    if way == "sigmoid, bias":
        return SigmoidRouter(DIM, EXPERTS, TOP_K, bias_rate=0.01)
    return TopKRouter(DIM, EXPERTS, TOP_K)


WAYS = {
    "nothing": (),
    "Switch balance loss": ("balance", "z"),
    "noisy, importance and load loss": ("importance", "load", "z"),
    "sigmoid, bias": (),
}


def train(way: str, seed: int, steps: int) -> dict[str, float]:
    """Train one mixture, and look at its load on fresh tokens."""
    torch.manual_seed(seed)
    stream = Stream(seed)
    mixture = MixtureOfExperts(router_of(way), Experts(EXPERTS, DIM, 2 * DIM))
    optimizer = torch.optim.Adam(mixture.parameters(), lr=3e-3)
    for _ in range(steps):
        x, goal = stream.draw(512)
        output, routed, losses = mixture(x)
        loss = F.mse_loss(output, goal)
        loss = loss + sum(WEIGHTS[name] * losses[name] for name in WAYS[way])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(mixture.router, SigmoidRouter):
            mixture.router.update_bias(routed.expert_index)
    mixture.eval()
    with torch.no_grad():
        x, goal = stream.draw(20_000)
        output, routed, _ = mixture(x)
        load = tokens_per_expert(routed, EXPERTS)
        return {
            "dead_experts": int(dead_experts(load).sum()),
            "load_cv": float(load_cv(load)),
            "relative_error": float(F.mse_loss(output, goal) / goal.square().mean()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    results = {}
    for way in WAYS:
        runs = [train(way, seed, arguments.steps) for seed in range(arguments.seeds)]
        results[way] = runs
        row = {
            name: [round(run[name], 3) for run in runs]
            for name in ("dead_experts", "load_cv", "relative_error")
        }
        print(f"{way}: {row}; median CV {statistics.median(r['load_cv'] for r in runs):.3f}")
    settings = {"steps": arguments.steps, "experts": EXPERTS, "top_k": TOP_K, "weights": WEIGHTS}
    print(write_result("load_balance", {"settings": settings, "runs": results}).name)


if __name__ == "__main__":
    main()
