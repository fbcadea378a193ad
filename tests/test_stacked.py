"""Stacks: the same numbers as single runs, the table of results, and faults."""

import os
import random
import re
import shutil
import signal
import time

import hydra
import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import LightningDataModule
from omegaconf import OmegaConf
from processes import end, fork
from runs import command, compose, composer, record, slow, train
from test_composer import combinations
from test_tracker import cells
from torch import nn
from torch.func import vmap
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError

from linear_lab import CONF, UserError, cli
from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import predict as predict_entry
from linear_lab import train as entry
from linear_lab.data import SyntheticData
from linear_lab.fitting.callbacks import Interrupted
from linear_lab.fitting.checks import check, within
from linear_lab.models import LinearModule, MLPModule, SupervisedModule
from linear_lab.stacked import loop, step
from linear_lab.stacked.losses import LOSSES
from linear_lab.stacked.optimizers import BOUNDS, MODES, OPTIONAL, RULES
from linear_lab.sweep import best_jobs, page, plan, results, stackable, stacks
from linear_lab.sweep import job as sweep_job
from linear_lab.sweep.stackable import obstacles

OPTIMIZERS = [
    (SGD, [{"lr": 0.1}, {"lr": 0.05}]),
    (SGD, [{"lr": 0.1}, {"lr": 0.05, "momentum": 0.9}]),
    (SGD, [{"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "dampening": 0.2}, {"lr": 0.1, "dampening": 0.5}]),
    (SGD, [{"lr": 0.1, "momentum": m, "nesterov": True, "weight_decay": decay} for m, decay in ((0.9, 0), (0.5, 0.3))]),
    (Adam, [{"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.1, "eps": 1e-5}]),
    (Adam, [{"lr": 0.1, "amsgrad": True, "maximize": True}, {"lr": 0.01, "amsgrad": True, "maximize": True}]),
    (AdamW, [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.0}]),
    (AdamW, [{"lr": lr, "weight_decay": 0.0, "maximize": True} for lr in (0.1, 0.01)]),
    (RMSprop, [{"lr": 0.01}, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}]),
    (RMSprop, [{"lr": 0.01, "centered": True}, {"lr": 0.02, "centered": True, "alpha": 0.5}]),
]  # fmt: skip


def as_columns(groups, names):
    """Return the numbers of several optimizers by name, ``(J,)`` each, as in a stack."""
    flat = [group | {f"betas.{k}": beta for k, beta in enumerate(group.get("betas", ()))} for group in groups]
    numbers = {name: torch.tensor([one[name] for one in flat], dtype=torch.float64) for name in names}
    return {name: values for name, values in numbers.items() if name not in OPTIONAL or values.any()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "arguments"), OPTIMIZERS)
def test_optimizers_take_the_steps_of_torch(kind, arguments, dtype):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(arguments), 3, 2, dtype=dtype, generator=generator)
    alone = [nn.Parameter(values.clone()) for values in start]
    optimizers = [kind([parameter], **own) for parameter, own in zip(alone, arguments, strict=True)]
    rule, groups = RULES[f"torch.optim.{kind.__name__}"], [optimizer.param_groups[0] for optimizer in optimizers]
    modes, numbers = {name: groups[0].get(name, False) for name in MODES}, as_columns(groups, rule.numbers)
    together = start.clone()
    state = {name: torch.zeros_like(start) for name in rule.state(modes, numbers)}
    for taken in range(500):
        noise = torch.randn(start.shape, dtype=dtype, generator=generator)
        for parameter, optimizer, values in zip(alone, optimizers, noise, strict=True):
            parameter.grad = 2 * parameter.detach() + parameter.detach().sin() + values
            optimizer.step()
            if taken == 250:
                optimizer.param_groups[0]["lr"] /= 2
        n = {k: v.to(dtype) for k, v in rule.derive(numbers, torch.tensor(taken + 1.0, dtype=torch.float64)).items()}
        gradient = 2 * together + together.sin() + noise
        together, state = vmap(lambda p, g, s, n: rule.update(p, g, s, n, modes))(together, gradient, state, n)
        if taken == 250:
            numbers["lr"] = numbers["lr"] / 2
    exact = {} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}  # powers of beta are rounded differently
    for job, parameter in enumerate(alone):
        assert torch.allclose(together[job], parameter, **exact) if exact else torch.equal(together[job], parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "specs"),
    [
        (nn.MSELoss, [{}, {}]),
        (nn.L1Loss, [{}, {}]),
        (nn.HuberLoss, [{"delta": 0.3}, {"delta": 2.0}, {}]),
        (nn.CrossEntropyLoss, [{}, {"label_smoothing": 0.2}, {"label_smoothing": 1.0}]),
    ],
)
def test_losses_are_those_of_torch(loss, specs, dtype):
    generator = torch.Generator().manual_seed(0)
    y_hat = torch.randn(len(specs), 7, 3, dtype=dtype, generator=generator)
    y = torch.randn(7, 3, dtype=dtype, generator=generator)
    y = y[:, 0].abs().long() % 3 if loss is nn.CrossEntropyLoss else y
    ours, defaults = LOSSES[f"torch.nn.{loss.__name__}"]
    numbers = {name: torch.tensor([one.get(name, value) for one in specs]) for name, value in defaults.items()}
    found = vmap(ours, in_dims=(0, None, 0))(y_hat, y, numbers)
    wanted = torch.stack([loss(**spec)(values, y) for spec, values in zip(specs, y_hat, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-7, atol=0)


def test_bounds_are_where_torch_refuses():
    kinds = {"momentum": SGD, "weight_decay": SGD, "betas.0": Adam, "betas.1": Adam, "eps": Adam, "alpha": RMSprop}
    for name, kind in kinds.items():
        for value in (-1.0, -1e-9, 0.0, 0.5, 1.0, 2.0):
            parameters = [torch.zeros(1, requires_grad=True)]
            given = {"betas": (value, 0.9) if name == "betas.0" else (0.9, value)} if "betas" in name else {name: value}
            try:
                kind(parameters, lr=0.1, **given)
                taken = True
            except ValueError:
                taken = False
            cfg = compose(f"optimizer={kind.__name__.lower()}", "+optimizer.eps=1e-8")  # also refused values
            OmegaConf.update(cfg, f"optimizer.{name.replace('.', '[')}{']' * ('.' in name)}", value)
            try:
                check(cfg)
            except UserError:
                taken = False
            assert bool(within(torch.tensor(value), *BOUNDS[name])) == taken, (name, value)


def sweep(monkeypatch, folder, *overrides, launch="stacked", name="study"):
    """Run a sweep in a working directory; return its exit code and its output."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    keep = ("hydra.launcher.keep=0",) if launch == "stacked" and not any("keep" in item for item in overrides) else ()
    code, out, errors = command(entry, "-m", f"launch={launch}", f"name={name}", *keep, *overrides)
    return code, errors + out


def rows(folder, name="study"):
    """Return the results of a sweep's stacks, by job."""
    found = results.read_results(folder / "outputs/sweeps" / name)
    return {row["name"]: row for row in found.iter_rows(named=True)}


@pytest.fixture
def without_page(monkeypatch):
    """Leave out the pictures of the page, which take longest."""
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)


def close(one, other, tolerance, where=""):
    """Assert that two trees of containers and numbers are the same, numbers within a relative tolerance."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert {*one} == {*other}, where
        for key in one:
            close(one[key], other[key], tolerance, f"{where}/{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        assert len(one) == len(other), where
        for number, (value, wanted) in enumerate(zip(one, other, strict=True)):
            close(value, wanted, tolerance, f"{where}/{number}")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance * 1e-3), where
    else:
        assert one == other, f"{where}: {one} {other}"


def vector(parameters):
    """Return all numbers of a record's parameters."""
    given = [np.ravel(values) for _, values in sorted(parameters.items()) if values is not None]
    return np.concatenate(given).astype(float)


CONVERGED = "sgd, converged"  # rounding, which depends on the processor, decides which step is best
MLP = ("model=mlp", "model.hidden=[5]", "data=synthetic", "data.samples=60", "data.features=2")
CASES = {
    "sgd": ("optimizer.momentum=0,0.9", "optimizer.lr=0.0002", "seed=1", "optimizer.weight_decay=0,0.1",
        "data=synthetic", "data.samples=100"),
    CONVERGED: ("optimizer.momentum=0,0.9", "optimizer.lr=0.1", "optimizer.weight_decay=0,0.1"),
    "dampening": ("+optimizer.dampening=0.3", "optimizer.momentum=0.5,0.9", "optimizer.lr=0.01,0.02"),
    "nesterov": ("optimizer.nesterov=true", "optimizer.lr=0.01", "optimizer.momentum=0.5,0.9", "data.batch_size=2",
        "seed=1,2"),
    "adam": ("optimizer=adam", "optimizer.lr=0.01,0.1", "data=toy_classes", "loss=cross_entropy", "data.batch_size=32",
        "loss.label_smoothing=0,0.1", "metric=val/accuracy", "mode=max"),
    "amsgrad": ("optimizer=adam", "+optimizer.amsgrad=true", "optimizer.lr=0.01,0.1", "seed=0,1"),
    "a reference": ("optimizer=adam", "optimizer.betas=[0.8,'${optimizer.lr}']", "optimizer.lr=0.5,0.9"),
    "betas": ("optimizer=adam", "optimizer.betas=[0.8,0.9],[0.5,0.99]", "optimizer.lr=0.05"),
    "adamw": ("optimizer=adamw", "data=table", "data.path=rows.csv", "data.y=[y]", "optimizer.lr=0.01,0.1",
        "data.batch_size=20", "seed=0,1"),
    "double": ("optimizer=adam,sgd", "trainer.precision=64-true", "optimizer.lr=0.01,0.02", "seed=1",
        "data.batch_size=3"),
    "double, full batch": ("optimizer=rmsprop,adamw", "trainer.precision=64-true", "optimizer.lr=0.01,0.02",
        "seed=0,1"),
    "diverging": ("optimizer.lr=0.05,0.12,1,100,1e30",),
    "diverging at once": ("model.weight=1e30,0.5", "optimizer.lr=0.05,1", "optimizer=adam,sgd"),
    "huber": ("optimizer=rmsprop", "loss=huber", "loss.delta=0.5,2", "optimizer.momentum=0,0.5", "optimizer.lr=0.01"),
    "centered": ("optimizer=rmsprop", "+optimizer.centered=true", "loss=mae", "optimizer.lr=0.01,0.02"),
    "cosine": ("scheduler=cosine", "scheduler.eta_min=0,0.001", "optimizer.lr=0.02,0.05,0.2"),
    "exponential": ("scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR",
        "~scheduler.step_size", "scheduler.gamma=0.9,0.99", "optimizer.lr=0.02,0.05"),
    "constant": ("scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.ConstantLR", "~scheduler.step_size",
        "~scheduler.gamma", "+scheduler.factor=0.5", "optimizer.lr=0.02,0.05"),
    "plateau": ("optimizer=adam", "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.5,1", "seed=0,1",
        "trainer.check_val_every_n_epoch=7"),
    "train alone": ("data=synthetic", "data.fractions=[1,0,0]", "optimizer.lr=0.01,0.1", "seed=0,1"),
    "many": ("data=synthetic", "data.samples=100", "data.features=5", "data.targets=4", "model.weight=0.5,null",
        "model.bias=false", "trainer.max_steps=18", "scheduler=step", "scheduler.step_size=5,7", "logger=none"),
    "several starts": ("model.weight=0.5,null", "model.bias=true,2", "seed=0,1"),
    "mlp": (*MLP, "optimizer=adam,sgd", "optimizer.lr=0.01,0.03", "seed=0,1"),
    "mlp, batches": (*MLP, "model.activation=relu", "optimizer=sgd", "optimizer.lr=0.01,0.03",
        "optimizer.momentum=0,0.5", "data.batch_size=8", "seed=0,1"),
    "mlp, double": (*MLP, "trainer.precision=64-true", "optimizer=adamw", "optimizer.lr=0.01,0.03", "data.batch_size=8",
        "seed=0,1"),
    "mlp, classes": ("model=mlp", "model.hidden=[4]", "data=toy_classes", "loss=cross_entropy", "optimizer=adam",
        "optimizer.lr=0.01,0.03", "metric=val/accuracy", "mode=max"),
}  # fmt: skip
EPOCHS = {
    CONVERGED: 500,
    "nesterov": 10,
    "mlp, batches": 6,
    "mlp, double": 6,
    "mlp": 10,
    "plateau": 60,
    "cosine": 60,
}  # else 25
ALIKE = ("status", "seed", "steps", "config_hash", "excess_loss", "metrics", "stable_lr", "rows")


RULES_ALONE = "test_optimizers_take_the_steps_of_torch and test_losses_are_those_of_torch check the same rules"
SLOW = (
    CONVERGED, "dampening", "nesterov", "amsgrad", "a reference", "betas", "adamw", "double, full batch", "centered",
    "diverging at once", "cosine", "many", "several starts", "double", "exponential", "constant",
    "train alone", "mlp", "mlp, double", "mlp, classes", "sgd", "huber", "diverging",
)  # fmt: skip


@pytest.mark.parametrize("case", [*(case for case in CASES if case not in SLOW), *slow(RULES_ALONE, *SLOW)])
def test_agrees_with_single_training(case, monkeypatch, tmp_path, without_page):
    random_rows = np.random.default_rng(0)
    x = random_rows.normal(5, 3, (60, 3))
    table = np.c_[x, x @ [1, 2, -3] + 4 + random_rows.normal(0, 0.1, 60)]
    np.savetxt(tmp_path / "rows.csv", table, delimiter=",", header="a,b,c,y", comments="")
    path = str(tmp_path / "rows.csv")
    overrides = [o.replace("rows.csv", path) for o in CASES[case]] + [f"trainer.max_epochs={EPOCHS.get(case, 25)}"]
    for launch in ("stacked", "local"):
        pictures = ["logger.tensorboard.pictures=false"] if "logger=none" not in overrides else []
        code, said = sweep(monkeypatch, tmp_path / launch, *overrides, *pictures, launch=launch)
        assert code == 0, said
        assert "one by one" not in said
    found = rows(tmp_path / "stacked")
    folder = tmp_path / "local/outputs/sweeps/study"
    assert {path.parent.name for path in folder.glob("*/result.json")} == set(found)
    assert len(found) >= 2
    tolerance = 1e-10 if "double" in case else 1e-5
    for name, ours in found.items():
        theirs = record(folder / name)
        for key in ALIKE:
            if key in ("metrics", "excess_loss") and ours["status"] == "completed":
                close(ours[key], theirs[key], 10 * tolerance, f"{name}/{key}")
            else:
                close(ours[key], theirs[key], 1e-4, f"{name}/{key}")
        assert ours["job"] == theirs["job"]
        if ours["status"] == "completed":
            one, other = vector(ours["parameters"]), vector(theirs["parameters"])
            assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other), name
            assert ours["error"] is theirs["error"] is None
        else:
            assert ours["error"].partition("(")[0] == theirs["error"].partition("(")[0]
            assert ours["error"].partition("):")[2] == theirs["error"].partition("):")[2]
        if theirs.get("initial"):
            close(ours["initial"], {k: v for k, v in theirs["initial"].items() if k in ours["initial"]}, tolerance)
        else:
            assert ours["initial"] is None
        if theirs["best"] is None:
            assert ours["best"] is None
            continue
        if case != CONVERGED:
            assert ours["best"]["step"] == theirs["best"]["step"], name
        close(ours["best"]["metrics"], theirs["best"]["metrics"], 100 * tolerance, f"{name}/best")


