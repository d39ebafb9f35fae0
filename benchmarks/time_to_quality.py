"""How long does CAMMSR train until it ranks as well as HM4SR at its best?

First HM4SR trains as its authors train it, on prefixes with one target each, until its validation
NDCG@10 has not been better for some epochs. Then CAMMSR trains as the example does, at every
position in one causal pass, until it reaches HM4SR's best value. What is compared is the time from
the first step to the end of the validation that showed the value, validations included, on the
same cores one after the other; the processor's time stands beside it. Both are our
implementations, with one loop, data and encoder. A training that never reaches the value says so.
``--models cammsr hm4sr`` also trains HM4SR at all positions, which tells the gain of the causal
pass from that of the model; ``--tuned`` gives those models, not the goal, settings of their own.
What is validated are averaged weights, as in the example, and what a memory counts is counted in
the time.

Before each training some steps are profiled: their time by part (``step_parts.py``).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import write_result
from step_parts import mark_recommender, step_parts
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "cammsr"))

import mmfuse
from cammsr.averaging import MovingAverage
from cammsr.batches import Batch, training_loader
from cammsr.cli import parse
from cammsr.config import Config
from cammsr.dataset import Dataset, k_core, read_folder
from cammsr.memory import fit_memory
from cammsr.metrics import evaluate
from cammsr.objective import Objective
from cammsr.scoring import ModelScorer
from cammsr.split import Ragged, Split, Target, leave_one_out
from cammsr.tuning import best_file
from cammsr.variants import build

MONITOR = "ndcg@10"
PREFIXES_A_BATCH = 1024  # as HM4SR's authors have it


@dataclass(frozen=True)
class Training:
    """A model and how it trains."""

    model: str
    config: Config


@dataclass(frozen=True)
class Epoch:
    """What an epoch cost, and how well the model ranked after it."""

    value: float
    train_seconds: float
    validation_seconds: float
    seconds: float  # since the first step
    processor_seconds: float  # likewise: what other programs take is not in it


def trainings(models: list[str], options: argparse.Namespace, seed: int) -> list[Training]:
    """The goal first, then those that have to reach it."""
    config = replace(Config(), seed=seed)
    config = replace(config, model=replace(config.model, max_length=options.max_length))
    prefixes = replace(config.training, examples="prefixes", batch_size=PREFIXES_A_BATCH)
    goal = Training("hm4sr", replace(config, training=prefixes))
    if options.tuned is None:
        return [goal, *(Training(name, config) for name in models)]
    return [goal, *(Training(name, tuned(name, options, seed)) for name in models)]


def tuned(model: str, options: argparse.Namespace, seed: int) -> Config:
    file = str(best_file(options.tuned, model))
    config = parse(["--data", options.data, "--config", file, "--seed", str(seed)])[0]
    return replace(config, data=Path(options.data).name)  # not where it lies here


def start(
    training: Training, dataset: Dataset
) -> tuple[nn.Module, Objective, torch.optim.Optimizer]:
    model, objective = build(training.model, dataset, training.config)
    options = training.config.training
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True
    )
    return model.train(), objective, optimizer


def loader(training: Training, split: Split) -> Any:
    config, options = training.config, training.config.training
    return training_loader(
        split.train,
        config.model.max_length,
        options.batch_size,
        config.seed,
        examples=options.examples,
    )


def fit(
    training: Training, dataset: Dataset, split: Split, *, epochs: int, patience: int, goal: float
) -> list[Epoch]:
    """Train until the goal is reached, or nothing better comes."""
    model, objective, optimizer = start(training, dataset)
    average = MovingAverage(model, training.config.training.average)
    batches, curve, step = loader(training, split), [], 0
    begin, processor = time.perf_counter(), time.process_time()
    fit_memory(model, split.train)
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        since = time.perf_counter()
        for batch in batches:
            torch.manual_seed(1_000_003 * training.config.seed + step)
            optimizer.zero_grad()
            objective(model, batch)["loss"].backward()
            optimizer.step()
            step += 1
            average.update(model, step)
        trained = time.perf_counter()
        average.exchange(model)
        value = evaluate(ModelScorer(model.eval()), split.validation, masked=False)[MONITOR]
        average.exchange(model.train())
        now = time.perf_counter()
        used = time.process_time() - processor
        curve.append(Epoch(value, trained - since, now - trained, now - begin, used))
        print(f"  epoch {epoch}: {MONITOR} {value:.4f} after {now - begin:.0f} s", flush=True)
        values = [point.value for point in curve]
        if value >= goal or len(values) - 1 - values.index(max(values)) >= patience:
            break
    return curve


def parts(training: Training, dataset: Dataset, split: Split, steps: int) -> dict[str, Any]:
    """Where the time of a step goes, and how many steps an epoch has."""
    model, objective, optimizer = start(training, dataset)
    fit_memory(model, split.train)
    mark_recommender(model, objective)
    batches = loader(training, split)
    found = step_parts(
        lambda batch: objective(model, batch)["loss"], optimizer, _forever(batches), steps
    )
    return {**found, "steps_an_epoch": len(batches.sampler)}


def reached(curve: list[Epoch], value: float) -> Epoch | None:
    """The first epoch that reached a value."""
    return next((epoch for epoch in curve if epoch.value >= value), None)


def compare(
    seed: int, dataset: Dataset, split: Split, options: argparse.Namespace
) -> dict[str, Any]:
    """One seed: the goal, then the others."""
    found: dict[str, Any] = {"seed": seed, "trainings": []}
    goal = float("inf")
    for training in trainings(options.models, options, seed):
        examples = training.config.training.examples
        print(f"seed {seed}: {training.model} on {examples}", flush=True)
        own = parts(training, dataset, split, options.profiled_steps)
        print(f"  {own['seconds_a_step']:.2f} s a step, {own['steps_an_epoch']} steps an epoch")
        show(own["share"])
        curve = fit(
            training, dataset, split, epochs=options.epochs, patience=options.patience, goal=goal
        )
        if not found["trainings"]:
            goal = max(epoch.value for epoch in curve)
            found["goal"] = goal
        there = reached(curve, goal)
        found["trainings"].append(
            {
                "model": training.model,
                "examples": examples,
                "reached": None if there is None else asdict(there),
                "curve": [asdict(epoch) for epoch in curve],
                "parts": own,
                "config": asdict(training.config),
            }
        )
        said = "never" if there is None else f"after {there.seconds:.0f} s"
        print(f"  reached {goal:.4f} {said}", flush=True)
    first = found["trainings"][0]["reached"]
    for one in found["trainings"][1:]:
        own = one["reached"]
        for clock in ("seconds", "processor_seconds"):
            one[f"goal_to_own_{clock}"] = None if own is None else first[clock] / own[clock]
    return found


def show(share: dict[str, dict[str, float]]) -> None:
    for name, ways in sorted(share.items(), key=lambda item: -sum(item[1].values())):
        said = ", ".join(f"{way} {value:.1%}" for way, value in ways.items())
        print(f"    {name:18} {sum(ways.values()):6.1%}  ({said})")


def _forever(batches: Any) -> Iterator[Batch]:
    for epoch in itertools.count():
        batches.sampler.set_epoch(epoch)
        yield from batches


def first_users(split: Split, count: int | None) -> Split:
    """Only some users, for a check of the benchmark itself."""
    if count is None:
        return split

    def cut(rows: Ragged) -> Ragged:
        end = int(rows.offsets[min(count, len(rows))])
        times = None if rows.times is None else rows.times[:end]
        return Ragged(rows.values[:end], rows.offsets[: count + 1], times)

    def few(target: Target) -> Target:
        return Target(cut(target.history), target.item[:count])

    return Split(cut(split.train), few(split.validation), few(split.test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a dataset folder")
    parser.add_argument("--models", nargs="+", default=["cammsr"], help="who has to reach the goal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=100, help="most epochs of a training")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better one")
    parser.add_argument("--tuned", type=Path, help="a folder with best-MODEL.yaml for the models")
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--profiled_steps", type=int, default=8)
    parser.add_argument("--limit", type=int, default=None, help="only so many users, for a check")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", default="time_to_quality", help="name of the JSON file")
    options = parser.parse_args()
    if options.tuned is not None:
        for model in options.models:
            if not best_file(options.tuned, model).is_file():
                parser.error(f"Expected {best_file(options.tuned, model)} for {model}, got none.")
    if options.threads:
        torch.set_num_threads(options.threads)
    dataset = k_core(read_folder(options.data))
    split = first_users(leave_one_out(dataset), options.limit)
    about = {
        "dataset": dataset.name,
        "users": len(split.train),
        "items": dataset.num_items,
        "mmfuse": mmfuse.__version__,
        "monitor": MONITOR,
        "options": {name: vars(options)[name] for name in ("epochs", "patience", "max_length")},
    }
    found: list[dict[str, Any]] = []
    for seed in options.seeds:
        found.append(compare(seed, dataset, split, options))
        path = write_result(options.output, {**about, "seeds": found})  # what is done is not lost
    print(f"written to {path}")


if __name__ == "__main__":
    main()
