"""What does CAMMSR's mixture save by leaving padding out?

Forward and backward of the attentive mixture (M 3, E 4, D 64) on 1,024 histories of 50 places, of
which about 9 are real, beside the same computation on all places. In turn, A B A B ....
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from measuring import write_result

from mmfuse import AttentiveMoE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    mixture = AttentiveMoE(64, num_modalities=3, num_experts=4)
    x = torch.randn(1024, 50, 3, 64, requires_grad=True)
    gradient = torch.randn(1024, 50, 3, 64)
    lengths = (1 + torch.empty(1024).exponential_(1 / 8.3)).clamp(max=50).long()
    valid = torch.arange(50) >= 50 - lengths.unsqueeze(-1)  # padded on the left

    def seconds(mask: torch.Tensor | None) -> float:
        mixture.zero_grad()
        x.grad = None
        start = time.perf_counter()
        mixture(x, valid=mask).output.backward(gradient)
        return time.perf_counter() - start

    seconds(valid), seconds(None)  # warm up
    pairs = [(seconds(None), seconds(valid)) for _ in range(rounds)]
    ratios = [padded / packed for padded, packed in pairs]
    result = {
        "mean_length": lengths.float().mean().item(),
        "padded_seconds_median": statistics.median(padded for padded, _ in pairs),
        "packed_seconds_median": statistics.median(packed for _, packed in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "pairs": pairs,
    }
    print({name: value for name, value in result.items() if name != "pairs"})
    write_result("attentive_padding", result)


if __name__ == "__main__":
    main()