GRID = ("optimizer=sgd,adam", "optimizer.lr=0.05,0.1", "seed=0,1", "data.batch_size=2", "trainer.max_epochs=30",
    "logger=none")  # fmt: skip
SAME = ("status", "steps", "metrics", "parameters", "best", "initial", "excess_loss", "config_hash")


@pytest.fixture(scope="module")
def whole(once):
    """The results of a sweep that was not interrupted, by job."""

    def train(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page, "write_page", lambda *_, **__: None)
            assert sweep(patch, folder, *GRID)[0] == 0

    return {name: {key: row[key] for key in SAME} for name, row in rows(once("whole stack", train)).items()}


def same(folder):
    return {name: {key: row[key] for key in SAME} for name, row in rows(folder).items()}


def left(folder):
    """Return the names of the files in a sweep's folder."""
    return {path.name for path in (folder / "outputs/sweeps/study").iterdir()}


@pytest.fixture
def small_chunks(monkeypatch):
    """Train each group in two chunks."""
    monkeypatch.setattr(stacks, "CHUNK", 2)


@pytest.mark.slow("like test_a_checkpoint_cut_in_half_is_trained_from_the_start")
def test_a_stack_leaves_a_table_and_no_folder(whole, monkeypatch, tmp_path, without_page):
    assert sweep(monkeypatch, tmp_path, *GRID)[0] == 0
    assert len(whole) == 8
    assert {name for name in left(tmp_path) if name[0] not in ".lms"} == {"_rows", "plan.parquet", "results.parquet"}
    assert not list(tmp_path.glob("outputs/sweeps/study/.stack-*.ckpt"))
    before = (tmp_path / "outputs/sweeps/study/results.parquet").stat().st_mtime_ns
    code, said = sweep(monkeypatch, tmp_path, *GRID)
    assert (code, "8 jobs: 8 completed" in said) == (0, True)
    assert (tmp_path / "outputs/sweeps/study/results.parquet").stat().st_mtime_ns == before  # no job was trained twice


