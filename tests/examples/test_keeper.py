"""Tests for cammsr.keeper: a training that was stopped ends as if it never had been."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cammsr.cli import parse
from cammsr.config import Config
from cammsr.dataset import Dataset, DatasetError, write_folder
from cammsr.keeper import BrokenFileError, Keeper, best_epoch, is_over
from cammsr.module import RecommenderModule
from cammsr.run import run
from cammsr.split import Split, leave_one_out
from cammsr.training import Trained, train

values = st.floats(0, 1) | st.just(math.nan)
curves = st.lists(values, min_size=1, max_size=12)


# -- when it is over ------------------------------------------------------------------------------


@given(curves, st.integers(1, 5))
def test_it_is_over_after_that_many_epochs_without_a_better_one(curve, patience):
    """Read along the curve, as one who watches it would."""
    best, waited = -math.inf, 0
    for epoch, value in enumerate(curve):
        better = epoch == 0 or value > best
        best, waited = (value if value > best else best, 0) if better else (best, waited + 1)
        seen = curve[: epoch + 1]
        assert is_over(seen, patience, 100) == (waited >= patience or math.isnan(value))
        assert best_epoch(seen) == epoch - waited
    assert is_over(curve, 100, len(curve))


def test_nothing_is_over_before_it_began():
    assert not is_over([], 1, 1)


# -- to go on -------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for whatever ends a training."""


def steps(variant: str, tiny: Dataset, split: Split, config: Config, folder: Path) -> Trained:
    return train(variant, tiny, split, config, folder, progress=False)


def everything(trained: Trained, folder: Path) -> dict[str, torch.Tensor]:
    """The best weights, the last ones, and what the optimizer knows."""
    last = torch.load(folder / "last.ckpt", weights_only=True)
    found = {
        f"best {name}": value for name, value in load_file(Keeper(folder, "", 1).weights).items()
    }
    found |= {f"last {name}": value for name, value in last["state_dict"].items()}
    for number, state in last["optimizer_states"][0]["state"].items():
        found |= {f"{name} of {number}": torch.as_tensor(value) for name, value in state.items()}
    found["curve"] = torch.tensor(trained.curve)
    return found


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("every", [None, 2])
def test_stopped_at_any_step_it_ends_the_same(tiny, split, config, tmp_path, monkeypatch, every):
    """Three epochs of three steps, stopped before some of them: between epochs and within one."""
    config = replace(config, training=replace(config.training, checkpoint_steps=every))
    wanted = everything(
        steps("cammsr", tiny, split, config, tmp_path / "whole"), tmp_path / "whole"
    )
    step, done = RecommenderModule.training_step, []

    def stopping(module, batch, batch_idx):
        if module.global_step == stop and not done:
            done.append(stop)
            raise StoppedError
        return step(module, batch, batch_idx)

    monkeypatch.setattr(RecommenderModule, "training_step", stopping)
    for stop in (0, 1, 3, 5, 8):
        done.clear()
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(StoppedError):
            steps("cammsr", tiny, split, config, folder)
        torch.rand(stop)  # the state of the default generator is nobody's business
        assert_same(everything(steps("cammsr", tiny, split, config, folder), folder), wanted)


@pytest.mark.parametrize("every", [None, 1, 3])
def test_stopped_before_a_validation_it_is_not_left_out(
    tiny, split, config, tmp_path, monkeypatch, every
):
    """Also where a checkpoint would fall on the last batch of an epoch."""
    config = replace(config, training=replace(config.training, checkpoint_steps=every))
    wanted = everything(
        steps("cammsr", tiny, split, config, tmp_path / "whole"), tmp_path / "whole"
    )
    begin, done = RecommenderModule.on_validation_epoch_start, []

    def stopping(module):
        if module.global_step == stop and not done:
            done.append(stop)
            raise StoppedError
        begin(module)

    monkeypatch.setattr(RecommenderModule, "on_validation_epoch_start", stopping)
    for stop in (3, 9):
        done.clear()
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(StoppedError):
            steps("cammsr", tiny, split, config, folder)
        assert_same(everything(steps("cammsr", tiny, split, config, folder), folder), wanted)


@pytest.mark.parametrize("content", [b"", b"PK no checkpoint", b"\x80\x02cos\nsystem\n"])
@pytest.mark.parametrize("file", ["last.ckpt", "weights.safetensors"])
def test_a_broken_file_says_which_and_what_to_do(tiny, split, config, tmp_path, file, content):
    steps("sasrec", tiny, split, config, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BrokenFileError, match=rf"{file} cannot be read\. Delete .* from the start"):
        steps("sasrec", tiny, split, config, tmp_path)


