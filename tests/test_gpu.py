"""Runs and stacks on a GPU. ``LINEAR_LAB_TRAINER=cpu`` runs these tests on the CPU, to try them without a GPU."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import torch
from runs import command, record, train

from linear_lab import train as train_entry
from linear_lab.data.batches import Batches
from linear_lab.inference.programs import export
from linear_lab.inference.remeasure import evaluate
from linear_lab.inference.rows import load, predict
from linear_lab.sweep import page, results
from linear_lab.tracking.summary import Summary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:GPU available but not used"),  # Lightning, in runs with trainer=cpu
]
TRAINER = os.environ.get("LINEAR_LAB_TRAINER", "gpu")
DEVICE = "cuda" if TRAINER == "gpu" else "cpu"
# Sixty steps of about ten operations change the last digits by at most 60 * 10 * 6e-8 = 4e-5 in float32, and by 7e-14
# in float64, of the largest number.
SINGLE, DOUBLE = 1e-4, 1e-12
BATCHES = ("data=synthetic", "data.samples=200", "data.features=3", "data.batch_size=32", "logger=none")
MLP = ("model=mlp", "model.hidden=[8]")


@pytest.fixture(scope="module", autouse=True)
def with_a_gpu():
    if TRAINER == "gpu" and not torch.cuda.is_available():
        pytest.fail("PyTorch finds no GPU; LINEAR_LAB_TRAINER=cpu runs these tests on the CPU")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of the default config."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, f"trainer={TRAINER}")
    return folder


def vector(parameters):
    """Return all numbers of a record's parameters."""
    return np.concatenate([np.ravel(values) for _, values in sorted(parameters.items())])


def difference(one, other):
    """Return the difference of two records' parameters, relative to the parameters."""
    one, other = (vector(parameters) for parameters in (one, other))
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (("trainer.max_epochs=60",), SINGLE),
        (("trainer.max_epochs=60", "trainer.precision=64-true"), DOUBLE),
        ((*BATCHES, "trainer.max_epochs=12", "optimizer=adam", "optimizer.lr=0.01"), SINGLE),
        ((*BATCHES, *MLP, "trainer.max_epochs=12", "trainer.precision=64-true"), DOUBLE),
        (("data=toy_classes", "loss=cross_entropy", *MLP, "trainer.max_epochs=60", "logger=none"), SINGLE),
    ],
    ids=["default", "float64", "batches and Adam", "MLP, float64", "classes"],
)
def test_a_run_has_the_numbers_of_the_cpu(overrides, tolerance, tmp_path):
    found = train(tmp_path / "found", f"trainer={TRAINER}", *overrides)
    wanted = train(tmp_path / "wanted", "trainer=cpu", *overrides)
    assert found["status"] == "completed"
    assert found["steps"] == wanted["steps"] > 50
    assert difference(found["parameters"], wanted["parameters"]) <= tolerance
    scale = max(1, wanted["initial"]["train/loss"])
    for name, value in wanted["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, abs=tolerance * scale), name


def test_the_data_lie_in_the_memory_of_the_device(monkeypatch, tmp_path):
    devices, batches = set(), Batches.__iter__

    def noting(self):
        for batch in batches(self):
            devices.update(values.device.type for values in batch)
            yield batch

    monkeypatch.setattr(Batches, "__iter__", noting)
    train(tmp_path, f"trainer={TRAINER}", *BATCHES, "trainer.max_epochs=2")
    assert devices == {DEVICE}


@pytest.fixture
def start():
    """Start a run in a new process: PyTorch reads once per process whether cuBLAS must be deterministic."""
    processes = []

    def start(*arguments):
        typed = [sys.executable, "-m", "linear_lab.train", *arguments]
        processes.append(subprocess.Popen(typed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ended(process):
    """Return the exit code of a process and what it wrote on standard error."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def left(folder):
    """Return the numbers that a run leaves: those of its record and its last checkpoint."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True, map_location="cpu")
    tensors = {name: values.tolist() for name, values in checkpoint["state_dict"].items()}
    moments = {key: dict(values) for key, values in checkpoint["optimizer_states"][0]["state"].items()}
    moments = {key: {name: one.tolist() for name, one in values.items()} for key, values in moments.items()}
    fields = ("status", "steps", "metrics", "parameters", "best", "initial")
    return {key: record(folder)[key] for key in fields} | {"tensors": tensors, "moments": moments}


def test_equal_and_resumed_runs_have_the_same_bits(start, tmp_path):
    overrides = (*BATCHES, *MLP, f"trainer={TRAINER}", "trainer.deterministic=true", "optimizer=adam", "seed=1")
    overrides += ("trainer.max_epochs=200",)
    names = ("interrupted", "one", "two")
    interrupted, *whole = [start(*overrides, f"hydra.run.dir={tmp_path / name}") for name in names]
    until = time.monotonic() + 120
    while not (tmp_path / "interrupted/checkpoints/last.ckpt").exists() and interrupted.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGINT)
    code, errors = ended(interrupted)
    assert code == 130, errors
    assert record(tmp_path / "interrupted")["status"] == "interrupted"
    for process in (*whole, start(f"resume={tmp_path / 'interrupted'}")):
        code, errors = ended(process)
        assert code == 0, errors
    one = left(tmp_path / "one")
    assert (one["status"], one["steps"]) == ("completed", 200 * 5)
    assert left(tmp_path / "two") == one
    assert left(tmp_path / "interrupted") == one


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=sgd", "optimizer.lr=0.01,0.02", "optimizer.momentum=0,0.5"),
        ("optimizer=adam", "optimizer.lr=0.01,0.02", "data.batch_size=2"),
        ("optimizer=adam", "optimizer.lr=0.01,0.02", "hydra.launcher.compile=true"),
    ],
    ids=["SGD", "Adam", "Adam, compiled"],
)
def test_a_stack_agrees_with_single_training(overrides, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)  # its pictures take long
    common = (f"output_root={tmp_path}", "seed=0,1", "trainer.max_epochs=60", "logger=none")
    stacked = ("launch=stacked", "hydra.launcher.keep=0")
    without_compiling = [override for override in overrides if not override.startswith("hydra")]
    for given in (
        ("name=stack", f"trainer={TRAINER}", *stacked, *overrides),
        ("name=alone", f"trainer={TRAINER}", *without_compiling),
        ("name=cpu", "trainer=cpu", *stacked, *without_compiling),
    ):
        code, out, errors = command(train_entry, "-m", *common, *given)
        assert code == 0, errors
        assert "one by one" not in out + errors
        assert "not compiled" not in out + errors
    stack, cpu = (results.read_results(tmp_path / "sweeps" / name) for name in ("stack", "cpu"))
    of_cpu = dict(cpu.select("name", "parameters").iter_rows())
    assert len(stack) in (4, 8)
    assert stack["status"].unique().to_list() == ["completed"]
    for row in stack.iter_rows(named=True):
        alone = record(tmp_path / "sweeps/alone" / row["name"])
        assert difference(row["parameters"], alone["parameters"]) <= 1e-5, row["name"]  # as docs/stacks.md promises
        assert difference(row["parameters"], of_cpu[row["name"]]) <= SINGLE, row["name"]