@pytest.mark.slow("like test_a_checkpoint_cut_in_half_is_trained_from_the_start")
def test_chunks_give_the_same(whole, monkeypatch, tmp_path, without_page, small_chunks):
    code, said = sweep(monkeypatch, tmp_path, *GRID)
    assert code == 0, said
    for name, found in same(tmp_path).items():
        close(found, whole[name], 1e-5, name)


@pytest.mark.slow("compiles twice; the eager step, which the compiler gets, is checked by the other tests")
def test_a_kernel_compiled_for_one_size_gives_the_same(whole, monkeypatch, tmp_path, without_page):
    monkeypatch.setattr(stacks, "CHUNK", 3)  # chunks of two jobs, padded to three
    code, said = sweep(monkeypatch, tmp_path, *GRID, "optimizer=adam", "seed=0,1,2", "hydra.launcher.compile=true")
    assert (code, "not compiled" in said) == (0, False), said
    found = same(tmp_path)
    assert len(found) == 6
    for name in found.keys() & {name.removeprefix("adam-") for name in whole}:
        close(found[name], whole[f"adam-{name}"], 1e-4, name)


def test_without_a_compiler_training_goes_on_eagerly(monkeypatch, tmp_path, without_page):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    code, said = sweep(monkeypatch, tmp_path, *GRID, "hydra.launcher.compile=true")
    assert code == 0, said
    assert said.count("not compiled  no C++ compiler\n") == 1  # once for two groups
    assert len(rows(tmp_path)) == 8


@pytest.mark.parametrize(
    ("moment", "signum"),  # steps within an epoch, and before a validation
    [(83, signal.SIGTERM), pytest.param(80, signal.SIGINT, marks=pytest.mark.slow("the other moment is quick"))],
)
def test_an_interrupted_stack_goes_on(moment, signum, whole, monkeypatch, tmp_path, without_page):
    after, seen = loop.Summary.after_step, []

    def interrupting(self, at, losses):
        seen.append(at)
        if len(seen) == moment:  # while the second group trains
            os.kill(os.getpid(), signum)
        return after(self, at, losses)

    monkeypatch.setattr(loop.Summary, "after_step", interrupting)
    code, said = sweep(monkeypatch, tmp_path, *GRID)
    assert code == 128 + signum, said
    assert "interrupted; the results of finished jobs are kept" in said
    assert "go on" in said
    assert len(rows(tmp_path)) == 4
    assert len(list(tmp_path.glob("outputs/sweeps/study/.stack-*.ckpt"))) == 1
    code, said = sweep(monkeypatch, tmp_path, *GRID, "optimizer.lr=0.02,0.05,0.1")  # the grid has one more value
    assert code == 0, said
    assert len(seen) == 60 + 60 + 60 + 60  # no step was taken twice; the new jobs make two more groups
    found = same(tmp_path)
    assert len(found) == 12
    assert {name: found[name] for name in whole} == whole
    assert not list(tmp_path.glob("outputs/sweeps/study/.stack-*.ckpt"))