def test_weights_that_are_gone_are_named(tiny, split, config, tmp_path):
    steps("sasrec", tiny, split, config, tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(BrokenFileError, match=r"weights\.safetensors cannot be read"):
        steps("sasrec", tiny, split, config, tmp_path)


def test_what_is_over_is_not_trained_again(tiny, split, config, tmp_path, monkeypatch):
    first = steps("sasrec", tiny, split, config, tmp_path)
    monkeypatch.setattr(RecommenderModule, "training_step", None)
    again = steps("sasrec", tiny, split, config, tmp_path)
    assert (again.curve, again.test, again.seconds) == (first.curve, first.test, first.seconds)


def test_early_stopping_that_was_cut_off_does_not_train_on(tiny, split, config, tmp_path):
    """The checkpoint of the last epoch is there, what comes after it is not."""
    frozen = replace(config.training, learning_rate=1e-12, max_epochs=50, patience=2)
    config = replace(config, training=frozen)
    first = steps("sasrec", tiny, split, config, tmp_path)
    assert steps("sasrec", tiny, split, config, tmp_path).epochs == first.epochs == 3


def _train_alone(folder: str, data: tuple[Dataset, Config]) -> None:
    torch.set_num_threads(1)
    tiny, config = data
    steps("cammsr", tiny, leave_one_out(tiny), config, Path(folder))


def test_killed_at_random_moments_it_ends_the_same(tiny, split, config, tmp_path):
    """Ten trainings, each killed without warning at some moment, and gone on with."""
    config = replace(config, training=replace(config.training, checkpoint_steps=2))
    context = multiprocessing.get_context("forkserver")  # imports once, not for each process
    context.set_forkserver_preload(["cammsr.training", "tests.examples.test_keeper"])

    def start(name: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_train_alone, args=(str(tmp_path / name), (tiny, config)))
        process.start()
        return process

    start("warm").join()
    begun = time.perf_counter()
    start("whole").join()
    length = time.perf_counter() - begun
    trained = steps("cammsr", tiny, split, config, tmp_path / "whole")
    wanted = everything(trained, tmp_path / "whole")
    moments = random.Random(0)
    for number in range(10):
        folder = tmp_path / f"killed-{number}"
        process = start(folder.name)
        time.sleep(moments.uniform(0, 1) * length)
        process.kill()  # SIGKILL, to a process that may have ended already
        process.join()
        assert_same(everything(steps("cammsr", tiny, split, config, folder), folder), wanted)


# -- whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def on_folder(tiny, config, tmp_path):
    write_folder(tiny, tmp_path / "tiny")
    return replace(config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"))


def test_a_stopped_run_goes_on_in_its_folder(on_folder, monkeypatch):
    whole = run(on_folder, ["sasrec", "cammsr"], progress=False)
    step = RecommenderModule.training_step

    def stopping(module, batch, batch_idx):
        if hasattr(module.model, "enrichment") and module.global_step == 4:
            raise KeyboardInterrupt
        return step(module, batch, batch_idx)

    monkeypatch.setattr(RecommenderModule, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(on_folder, ["sasrec", "cammsr"], progress=False)
    monkeypatch.undo()
    (stopped,) = set(Path(on_folder.output).iterdir()) - {whole.folder}
    result = run(on_folder, ["sasrec", "cammsr"], stopped, progress=False)
    assert result.folder == stopped
    for got, wanted in zip(result.models, whole.models, strict=True):
        assert (got.name, got.curve, got.test) == (wanted.name, wanted.curve, wanted.test)


def test_a_stopped_resume_keeps_what_the_run_had_found(on_folder, monkeypatch):
    folder = run(on_folder, ["sasrec", "cammsr"], progress=False).folder
    found = json.loads((folder / "metrics.json").read_text())["models"]

    def stopping(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("cammsr.run.train", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(on_folder, ["sasrec", "cammsr"], folder, progress=False)
    assert json.loads((folder / "metrics.json").read_text())["models"] == found


def test_a_run_does_not_go_on_with_other_settings(on_folder):
    folder = run(on_folder, ["sasrec"], progress=False).folder
    with pytest.raises(
        ValueError, match=r"Expected the settings that .* began with, seed 0, got 1"
    ):
        run(replace(on_folder, seed=1), ["sasrec"], folder, progress=False)
    with pytest.raises(ValueError, match=r"models \['sasrec'\], got \['cammsr'\]"):
        run(on_folder, ["cammsr"], folder, progress=False)


def test_a_run_of_before_a_setting_was_there_goes_on_with_its_default(on_folder):
    folder = run(on_folder, ["sasrec"], progress=False).folder
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    del settings["model"]["memory_size"]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run(on_folder, ["sasrec"], folder, progress=False)
    other = replace(on_folder, model=replace(on_folder.model, memory_size=3))
    with pytest.raises(ValueError, match=r"began with, model\.memory_size 0, got 3"):
        run(other, ["sasrec"], folder, progress=False)


def test_a_run_does_not_go_on_with_other_data(tiny, on_folder):
    folder = run(on_folder, ["sasrec"], progress=False).folder
    other = replace(tiny, features={**tiny.features, "text": tiny.features["text"] + 1})
    shutil.rmtree(on_folder.data)
    write_folder(other, on_folder.data)
    with pytest.raises(DatasetError, match=r"'tiny' has changed since .* began: its values were"):
        run(on_folder, ["sasrec"], folder, progress=False)


def test_the_command_goes_on_with_a_run_folder_and_with_data_that_moved(on_folder, tmp_path):
    folder = run(on_folder, ["sasrec"], progress=False).folder
    assert parse(["--resume", str(folder)]) == (on_folder, ["sasrec"], folder)
    moved = Path(on_folder.data).rename(tmp_path / "moved")
    config, models, resume = parse(["--resume", str(folder), "--data", str(moved)])
    assert config == replace(on_folder, data=str(moved))
    with pytest.raises(DatasetError, match=r"is not a folder"):
        run(on_folder, models, resume, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume", "nowhere"],
            "Expected a run folder after --resume, nowhere has no config.yaml",
        ),
        (["--resume", "nowhere", "--seed", "3"], "Expected --resume with --data at most"),
        (["--resume=nowhere", "--seed=3"], "Expected --resume with --data at most"),
    ],
)
def test_wrong_resumes_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err