def test_an_interrupted_stack_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)
    given = ("-m", "launch=stacked", "hydra.launcher.keep=0", f"output_root={tmp_path}", f"trainer={TRAINER}")
    given += ("optimizer=adam", "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.5,1", "seed=0,1")
    given += ("trainer.max_epochs=40", "trainer.check_val_every_n_epoch=5", "logger=none")
    assert command(train_entry, *given, "name=whole")[0] == 0
    after = Summary.after_step

    def interrupting(self, step, losses):
        if step == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, step, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Summary, "after_step", interrupting)
        assert command(train_entry, *given, "name=study")[0] == 143
    assert command(train_entry, *given, "name=study")[0] == 0
    columns = ["name", "status", "steps", "parameters", "metrics"]
    found, whole = (results.read_results(tmp_path / "sweeps" / name, columns) for name in ("study", "whole"))
    assert len(found) == 4
    assert found.sort("name").equals(whole.sort("name"))


def test_more_processes_than_gpus_are_refused(monkeypatch, tmp_path):
    if TRAINER == "cpu":  # act as if there were one
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    devices = torch.cuda.device_count() + 1
    given = ("trainer=gpu", "trainer.strategy=ddp", f"trainer.devices={devices}", f"output_root={tmp_path}")
    code, _, errors = command(train_entry, *given)
    assert (code, errors.count("\n")) == (1, 1)
    assert f"trainer.devices={devices}: PyTorch finds {devices - 1} GPU" in errors
    assert f"; run with trainer.devices={devices - 1}" in errors


def test_evaluate_measures_what_the_run_has_recorded(trained):
    recorded = record(trained)["metrics"]
    assert recorded["train/loss"] < 1e-6
    assert evaluate(str(trained), "last") == recorded
    for name, value in evaluate(str(trained), "last", accelerator="cpu").items():
        assert value == pytest.approx(recorded[name], abs=1e-9), name


def test_predict_computes_the_line(trained, tmp_path):
    (tmp_path / "rows.csv").write_text("x\n5\n6.5\n")
    predict(str(trained), input=str(tmp_path / "rows.csv"), output=str(tmp_path / "out.csv"))
    parameters = record(trained)["best"]["parameters"]
    wanted = [parameters["weight"][0][0] * x + parameters["bias"][0] for x in (5, 6.5)]
    assert pl.read_csv(tmp_path / "out.csv")["y_hat"].to_list() == pytest.approx(wanted, rel=1e-6)
    assert wanted == pytest.approx([10, 13], rel=1e-4)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # PyTorch 2.11's torch.export.load
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_export_predicts_the_same(kind, trained, tmp_path):
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    path = export(str(trained), output=str(tmp_path / f"model.{kind}"), kind=kind)
    if kind == "pt2":
        y_hat = torch.export.load(path).module()(x).detach().numpy()
    else:
        runtime = pytest.importorskip("onnxruntime")
        y_hat = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y_hat"], {"x": x.numpy()})[0]
    _, _, predictor = load(str(trained))
    assert y_hat == pytest.approx(predictor(x).detach().numpy(), rel=1e-6, abs=1e-6)