@pytest.mark.slow("test_an_interrupted_stack_goes_on resumes from the same checkpoints")
def test_a_stack_killed_at_ten_moments_ends_as_one_that_was_not(whole, monkeypatch, tmp_path, without_page):
    moments, before, kills = random.Random(0), {}, 0

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stacks, "SAVE_EVERY", 0.0)  # writes a checkpoint and results after each step
            patch.setattr(stacks, "CHUNK", 2)
            after = loop.Summary.after_step
            patch.setattr(loop.Summary, "after_step", lambda *given: (time.sleep(0.03), after(*given))[1])
            return sweep(patch, tmp_path, *GRID)[0]

    folder = tmp_path / "outputs/sweeps/study"
    while True:
        pid = fork(run)
        if kills < 10:
            time.sleep(moments.uniform(0.1, 0.9))
            os.kill(pid, signal.SIGKILL)
        code = end(pid)
        now = same(tmp_path) if (folder / "results.parquet").exists() else {}
        assert {name: now.get(name) for name in before} == before  # no result is lost, no job runs twice
        before, kills = now, kills + (code == -signal.SIGKILL)
        if code != -signal.SIGKILL:
            assert code == 0
            break
    assert kills == 10
    assert before.keys() == whole.keys()
    for name, found in before.items():
        close(found, whole[name], 1e-5, name)
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".ckpt", ".part"))]


@pytest.mark.slow("like test_data_that_have_changed_are_not_mixed_with_what_was_trained_on_others")
def test_other_data_do_not_take_up_a_checkpoint(monkeypatch, tmp_path, without_page):
    path = tmp_path / "rows.csv"
    overrides = ("data=table", f"data.path={path}", "data.y=[y]", "seed=0,1", "trainer.max_epochs=30", "logger=none")

    def write_rows(slope):
        path.write_text("x,y\n" + "".join(f"{x},{slope * x}\n" for x in range(20)))

    after = loop.Summary.after_step

    def interrupting(self, at, losses):
        if at == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, at, losses)

    write_rows(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Summary, "after_step", interrupting)
        assert sweep(monkeypatch, tmp_path, *overrides)[0] == 143
    write_rows(-1)
    code, told = sweep(monkeypatch, tmp_path, *overrides)
    assert code == 0, told
    assert sweep(monkeypatch, tmp_path, *overrides, name="anew")[0] == 0
    one, other = rows(tmp_path), rows(tmp_path, "anew")
    assert {name: row["parameters"] for name, row in one.items()} == {n: row["parameters"] for n, row in other.items()}


def test_data_that_have_changed_are_not_mixed_with_what_was_trained_on_others(monkeypatch, tmp_path, without_page):
    path = tmp_path / "rows.csv"
    overrides = ("data=table", f"data.path={path}", "data.y=[y]", "seed=0,1", "trainer.max_epochs=5", "logger=none")
    path.write_text("x,y\n" + "".join(f"{x},{2 * x}\n" for x in range(20)))
    assert sweep(monkeypatch, tmp_path, *overrides)[0] == 0
    old, before = path.read_text(), rows(tmp_path)
    path.write_text(old.replace("19,38", "19,39"))
    code, said = sweep(monkeypatch, tmp_path, *overrides[:3], "seed=range(4)", *overrides[4:])
    assert code == 1
    assert (
        said.count(f"data: {path} has changed since other jobs of this sweep were trained; restore the old data") >= 2
    )
    assert {name: row for name, row in rows(tmp_path).items() if row["status"] == "completed"} == before
    path.write_text(old)
    assert sweep(monkeypatch, tmp_path, *overrides[:3], "seed=range(4)", *overrides[4:])[0] == 0
    assert [row["status"] for row in rows(tmp_path).values()] == ["completed"] * 4


def test_a_checkpoint_cut_in_half_is_trained_from_the_start(whole, monkeypatch, tmp_path, without_page):
    folder = tmp_path / "outputs/sweeps/study"
    folder.mkdir(parents=True)
    (folder / ".stack-0123.ckpt").write_bytes(b"half")
    code, said = sweep(monkeypatch, tmp_path, *GRID)
    assert code == 0, said
    assert same(tmp_path) == whole
    assert "cannot read" in (folder / "stacks.log").read_text()


@pytest.mark.slow("like test_a_full_disk_is_told_and_leaves_the_rows_there_were")
def test_a_full_disk_ends_the_sweep_by_one_message(whole, monkeypatch, tmp_path, without_page):
    def full(*_):
        raise UserError("cannot write somewhere: No space left on device; make room")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "add", full)
        code, told = sweep(monkeypatch, tmp_path, *GRID)
    assert code == 1
    assert told.startswith("error: cannot write somewhere: No space left on device; make room")
    assert sweep(monkeypatch, tmp_path, *GRID)[0] == 0
    assert same(tmp_path) == whole


@pytest.mark.slow("three sweeps; test_each_obstacle_is_named has the reasons")
def test_what_cannot_be_stacked_runs_alone_and_says_why(monkeypatch, tmp_path, without_page):
    overrides = ("optimizer=sgd,adam,lbfgs", "seed=0,1", "trainer.max_epochs=4", "logger=none")
    code, said = sweep(monkeypatch, tmp_path, *overrides)
    assert code == 0, said
    assert "one by one  2 jobs: optimizer is linear_lab.models.lbfgs.LBFGS" in said
    assert record(tmp_path / "outputs/sweeps/study/lbfgs-seed=0")["status"] == "completed"
    assert set(rows(tmp_path)) == {f"{kind}-seed={seed}" for kind in ("sgd", "adam") for seed in (0, 1)}
    checkpoint = tmp_path / "outputs/sweeps/study/lbfgs-seed=0/checkpoints/last.ckpt"
    code, said = sweep(monkeypatch, tmp_path, f"ckpt_path={checkpoint}", *overrides[1:], name="started")
    assert code == 0, said
    assert f"one by one  2 jobs: ckpt_path={checkpoint}" in said
    code, said = sweep(monkeypatch, tmp_path, "optimizer.lr=0.1,-1,0.05", *overrides[2:], name="wrong")
    assert code == 1
    assert "failed  sgd-lr=-1: optimizer: lr must be a positive number, got -1" in said
    assert "one by one  1 job: optimizer.lr=-1" in said
    assert "3 jobs: 2 completed, 1 failed" in said


@pytest.mark.slow("like test_agrees_with_single_training[plateau]")
def test_jobs_of_a_stack_have_tags(monkeypatch, tmp_path, without_page):
    typed = ("optimizer.lr=0.1,0.05", "seed=0,1", "trainer.max_epochs=4", "logger.tensorboard.pictures=false")
    code, said = sweep(monkeypatch, tmp_path, *typed, "tags=[a,b]", "hydra.launcher.keep=1")
    assert code == 0, said
    assert "one by one" not in said
    assert re.search(r"rank +lr +seed +tags +val/loss", said)
    assert {row["job"]["tags"] for row in rows(tmp_path).values()} == {"a, b"}
    folder = tmp_path / "outputs/sweeps/study"
    shown = [path.parent for path in folder.glob("**/events.out.tfevents.*.start")]
    assert len(shown) == 4
    assert {cells(path)["tags"] for path in shown} == {"a, b"}
    before = results.read_results(folder)
    code, said = sweep(monkeypatch, tmp_path, *typed, "tags=[c]", "hydra.launcher.keep=1")
    assert code == 0, said
    assert results.read_results(folder).equals(before)


class WithDropout(SupervisedModule):
    """A network that draws random numbers, or one that keeps running means."""

    def __init__(self, in_features, out_features, norm=False, bias=True, weight=None, **training):
        layer = nn.BatchNorm1d(in_features) if norm else nn.Dropout(0.5)
        super().__init__(nn.Sequential(layer, nn.Linear(in_features, out_features)), **training)


