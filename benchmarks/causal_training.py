"""What does training every position in one causal pass save over training on prefixes?

One epoch of the same model (CAMMSR, all streams, contrast on) over the same interactions: once
with one sequence a row and a prediction at every position, once with one row for every prefix and
a prediction at its end, as the field's usual framework does. Both see batches grouped by length.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import write_result
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "cammsr"))

from cammsr.batches import Batch, LengthBuckets, training_loader
from cammsr.config import Config
from cammsr.dataset import k_core, read_folder
from cammsr.model import CAMMSR, last_valid
from cammsr.objective import Objective
from cammsr.split import Ragged, leave_one_out
from cammsr.variants import build

PREFIXES_A_BATCH = 1024  # the paper's batch size


def prefixes(sequences: Ragged, max_length: int) -> Ragged:
    """Every prefix of at least two items as a row: what was seen, then the target."""
    rows = [
        row[max(0, end - max_length) : end + 1]
        for row in (sequences[r] for r in range(len(sequences)))
        for end in range(1, len(row))
    ]
    return Ragged.from_lengths(torch.cat(rows), torch.tensor([len(row) for row in rows]))


def causal_epoch(model: CAMMSR, objective: Objective, train: Ragged, config: Config) -> float:
    """Seconds of one epoch over sequences."""
    loader = training_loader(
        train, config.model.max_length, config.training.batch_size, config.seed
    )
    return epoch(model, (objective(model, batch)["loss"] for batch in loader), config)


def prefix_epoch(model: CAMMSR, objective: Objective, train: Ragged, config: Config) -> float:
    """Seconds of one epoch over prefixes."""
    rows = prefixes(train, config.model.max_length)
    weights = config.objective

    def loss(index: Tensor) -> Tensor:
        items, valid = rows.padded(index)
        batch = Batch(items[:, :-1], valid[:, 1:], items[:, 1:])
        output = model(batch.items, batch.valid)
        goal = last_valid(batch.targets.unsqueeze(-1), batch.valid).squeeze(-1)
        next_item = F.cross_entropy(
            last_valid(output.states, batch.valid) @ output.candidates.T, goal
        )
        contrast = objective.contrast(model, output, batch)
        category = output.losses["category"]
        return next_item + weights.contrast_weight * contrast + weights.category_weight * category

    sampler = LengthBuckets(rows.lengths, PREFIXES_A_BATCH, config.seed)
    return epoch(model, (loss(index) for index in sampler), config)


def epoch(model: CAMMSR, losses: Iterator[Tensor], config: Config) -> float:
    """Seconds of a step for every loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate, fused=True)
    model.train()
    start = time.perf_counter()
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a dataset folder")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dataset = k_core(read_folder(arguments.data))
    train = leave_one_out(dataset).train
    config = Config()
    seconds = {}
    for name, run in (("causal", causal_epoch), ("prefixes", prefix_epoch)):
        model, objective = build("cammsr", dataset, config)
        assert isinstance(model, CAMMSR)
        seconds[name] = run(model, objective, train, config)
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
    ratio = seconds["prefixes"] / seconds["causal"]
    print(f"prefixes take {ratio:.1f} times as long")
    write_result("causal_training", {"dataset": dataset.name, "seconds": seconds, "ratio": ratio})


if __name__ == "__main__":
    main()
