"""What share of a training step does CAMMSR's modality-swap contrast take?

Steps (forward, losses, backward, optimizer) of the example's default model, on batches of a
dataset folder or on random ones shaped like Amazon Musical Instruments: without contrast, as it is,
with one call of an encoder for each view, and with another library's NT-Xent in the place of
``info_nce``. A round is one batch, on which all take a step in turn (A B C A B C). The share of a
step is what it takes beyond the one without contrast in the same round. On one thread the time is
the processor's, which stands still while other programs run.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contrast_peers import LOSSES, Contrast, installed
from measuring import write_result
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "cammsr"))

from cammsr.batches import Batch, training_loader
from cammsr.config import Config
from cammsr.dataset import UNKNOWN, Dataset, k_core, read_folder
from cammsr.model import CAMMSR
from cammsr.objective import Objective
from cammsr.split import Ragged, leave_one_out
from cammsr.variants import build
from mmfuse import ModalitySwapInfoNCE

NONE, AS_IT_IS, APART = "without contrast", "contrast", "contrast, views apart"
PEERS = ("pytorch-metric-learning", "lightly")


# -- kinds of contrast -------------------------------------------------------------------------


class ViewsApart(nn.Module):
    """The swap contrast, with one call of an encoder for each view."""

    def __init__(self, swap: ModalitySwapInfoNCE) -> None:
        super().__init__()
        self.swap = swap

    def forward(
        self, streams: Tensor, encode: Callable[[Tensor, int], Tensor], *others: Any, **named: Any
    ) -> Tensor:
        def apart(views: Tensor, modality: int) -> Tensor:
            return torch.cat([encode(view, modality) for view in views.split(len(streams))])

        loss: Tensor = self.swap(streams, apart, *others, **named)
        return loss


class PeerContrast(nn.Module):
    """Another library's loss of the valid rows; it knows no ids."""

    def __init__(self, contrast: Contrast, both: bool) -> None:
        super().__init__()
        self.contrast = contrast
        self.both = both  # whether the loss has one direction, and the mean of both is taken

    def forward(
        self, query: Tensor, key: Tensor, *, ids: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        if valid is not None:
            query, key, ids = query[valid], key[valid], ids[valid]
        loss = self.contrast(query, key, ids)
        return (loss + self.contrast(key, query, ids)) / 2 if self.both else loss


class Training(NamedTuple):
    """A model, what it learns by, and the calls of its encoders so far."""

    model: CAMMSR
    objective: Objective
    optimizer: torch.optim.Optimizer
    calls: list[int]  # rows of each


def training(kind: str, dataset: Dataset, config: Config) -> Training:
    model, objective = build("cammsr w/o MSCL" if kind == NONE else "cammsr", dataset, config)
    assert isinstance(model, CAMMSR)
    swap: Any = objective.swap
    if kind == APART:
        objective.swap = ViewsApart(swap)  # type: ignore[assignment]
    elif kind in PEERS:
        contrast = LOSSES[kind].build(config.objective.contrast_temperature)
        both = config.objective.contrast_symmetric and kind == "pytorch-metric-learning"
        swap.contrast = PeerContrast(contrast, both)
    calls: list[int] = []
    for encoder in model.encoders:
        encoder.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate, fused=True)
    return Training(model.train(), objective, optimizer, calls)


# -- batches -----------------------------------------------------------------------------------


def random_dataset(items: int = 6250, users: int = 17_000) -> tuple[Dataset, Ragged]:
    """Numbers alone: sequences of 3 to 50 items, six on average, features and labels as there."""
    torch.manual_seed(0)
    lengths = (3 + torch.empty(users).exponential_(1 / 3.5)).clamp(max=50).long()
    sequences = Ragged.from_lengths(torch.randint(items, (int(lengths.sum()),)), lengths)
    labels = torch.zeros(items, 20, dtype=torch.bool)
    labels[torch.arange(items), torch.randint(20, (items,))] = True
    dataset = Dataset(
        name="random",
        user_ids=sequences.rows,
        item_ids=sequences.values,
        timestamps=torch.arange(len(sequences.values)),
        features={"image": torch.randn(items, 1024), "text": torch.randn(items, 384)},
        categories=tuple(f"category {c:02}" for c in range(20)),
        labels=labels,
        category=torch.full((items,), UNKNOWN),
        titles=("",) * items,
    )
    return dataset, sequences


def read(data: str | None) -> tuple[Dataset, Ragged]:
    if data is None:
        return random_dataset()
    dataset = k_core(read_folder(data))
    return dataset, leave_one_out(dataset).train


def batches(sequences: Ragged, config: Config) -> Iterator[Batch]:
    """Full ones, one epoch after another."""
    length, size = config.model.max_length, config.training.batch_size
    for epoch in itertools.count():
        for batch in training_loader(sequences, length, size, config.seed + epoch):
            if len(batch.items) == size:
                yield batch


# -- measurement -------------------------------------------------------------------------------


def seconds(one: Training, batch: Batch) -> float:
    """Of a step."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    one.optimizer.zero_grad()
    one.objective(one.model, batch)["loss"].backward()
    one.optimizer.step()
    return clock() - start


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def summary(kind: str, rounds: list[dict[str, float]], calls: list[int]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "seconds": spread([each[kind] for each in rounds]),
        "share_of_step": spread([1 - each[NONE] / each[kind] for each in rounds]),
        "encoder_calls": len(calls),
        "encoder_rows": sum(calls),
    }
    if kind != NONE:
        result["step_to_contrast"] = spread([each[kind] / each[AS_IT_IS] for each in rounds])
    return result


def show(kinds: dict[str, dict[str, Any]]) -> None:
    print(f"{'':26} {'ms':>7} {'share of step (quartiles)':>28} {'to contrast':>12} encoder calls")
    for kind, own in kinds.items():
        share = own["share_of_step"]
        line = f"{kind:26} {1000 * own['seconds']['median']:7.1f} "
        line += f"{share['median']:12.3f} ({share['low']:.3f} to {share['high']:.3f}) "
        ratio = own.get("step_to_contrast")
        print(
            line + f"{ratio['median'] if ratio else float('nan'):11.2f} {own['encoder_calls']:13}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a dataset folder; random batches by default")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="contrast_in_training", help="name of the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = Config()
    dataset, sequences = read(options.data)
    peers = [kind for kind in PEERS if installed(LOSSES[kind].package)]
    kinds = {kind: training(kind, dataset, config) for kind in (NONE, AS_IT_IS, APART, *peers)}
    source = batches(sequences, config)
    batch = next(source)
    for one in kinds.values():
        seconds(one, batch)  # warm up
    calls = {kind: list(one.calls) for kind, one in kinds.items()}
    rounds, shapes = [], []
    for batch in itertools.islice(source, options.rounds):
        rounds.append({kind: seconds(one, batch) for kind, one in kinds.items()})
        shapes.append(list(batch.items.shape))
    results = {kind: summary(kind, rounds, calls[kind]) for kind in kinds}
    show(results)
    about = {
        "dataset": dataset.name,
        "batch_size": config.training.batch_size,
        "versions": {kind: installed(LOSSES[kind].package) for kind in PEERS},
    }
    write_result(options.output, {**about, "kinds": results, "shapes": shapes, "rounds": rounds})


if __name__ == "__main__":
    main()