class OwnStep(LinearModule):
    """A module with its own training step."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 2


class Custom(SupervisedModule):
    """A network that draws another random number before its layers."""

    def __init__(self, in_features, out_features, bias=True, weight=None, **training):
        scale = torch.rand(()).item()
        super().__init__(nn.Sequential(nn.Linear(in_features, 3), nn.Tanh(), nn.Linear(3, out_features)), **training)
        with torch.no_grad():
            self.network[0].weight.mul_(scale)


class PlainLinear(SupervisedModule):
    """A network like that of LinearModule."""

    def __init__(self, in_features, out_features, bias=True, weight=None, **training):
        super().__init__(nn.Linear(in_features, out_features), **training)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("WithDropout,+model.norm=true", "its model cannot be vectorized"),
        *slow(
            "one obstacle is quick",
            ("WithDropout", "its model cannot be vectorized"),
            ("OwnStep", "OwnStep has a training_step of its own"),
            several=True,
        ),
    ],
)
def test_networks_that_cannot_be_vectorized_run_alone(model, reason, monkeypatch, tmp_path, without_page):
    target, *more = model.split(",")
    given = (f"model._target_={__name__}.{target}", *more, "seed=0,1", "trainer.max_epochs=3", "logger=none")
    code, said = sweep(monkeypatch, tmp_path, *given)
    assert code == 0, said
    assert f"one by one  2 jobs: {reason}" in said
    assert len(list(tmp_path.glob("outputs/sweeps/study/*/result.json"))) == 2


@pytest.mark.parametrize("model", ["Custom", *slow("Custom has more layers", "PlainLinear")])
@pytest.mark.slow("like test_a_changed_config_is_refused_where_a_stack_was_trained")
def test_a_network_of_ones_own_is_stacked(model, monkeypatch, tmp_path, without_page):
    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{x},{3 * x + 20}\n" for x in range(40)))
    given = (f"model._target_={__name__}.{model}", "seed=0,1,2", "trainer.max_epochs=20", "optimizer.lr=0.01,0.02",
        "logger=none", "data=table", f"data.path={tmp_path / 'rows.csv'}", "data.y=y")  # fmt: skip
    for launch in ("stacked", "local"):
        code, said = sweep(monkeypatch, tmp_path / launch, *given, launch=launch)
        assert (code, "one by one" in said) == (0, False), said
    for name, ours in rows(tmp_path / "stacked").items():
        one = vector(ours["parameters"])
        other = vector(record(tmp_path / "local/outputs/sweeps/study" / name)["parameters"])
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("callbacks=early_stopping", "callbacks.early_stopping"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2"),
        ("trainer.devices=2", "trainer.devices=2"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed"),
        ("console.steps=2", "console.steps=2"),
        ("+optimizer.foreach=true", "optimizer.foreach"),
        ("+loss.weight=[1,2]", "loss.weight"),
        ("loss._target_=torch.nn.SmoothL1Loss", "loss is torch.nn.SmoothL1Loss"),
        ("seed=-1", "seed=-1"),
        ("optimizer.nesterov=true", "Nesterov momentum requires a momentum and zero dampening"),
        ("trainer.strategy=ddp", "trainer.strategy=ddp"),
        ("trainer.max_epochs=0", "it trains for no step"),
        ("trainer.max_epochs=-1", "it trains without a limit"),
        ("trainer.check_val_every_n_epoch=null", "trainer.check_val_every_n_epoch=null"),
        ("scheduler=plateau", None),
        ("trainer.max_steps=3", None),
        ("data.batch_size=2", None),
        ("logger=none", None),
        ("model=mlp", None),
    ],
)
def test_each_obstacle_is_named(override, reason):
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [override])
    assert next(obstacles(OmegaConf.to_container(cfg, resolve=True)), None) == reason


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("loss.delta=0.5,2", "loss.delta=-1", "huber_loss does not support non-positive values for delta"),
        ("model.weight=1,2", "model.weight=[[1,2]]", "weight has shape (1, 2)"),
        *slow(
            "two mistakes are quick",
            ("scheduler.step_size=5,10", "scheduler.step_size=0", "step_size must be a whole number"),
            ("data.order_seed=0,1", "data.order_seed=abc", "order_seed"),
            ("trainer.max_epochs=4,5", "trainer.max_epochs=0", None),
            several=True,
        ),
    ],
)
def test_a_bad_job_fails_alone(good, bad, said, monkeypatch, tmp_path, without_page):
    groups = ["loss=huber"] if "loss" in good else ["scheduler=step"] if "step" in good else []
    values = f"{good},{bad.partition('=')[2]}"
    epochs = [] if "epochs" in good else ["trainer.max_epochs=4"]
    overrides = [*groups, values, "seed=0,1", *epochs, "logger=none", "data.batch_size=2"]
    code, told = sweep(monkeypatch, tmp_path, *overrides)
    assert code == (1 if said else 0), told
    assert {row["status"] for row in rows(tmp_path).values()} == {"completed"}
    assert len(rows(tmp_path)) == 4
    if said:
        found = [record(path.parent) for path in tmp_path.glob("outputs/sweeps/study/*/result.json")]
        assert [one["status"] for one in found] == ["failed"] * 2
        assert all(said in one["error"] for one in found), found


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ("keep=-1", "must be a whole number of at least 0"), ("rows=x", "must be a whole number of at least 0"),
        ("memory=no", "must be a whole number of at least 1"), ("history=-2", "must be a whole number of at least 0"),
        ("limit=0", "must be a whole number of at least 1"), ("compile=maybe", "choose auto, true or false"),
    ],
)  # fmt: skip
def test_what_the_launcher_refuses(wrong, remedy, monkeypatch, tmp_path):
    code, said = sweep(monkeypatch, tmp_path, "seed=0,1", f"hydra.launcher.{wrong}")
    assert code == 1
    assert f"error: hydra.launcher.{wrong}: {remedy}" in said


def test_memory_bounds_a_stack():
    data = SyntheticData(samples=10_000, features=3)
    data.setup()
    for module in (LinearModule(3, 1), MLPModule(3, 1, hidden=[50])):
        rule, loss = RULES["torch.optim.SGD"], LOSSES["torch.nn.MSELoss"][0]
        plan = step.StackSpec(module, data, rule, {}, loss, "", "min", 1, 1, 1)
        small, large = (step.capacity(plan, size << 20, 10**6) for size in (1000, 10_000))
        assert 1 <= small < large
        assert large == pytest.approx(10 * small, rel=0.6)
        assert step.capacity(plan, 1, 10**6) < 1


def test_jobs_for_which_memory_is_missing_run_alone(monkeypatch, tmp_path, without_page):
    given = ("data=synthetic", "data.samples=60000", "data.features=8", "seed=0,1", "trainer.max_epochs=2",
        "logger=none", "hydra.launcher.memory=1")  # fmt: skip
    code, said = sweep(monkeypatch, tmp_path, *given)
    assert code == 0, said
    assert "one by one  2 jobs: hydra.launcher.memory has room for one model only" in said


@pytest.mark.slow("like test_data_that_have_changed_are_not_mixed_with_what_was_trained_on_others")
def test_data_that_are_not_there_fail_each_job(monkeypatch, tmp_path, without_page):
    grid = ("data=table", "data.path=no.csv", "data.y=[y]", "seed=0,1")
    code, said = sweep(monkeypatch, tmp_path, *grid)
    assert code == 1
    assert said.count("no.csv: the file is not there; check the path") >= 2
    assert [row["status"] for row in rows(tmp_path).values()] == ["failed", "failed"]
    (tmp_path / "no.csv").write_text("x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(20)))
    code, said = sweep(monkeypatch, tmp_path, *grid, "trainer.max_epochs=10")
    assert code == 0, said
    assert [row["status"] for row in rows(tmp_path).values()] == ["completed", "completed"]


def test_fail_fast_ends_a_stack_at_its_first_job(monkeypatch, tmp_path, without_page):
    grid = ("data=table", "data.path=no.csv", "data.y=[y]", "seed=range(4)", "fail_fast=true")
    code, said = sweep(monkeypatch, tmp_path, *grid)
    assert code == 1
    assert list(rows(tmp_path)) == ["sgd-seed=0"]
    assert "4 jobs: 1 failed, 3 waiting" in said


def test_trials_that_a_search_draws_together_are_stacked(monkeypatch, tmp_path, without_page):
    search = ("sweep=search", "optimizer=sgd", "hydra.sweeper.trials=6", "hydra.sweeper.at_once=3")
    code, said = sweep(monkeypatch, tmp_path, *search, "hydra.sweeper.prune=false", "trainer.max_epochs=5")
    assert code == 0, said
    assert len(rows(tmp_path)) == 6


def test_history_keeps_losses_and_parameters_of_some_steps(monkeypatch, tmp_path, without_page):
    given = ("optimizer.lr=0.01,0.05", "seed=0,1", "trainer.max_epochs=40", "hydra.launcher.history=5")
    code, said = sweep(monkeypatch, tmp_path, *given)
    assert code == 0, said
    found = pl.read_parquet(tmp_path / "outputs/sweeps/study/history.parquet")
    assert found["step"].unique(maintain_order=True).to_list() == [0, 10, 20, 30, 40]
    assert len(found) == 4 * 5
    for name, row in rows(tmp_path).items():
        mine = found.filter(pl.col("name") == name)
        assert mine["parameters"][-1] == row["parameters"]
        assert mine["train/loss"][0] == row["initial"]["train/loss"]
        assert mine["train/loss"][-1] == row["metrics"]["train/loss"]
        x = torch.tensor([1.0, 2, 3, 4])
        weight, bias = mine["parameters"][2]["weight"][0][0], mine["parameters"][2]["bias"][0]
        assert mine["train/loss"][2] == pytest.approx((weight * x + bias - 2 * x).square().mean().item(), rel=1e-4)
    more = ("hydra.launcher.history=100000", "hydra.launcher.memory=1")
    code, said = sweep(monkeypatch, tmp_path, *given[:3], *more, name="long")
    assert code == 1
    assert "hydra.launcher.history=100000: the history of 4 jobs takes" in said


def test_what_asks_for_a_run_folder_names_the_command_that_makes_one(monkeypatch, tmp_path, without_page):
    assert sweep(monkeypatch, tmp_path, "optimizer.lr=0.01,0.05", "trainer.max_epochs=5")[0] == 0
    folder = "outputs/sweeps/study/sgd-lr=0.05"
    for command_of, key in ((evaluate_entry, "run"), (predict_entry, "run"), (export_entry, "run"), (entry, "resume")):
        more = ["x=[1]"] if command_of is predict_entry else []
        code, _, errors = command(command_of, f"{key}={folder}", *more)
        assert code == 1
        assert f"{folder}: this job was trained in a stack, which leaves no run folder; train it alone: " in errors
        assert errors.rstrip().endswith("-m linear_lab.train optimizer.lr=0.05 trainer.max_epochs=5")
    code, _, errors = command(evaluate_entry, "run=outputs/sweeps/study/nowhere")
    assert "there is no such folder" in errors


@pytest.mark.slow("like test_ctrl_c_while_the_best_are_trained_alone")
def test_the_best_are_trained_alone(monkeypatch, tmp_path, without_page):
    given = ("optimizer.lr=0.01,0.02,0.05", "seed=0,1", "trainer.max_epochs=30", "hydra.launcher.keep=2")
    code, said = sweep(monkeypatch, tmp_path, *given)
    assert (code, "differs" in said) == (0, False), said
    folder, found = tmp_path / "outputs/sweeps/study", rows(tmp_path)
    best = sorted(found, key=lambda name: found[name]["metrics"]["val/loss"])
    alone = {path.parent.name for path in folder.glob("*/result.json")}
    assert alone == set(best[:2])
    assert {path.name for path in (folder / "_rows").iterdir()} == set(best[2:])
    for name in alone:
        assert (folder / name / "checkpoints/best.ckpt").exists()
        assert record(folder / name)["job"] == found[name]["job"]
        code, out, _ = command(evaluate_entry, f"run={folder / name}")
        assert code == 0
        assert "differ from the recorded digits" not in out
    stamps = {name: (folder / name / "result.json").stat().st_mtime_ns for name in alone}
    assert sweep(monkeypatch, tmp_path, *given)[0] == 0
    assert {name: (folder / name / "result.json").stat().st_mtime_ns for name in alone} == stamps


@pytest.mark.slow("like test_ctrl_c_while_the_best_are_trained_alone")
def test_a_stack_that_learned_otherwise_than_one_run_is_told(monkeypatch, tmp_path, without_page):
    after = loop.Loop.run

    def disturbed(self, after_step):
        after(self, after_step)
        self.parameters["network.weight"] += 1e-3

    monkeypatch.setattr(loop.Loop, "run", disturbed)
    code, said = sweep(monkeypatch, tmp_path, "seed=0,1", "trainer.max_epochs=5", "hydra.launcher.keep=1")
    assert code == 0
    assert "differs  sgd-seed=" in said
    assert "more than 1e-05" in said


@pytest.mark.slow("like test_ctrl_c_while_the_best_are_trained_alone")
def test_the_winner_has_a_folder_whatever_rounding_does_to_ties(monkeypatch, tmp_path, without_page):
    given = ("model.weight=2", "model.bias=1e-8,2e-8,3e-8,4e-8,5e-8,6e-8", "trainer.max_epochs=3",
        "hydra.launcher.keep=1")  # fmt: skip
    for _ in range(2):
        code, said = sweep(monkeypatch, tmp_path, *given)
        assert code == 0, said
        folder = tmp_path / "outputs/sweeps/study"
        (alone,) = [path.parent.name for path in folder.glob("*/result.json")]
        assert (folder / "leaderboard.csv").read_text().splitlines()[1].split(",")[1] == alone


@pytest.mark.slow("like test_ctrl_c_while_the_best_are_trained_alone")
def test_a_kept_job_that_goes_on_stays_out_of_the_sweep(monkeypatch, tmp_path, without_page):
    given = ("optimizer.lr=0.01,0.05", "trainer.max_epochs=5", "hydra.launcher.keep=1")
    assert sweep(monkeypatch, tmp_path, *given)[0] == 0
    folder, before = tmp_path / "outputs/sweeps/study", rows(tmp_path)
    (alone,) = [path.parent for path in folder.glob("*/result.json")]
    assert command(entry, f"resume={alone}", "trainer.max_epochs=9")[0] == 0
    code, said = sweep(monkeypatch, tmp_path, *given)
    assert code == 0, said
    assert rows(tmp_path) == before
    assert record(alone)["steps"] == 9
    assert ",5,completed," in (folder / "leaderboard.csv").read_text().splitlines()[1]  # the results of the stack


def test_a_file_in_the_place_of_a_kept_job_is_told(monkeypatch, tmp_path, without_page):
    given = ("optimizer.lr=0.01,0.05", "trainer.max_epochs=5")
    assert sweep(monkeypatch, tmp_path, *given)[0] == 0
    (tmp_path / "outputs/sweeps/study/sgd-lr=0.05").touch()
    shutil.rmtree(tmp_path / "outputs/sweeps/study/_rows")
    (tmp_path / "outputs/sweeps/study/_rows").touch()
    code, said = sweep(monkeypatch, tmp_path, *given, "hydra.launcher.keep=1")
    assert code == 1
    assert "not trained alone  sgd-lr=0.05: FileExistsError" in said
    assert "2 jobs: 2 completed" in said
    assert [path.name for path in (tmp_path / "outputs/sweeps/study/_rows").iterdir()] == ["sgd-lr=0.05", "sgd-lr=0.01"]


def test_ctrl_c_while_the_best_are_trained_alone(monkeypatch, tmp_path, without_page):
    given = ("optimizer.lr=0.01,0.05", "trainer.max_epochs=5", "hydra.launcher.keep=2")
    train_in = sweep_job.train_in

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return train_in(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_job, "train_in", interrupted)
        code, said = sweep(monkeypatch, tmp_path, *given)
    assert code == 130
    assert "\ngo on " in said
    assert sweep(monkeypatch, tmp_path, *given)[0] == 0
    assert len(list(tmp_path.glob("outputs/sweeps/study/*/result.json"))) == 2


def test_history_is_of_the_steps_that_this_command_keeps(monkeypatch, tmp_path, without_page):
    given = ("optimizer.lr=0.01,0.05", "seed=0,1", "trainer.max_epochs=40")
    assert sweep(monkeypatch, tmp_path, *given, "hydra.launcher.history=9", name="whole")[0] == 0
    after = loop.Summary.after_step

    def interrupting(self, at, losses):
        if at == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, at, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Summary, "after_step", interrupting)
        assert sweep(monkeypatch, tmp_path, *given, "hydra.launcher.history=5")[0] == 143
    assert sweep(monkeypatch, tmp_path, *given, "hydra.launcher.history=9")[0] == 0
    found, whole = (pl.read_parquet(tmp_path / f"outputs/sweeps/{name}/history.parquet") for name in ("study", "whole"))
    assert found.equals(whole)
    code, said = sweep(monkeypatch, tmp_path, *given, "hydra.launcher.history=3")
    assert (code, "history  4 jobs ended before" in said) == (0, True)


def test_a_failed_job_and_damaged_results_are_told_where_a_run_is_asked_for(monkeypatch, tmp_path, without_page):
    assert sweep(monkeypatch, tmp_path, "data=table", "data.path=no.csv", "data.y=[y]", "seed=0,1")[0] == 1
    code, _, errors = command(evaluate_entry, "run=outputs/sweeps/study/sgd-seed=0")
    assert code == 1
    assert "this job failed: data: " in errors
    (tmp_path / "outputs/sweeps/study/results.parquet").write_bytes(b"PAR1")
    code, _, errors = command(evaluate_entry, "run=outputs/sweeps/study/sgd-seed=0")
    assert (code, errors.count("\n")) == (1, 1)
    assert "there is no such folder" in errors


def test_distance_of_parameters_by_hand():
    one, other = {"weight": [[3.0, 4.5]], "bias": None}, {"bias": None, "weight": [[3.0, 4.0]]}
    assert best_jobs.distance(one, other) == pytest.approx(0.1)


def stack(folder, *typed, compile=False, history=0, **given):
    """Train the jobs of a grid in stacks, without a command; return what trained them, and the results by job."""
    folder.mkdir(exist_ok=True)
    planned = plan.plan_jobs(combinations(*typed, "trainer.max_epochs=30", "logger=none"), composer())
    trainer = stacks.Stacks(folder, 1 << 30, compile, history, lambda *_: None)
    trainer.train(planned, composer())
    found = results.read_results(folder)
    return trainer, {} if found is None else {row["name"]: row for row in found.iter_rows(named=True)}


@pytest.mark.parametrize("scheduler", ["step", "plateau"])
def test_an_interrupted_stack_goes_on_with_its_schedule(scheduler, monkeypatch, tmp_path):
    given = (f"scheduler={scheduler}", f"scheduler.{'patience' if scheduler == 'plateau' else 'step_size'}=1",
        "optimizer=adam", "optimizer.lr=0.5,1", "trainer.check_val_every_n_epoch=3")  # fmt: skip
    _, whole = stack(tmp_path / "whole", *given)
    after, seen = loop.Summary.after_step, []

    def interrupting(self, at, losses):
        seen.append(at)
        if at == 17 == len(seen):
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, at, losses)

    monkeypatch.setattr(loop.Summary, "after_step", interrupting)
    with pytest.raises(Interrupted):
        stack(tmp_path / "cut", *given)
    _, found = stack(tmp_path / "cut", *given)  # the checkpoint has all jobs of the group
    assert seen == [*range(1, 31)]
    assert len(found) == 2
    assert {name: row["parameters"] for name, row in found.items()} == {
        n: row["parameters"] for n, row in whole.items()
    }


def test_a_signal_at_the_end_of_a_stack_keeps_its_results(monkeypatch, tmp_path):
    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return rows_of(*given)

    rows_of = stacks.rows_of
    monkeypatch.setattr(stacks, "rows_of", interrupted)
    with pytest.raises(Interrupted) as end:
        stack(tmp_path, "seed=0,1")
    assert end.value.code == 143
    assert results.read_results(tmp_path)["name"].to_list() == ["sgd-seed=0", "sgd-seed=1"]


@pytest.mark.parametrize(("compile", "notes"), [("auto", ["not compiled  no C++ compiler"]), (False, [])])
def test_a_stack_that_would_take_long_is_compiled(compile, notes, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    monkeypatch.setattr(stacks, "COMPILING", 0.0)
    trainer, found = stack(tmp_path, "seed=0,1", compile=compile)
    assert (trainer.notes, len(found)) == (notes, 2)


def test_fail_fast_skips_the_stacks_after_a_failure(tmp_path):
    _, found = stack(tmp_path, "data=table", "data.path=no.csv", "data.y=[y]", "optimizer=sgd,adam", "seed=0,1",
        "fail_fast=true")  # fmt: skip
    assert {name: row["status"] for name, row in found.items()} == {"sgd-seed=0": "failed"}


@pytest.mark.parametrize(("features", "length"), [(63, 63), (64, None)])
def test_large_models_have_no_parameters_in_the_results(features, length, tmp_path):
    _, found = stack(tmp_path, "data=synthetic", f"data.features={features}", "seed=0,1", history=2)
    history = pl.read_parquet(tmp_path / "history.parquet")
    assert [row["status"] for row in found.values()] == ["completed", "completed"]
    assert len(history) == 4
    assert history["train/loss"].is_not_null().all()
    for table in (*found.values(), *history.iter_rows(named=True)):
        assert (len(table["parameters"]["weight"][0]) if "parameters" in table else None) == length


def test_a_loss_of_the_test_part_that_overflows_is_divergence(tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"{k},{2 * k},{'val' if k % 5 == 0 else 'train'}" for k in range(20)] + ["1e25,1,test"]
    path.write_text("\n".join(["x,y,part", *lines]))
    given = ("data=table", f"data.path={path}", "data.y=[y]", "data.split=part")
    _, found = stack(tmp_path, *given, "seed=0,1")
    with pytest.raises(UserError) as single:
        train(tmp_path / "run", *given, "seed=0", "trainer.max_epochs=30", "logger=none")
    assert [row["status"] for row in found.values()] == ["diverged", "diverged"]
    stacked = found["sgd-seed=0"]
    assert stacked["metrics"]["test/loss"] is None  # as in result.json, which has no infinity
    assert stacked["error"].replace("test/loss nan", "test/loss inf") == str(single.value)


class SeedOneFails(Custom):
    """A network that cannot be built from some random numbers."""

    def __init__(self, in_features, out_features, **more):
        if (number := torch.rand(()).item()) > 0.7:
            raise ValueError(f"{number:.2f} is too large")
        super().__init__(in_features, out_features, **more)


class Undefined(PlainLinear):
    """A network with a mistake in its code."""

    def __init__(self, in_features, out_features, **more):
        super().__init__(in_features, out_features, **more)
        self.networks.train()


class WithMetric(PlainLinear):
    """A network with a metric of torchmetrics."""

    def __init__(self, in_features, out_features, **more):
        super().__init__(in_features, out_features, **more, metrics={"error": MeanAbsoluteError()})


class Points(LightningDataModule):
    """Data of a user, four points on a line."""

    def setup(self, stage):
        x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        self.rows = DataLoader(TensorDataset(x, 2 * x), 4)

    def train_dataloader(self):
        return self.rows

    val_dataloader = train_dataloader


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("model._target_={here}.SeedOneFails", "seed=0,1"), "model: 0.76 is too large"),
        (("model._target_={here}.Undefined",), "'Undefined' object has no attribute 'networks'"),
        (("model._target_={here}.WithMetric",), "WithMetric has metrics of its own"),
        (("metric=null",), "metric is null"),
        (
            ("model._target_={here}.PlainLinear", "+model.in_features=1", "+model.out_features=1",
            "data={{_target_:{here}.Points}}"),
            "data are Points, which is not a LinearData",
        ),
        (("model.bias=true,false", "seed=0"), "no other job differs from it in numbers alone"),
        (("optimizer.lr=-1,-2", "seed=0"), "optimizer.lr="),
        (("optimizer.nesterov=true", "optimizer.momentum=0,-1", "seed=0"), "optimizer.momentum="),
    ],
)  # fmt: skip
def test_jobs_that_cannot_share_a_stack_are_told(given, reason, tmp_path):
    typed = [item.format(here=__name__) for item in given]
    trainer, found = stack(tmp_path, *([] if typed[-1].startswith("seed=") else ["seed=0,2"]), *typed)
    assert found == {}
    assert len(trainer.not_stacked) == 2
    assert all(told.startswith(reason) for told in trainer.not_stacked.values()), trainer.not_stacked


def test_a_job_without_momentum_is_not_stacked_where_nesterov_wants_it(tmp_path):
    trainer, found = stack(tmp_path, "optimizer.nesterov=true", "optimizer.momentum=0.5,0.9,0")
    assert set(found) == {"sgd-momentum=0.5", "sgd-momentum=0.9"}
    assert trainer.not_stacked == {"sgd-momentum=0": "optimizer.momentum=0"}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("model._target_=linear_lab.models.Missing",), "model: Error loading 'linear_lab.models.Missing'"),
        (("scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"),
            "scheduler is torch.optim.lr_scheduler.OneCycleLR"),
        (("~callbacks.checkpoints",), "callbacks without checkpoints"),
    ],
)  # fmt: skip
def test_more_obstacles_are_named(overrides, reason):
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides))
    assert next(obstacles(OmegaConf.to_container(cfg, resolve=True)), "").startswith(reason)


def test_values_with_other_keys_do_not_share_a_stack():
    codes, betas, bias = np.array([0, 1]), ("optimizer", "betas"), ("model", "bias")
    columns = stackable.as_columns([[0.8, 0.9], [0.5, 0.99]], codes, [betas], ())
    assert {path: column.values for path, column in columns.items()} == {
        (*betas, "0"): [0.8, 0.5], (*betas, "1"): [0.9, 0.99]
    }  # fmt: skip
    assert stackable.as_columns([[0.8, 0.9], [0.5]], codes, [betas], ()) == {}
    assert stackable.as_columns([True, 2.0], codes, [bias], (bias,))[bias].values == [True, 2.0]
    assert stackable.as_columns([True, False], codes, [bias], (bias,)) == {}


def test_limits_of_epochs_and_steps_are_those_of_lightning():
    without = 1 << 62
    limits = {(None, None): (1000, without), (None, -1): (1000, without), (None, 30): (without, 30),
        (-1, 30): (without, 30), (7, -1): (7, without), (7, 30.5): (7, 30)}  # fmt: skip
    for (epochs, steps), expected in limits.items():
        assert step.epoch_and_step_limits({"max_epochs": epochs, "max_steps": steps}) == expected


@pytest.mark.parametrize(("kind", "arguments"), OPTIMIZERS)
def test_buffers_are_those_of_torch(kind, arguments):
    for own in arguments:
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.ones(1)
        optimizer = kind([parameter], **own)
        optimizer.step()
        buffers = {name for name, value in optimizer.state[parameter].items() if value is not None} - {"step"}
        rule, group = RULES[f"torch.optim.{kind.__name__}"], optimizer.param_groups[0]
        modes = {name: group.get(name, False) for name in MODES}
        assert {*rule.state(modes, as_columns([group], rule.numbers))} == buffers


def test_any_finite_dampening_is_within_its_bounds():
    values = torch.tensor([-1e9, -1.0, 0.0, 1.0, 1e9, torch.inf, -torch.inf, torch.nan])
    assert within(values, *BOUNDS["dampening"]).tolist() == [True] * 5 + [False] * 3


def test_which_numbers_of_a_loss_may_differ_within_a_stack():
    assert stackable.is_number(("loss", "delta"), [0.5, 2])
    assert not stackable.is_number(("loss", "delta"), [0.5, "2"])
    assert not stackable.is_number(("loss", "ignore_index"), [0, 1])
