"""The commands of examples/own_project/README.md, run in a copy of its folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from processes import start
from runs import command, record, scalars
from test_launch import ENVIRONMENT, LAUNCHES

from linear_lab import evaluate as evaluate_entry
from linear_lab import leaderboard as leaderboard_entry
from linear_lab import train as train_entry

STRIPES = ("--config-dir", "conf", "experiment=stripes", "data.pictures=150")
SHORT = (*STRIPES, "trainer.max_epochs=3", "logger=none")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the folder, which is the working directory."""
    folder = shutil.copytree(Path(__file__).parents[1] / "examples" / "own_project", tmp_path / "mine")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_it_trains_goes_on_and_is_measured(project):
    code, out, err = command(train_entry, *STRIPES, "trainer.max_epochs=3", "hydra.run.dir=run")
    assert code == 0, err
    result = record(project / "run")
    assert result["metrics"]["val/f1"] > 0.4
    assert "val/f1" in out
    assert len(scalars(project / "run")["val/f1"]) == 4
    assert command(evaluate_entry, "run=run")[0] == 1  # the config names classes that this command does not
    code, out, err = command(evaluate_entry, "--config-dir", "conf", "run=run", "checkpoint=last")
    assert code == 0, err
    assert "differ" not in out
    assert command(train_entry, "--config-dir", "conf", "resume=run", "trainer.max_epochs=4")[0] == 0
    assert record(project / "run")["steps"] == 4 * 3


@pytest.mark.slow("test_faults kills a run of the default classes")
def test_killed_it_goes_on_to_the_same_weights(project):
    overrides = (*STRIPES, "trainer.max_epochs=30", "logger=none", "data.batch_size=4")
    assert command(train_entry, *overrides, "hydra.run.dir=whole")[0] == 0
    process = start("linear_lab.train", *overrides, "hydra.run.dir=cut", cwd=project, env={"PYTHONPATH": str(project)})
    last = project / "cut" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(60)
    assert record(project / "cut")["status"] == "running"
    code, _, err = command(train_entry, "--config-dir", "conf", "resume=cut")
    assert code == 0, err
    whole, cut = (
        torch.load(project / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")
    )
    assert all(map(torch.equal, whole["state_dict"].values(), cut["state_dict"].values()))
    assert record(project / "cut")["metrics"] == record(project / "whole")["metrics"]


def is_ranked_by_f1(project):
    table = pl.read_csv(project / "outputs" / "sweeps" / "rates" / "leaderboard.csv")
    assert table["val/f1"].to_list() == sorted(table["val/f1"], reverse=True)
    assert set(table["optimizer"]) == {"sgd", "nadam"}
    typed = ("--config-dir", "conf", "sweep=outputs/sweeps/rates", "metric=test/f1", "mode=max", "page=true")
    code, out, err = command(leaderboard_entry, *typed)
    assert code == 0, err
    assert "test/f1" in out
    assert "could not" not in err


RATES = (*SHORT, "-m", "name=rates", "optimizer=sgd,nadam", "optimizer.lr=0.01")


@pytest.mark.slow("like test_without_a_metric_none_is_ranked")
def test_it_is_swept_and_ranked_by_its_own_metric(project):
    code, out, err = command(train_entry, *RATES)
    assert code == 0, err
    assert "excess loss" not in out
    is_ranked_by_f1(project)


@pytest.mark.slow("each worker imports torch")
@pytest.mark.parametrize("launch", LAUNCHES)
def test_other_processes_sweep_it(launch, project):
    typed = [sys.executable, "-m", "linear_lab.train", *RATES, *launch]
    done = subprocess.run(typed, check=False, capture_output=True, text=True, timeout=300, env=os.environ | ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    is_ranked_by_f1(project)


def test_without_a_metric_none_is_ranked(project):
    code, out, err = command(train_entry, *SHORT, "metric=null", "-m", "optimizer.lr=0.01,0.02")
    assert code == 0, err
    assert "no best job, since metric=null" in out


def test_a_search_learns_from_its_metric(project):
    code, _, err = command(train_entry, *SHORT, "-m", "sweep=search", "hydra.sweeper.trials=3", "name=found")
    assert code == 0, err
    table = pl.read_csv(project / "outputs" / "sweeps" / "found" / "leaderboard.csv")
    assert len(table["val/f1"].drop_nulls()) == 3
    code, _, err = command(train_entry, *SHORT, "-m", "sweep=search", "metric=null")
    assert (code, err) == (1, "error: metric=null: a search optimizes a metric; set one, such as metric=val/loss\n")


@pytest.mark.slow("starts two processes")
def test_two_processes_train_it(project):
    typed = [sys.executable, "-m", "linear_lab.train", *SHORT, "trainer=ddp", "hydra.run.dir=two"]
    done = subprocess.run(typed, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert record(project / "two")["metrics"]["val/f1"] > 0.2


def test_a_stack_says_why_it_takes_none(project):
    typed = ("launch=stacked", "optimizer=sgd", "model.channels=4,8", "optimizer.lr=0.01,0.02")
    code, out, err = command(train_entry, *SHORT, "-m", *typed)
    assert code == 0, err
    assert "4 completed" in out
    assert "StripesCNN is not a SupervisedModule" in out + err
