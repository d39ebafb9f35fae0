"""Two processes train as one: tests for cammsr.processes, and for the loop with it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from cammsr.batches import LengthBuckets, target_loader, training_loader
from cammsr.config import Config, TrainingConfig
from cammsr.dataset import write_folder
from cammsr.hardware import hardware
from cammsr.module import RecommenderModule
from cammsr.processes import mean_over_all, started
from cammsr.split import leave_one_out
from cammsr.training import train
from tests.processes import together

TRAIN = Path(__file__).parents[2] / "examples" / "cammsr" / "train.py"


def as_torchrun(rank, port):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def fit(rank, port, variant, dataset, config, folder):
    if port is not None:
        as_torchrun(rank, port)
    trained = train(variant, dataset, leave_one_out(dataset), config, folder, progress=False)
    return {"curve": trained.curve, "test": trained.test}


def table(folder):
    return pl.read_csv(folder / "logs" / "csv" / "run-0" / "metrics.csv")


def column(folder, name):
    return torch.tensor(table(folder)[name].drop_nulls().to_list())


def without_chance(config, **objective):
    """No dropout, and every position is swapped: nothing is drawn but the batches."""
    return replace(
        config,
        model=replace(config.model, dropout=0.0),
        objective=replace(config.objective, swap_probability=1.0, **objective),
        training=replace(config.training, batch_size=11, max_epochs=17, patience=17),
    )


@pytest.mark.parametrize(
    ("variant", "softmax"), [("cammsr", "full"), ("cammsr", "in_batch"), ("sasrec", "sampled")]
)
def test_two_processes_train_as_one(variant, softmax, tiny, config, tmp_path):
    """24 sequences in batches of 11 are 3 steps an epoch, the last of 2: 51 steps."""
    config = without_chance(config, softmax=softmax, num_sampled=6)
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    one = fit(0, None, variant, tiny, config, alone)
    two, other = together(tmp_path, 2, fit, free_port(), variant, tiny, config, spread)
    losses = [name for name in table(alone).columns if name.startswith("train/")]
    assert {"train/next_item", "train/loss"} <= set(losses)
    assert ({"train/contrast", "train/category"} <= set(losses)) == (variant == "cammsr")
    for name in losses:
        values = column(alone, name)
        assert len(values) == 17
        torch.testing.assert_close(column(spread, name), values, rtol=1e-4, atol=1e-5)
    assert two["curve"] == pytest.approx(one["curve"], rel=1e-5)
    assert two["curve"] == other["curve"]
    assert two["test"] == pytest.approx(one["test"], rel=1e-5)
    assert other["test"] == {}
    weights = load_file(alone / "weights.safetensors")
    for name, value in load_file(spread / "weights.safetensors").items():
        if value.ndim > 1:  # Adam makes steps of the rounding of a bias that changes nothing
            torch.testing.assert_close(value, weights[name], rtol=1e-2, atol=1e-3)


def fit_and_count(rank, *of_training):
    """The same, and how many numbers of the weights this process had."""
    numbers = []

    def count(module):
        weights = list(module.parameters())
        kept = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
        numbers.extend(weight.numel() for weight in kept)

    RecommenderModule.on_train_end = count
    return {**fit(rank, *of_training), "numbers": sum(numbers)}


def test_processes_with_parts_of_the_weights_train_as_those_with_the_whole(tiny, config, tmp_path):
    """Stopped after two epochs and gone on with, too."""
    config = without_chance(config)
    whole = replace(config, training=replace(config.training, average=0.9, max_epochs=6))
    parts = replace(whole, training=replace(whole.training, strategy="fsdp"))
    short = replace(parts, training=replace(parts.training, max_epochs=2))

    def processes(task, name, chosen):
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        given = (free_port(), "cammsr + memory", tiny, chosen, tmp_path / name)
        return together(place, 2, task, *given)

    one, _ = processes(fit_and_count, "whole", whole)
    two, other = processes(fit_and_count, "parts", parts)
    assert two["numbers"] + other["numbers"] == one["numbers"]
    assert 0.4 < two["numbers"] / one["numbers"] < 0.6
    for name in table(tmp_path / "whole").columns:
        if name.startswith("train/"):
            both = (column(tmp_path / folder, name) for folder in ("whole", "parts"))
            torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
    assert two["curve"] == pytest.approx(one["curve"], rel=1e-5)
    assert two["test"] == pytest.approx(one["test"], rel=1e-5)
    stopped, _ = processes(fit, "stopped", short)
    again, _ = processes(fit, "stopped", parts)
    assert stopped["curve"] == two["curve"][:2]
    assert again["curve"] == two["curve"]


def test_processes_share_every_batch_and_every_user_once(split):
    whole = list(LengthBuckets(split.train.lengths, 7, seed=3))
    shares = [list(LengthBuckets(split.train.lengths, 7, 3, (rank, 3))) for rank in range(3)]
    for number, batch in enumerate(whole):
        parts = torch.cat([share[number] for share in shares])
        assert sorted(parts.tolist()) == sorted(batch.tolist())
    users = [
        batch.target
        for rank in range(3)
        for batch in target_loader(split.validation, 6, 7, (rank, 3))
    ]
    assert sorted(torch.cat(users).tolist()) == sorted(split.validation.item.tolist())


def test_a_process_without_rows_gets_padding(split):
    for examples in ("sequences", "prefixes"):
        loader = training_loader(split.train, 6, 1, seed=0, examples=examples, share=(1, 2))
        batches = list(loader)
        assert len(batches) == len(loader)
        assert not any(batch.valid.any() for batch in batches)


def mean_of_parts(rank):
    values = [torch.tensor([1.0, 2.0, 6.0]), torch.empty(0)][rank].requires_grad_()
    loss = mean_over_all(values.mean(), torch.tensor(len(values)))
    loss.backward()
    return loss.detach(), values.grad


def test_mean_over_processes_counts_every_value_once(tmp_path):
    (first, slope), (second, nothing) = together(tmp_path, 2, mean_of_parts)
    assert (first + second) / 2 == 3
    torch.testing.assert_close(slope / 2, torch.full((3,), 1 / 3))
    assert nothing.isfinite().all()


def test_torchrun_trains_and_goes_on(tiny, config, tmp_path):
    """Stopped after two epochs of four, two processes go on to the curve of four at once."""
    settings = tmp_path / "settings.yaml"
    write_folder(tiny, tmp_path / "tiny")

    def torchrun(*arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--master-port", str(free_port()), str(TRAIN), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    found = {}
    for name in ("whole", "stopped"):
        chosen = replace(
            config,
            data=str(tmp_path / "tiny"),
            output=str(tmp_path / name),
            training=replace(config.training, max_epochs=4 if name == "whole" else 2),
        )
        settings.write_text(yaml.safe_dump({**as_settings(chosen), "models": ["cammsr"]}))
        done = torchrun("--config", str(settings))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run folder:") == 1
        (folder,) = (tmp_path / name).iterdir()
        if name == "stopped":
            text = (folder / "config.yaml").read_text()
            (folder / "config.yaml").write_text(text.replace("max_epochs: 2", "max_epochs: 4"))
            assert torchrun("--resume", str(folder)).returncode == 0
        found[name] = json.loads((folder / "metrics.json").read_text())["models"]["cammsr"]
    assert found["stopped"]["curve"] == found["whole"]["curve"]
    assert found["stopped"]["test"] == found["whole"]["test"]


def as_settings(config):
    return json.loads(json.dumps(config, default=vars))


@pytest.mark.parametrize("name", ["devices", "num_nodes"])
def test_as_many_processes_are_started_as_the_settings_say(name):
    match = f"Expected 1 for training.{name}, as this was started, got 2"
    with pytest.raises(ValueError, match=match), started(TrainingConfig(**{name: 2})):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused is refused without a GPU")
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"precision": "16"}, r"Expected a GPU for training.precision '16', got the CPU"),
        ({"accelerator": "gpu"}, r"Expected training.accelerator 'cpu', there is no GPU"),
    ],
)
def test_what_takes_a_gpu_is_refused_without_one(settings, match):
    with pytest.raises(ValueError, match=match):
        hardware(TrainingConfig(**settings))


def test_unknown_hardware_is_refused():
    for name in ("strategy", "precision", "accelerator"):
        with pytest.raises(ValueError, match=rf"Expected {name} among \[.*\], got 'tpu'"):
            Config(training=TrainingConfig(**{name: "tpu"}))
