"""Many runs trained as columns: the numbers of one run, a table, and what faults leave."""

import json
import os
import random
import shutil
import signal
import time

import hydra
import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from runs import command, record
from test_sweep import end, fork
from torch import nn
from torch.func import vmap
from torch.optim import SGD, Adam, AdamW, RMSprop

from linear_lab import CONF, UserError, cli, files
from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import predict as predict_entry
from linear_lab import train as entry
from linear_lab.data import SyntheticData
from linear_lab.models import LinearModule, MLPModule, SupervisedModule
from linear_lab.stacked import loop
from linear_lab.stacked.losses import LOSSES
from linear_lab.stacked.optimizers import MODES, OPTIONAL, RULES, within
from linear_lab.sweep import kept, page, results, stacks
from linear_lab.sweep.grouping import obstacles

OPTIMIZERS = [
    (SGD, [{"lr": 0.1}, {"lr": 0.05}]),
    (SGD, [{"lr": 0.1}, {"lr": 0.05, "momentum": 0.9}]),
    (SGD, [{"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "dampening": 0.2}, {"lr": 0.1, "dampening": 0.5}]),
    (SGD, [{"lr": 0.1, "momentum": m, "nesterov": True, "weight_decay": decay} for m, decay in ((0.9, 0), (0.5, 0.3))]),
    (Adam, [{"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.1, "eps": 1e-5}]),
    (Adam, [{"lr": 0.1, "amsgrad": True, "maximize": True}, {"lr": 0.01, "amsgrad": True, "maximize": True}]),
    (AdamW, [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.0}]),
    (RMSprop, [{"lr": 0.01}, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}]),
    (RMSprop, [{"lr": 0.01, "centered": True}, {"lr": 0.02, "centered": True, "alpha": 0.5}]),
]  # fmt: skip


def as_columns(groups, names):
    """The numbers of several optimizers by name, (J,) each, as a stack has them."""
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
    for step in range(500):
        noise = torch.randn(start.shape, dtype=dtype, generator=generator)
        for parameter, optimizer, values in zip(alone, optimizers, noise, strict=True):
            parameter.grad = 2 * parameter.detach() + parameter.detach().sin() + values
            optimizer.step()
            if step == 250:
                optimizer.param_groups[0]["lr"] /= 2
        n = {k: v.to(dtype) for k, v in rule.derive(numbers, torch.tensor(step + 1.0, dtype=torch.float64)).items()}
        gradient = 2 * together + together.sin() + noise
        together, state = vmap(lambda p, g, s, n: rule.update(p, g, s, n, modes))(together, gradient, state, n)
        if step == 250:
            numbers["lr"] = numbers["lr"] / 2
    exact = {} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}  # powers of beta round in another way
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
    from linear_lab.stacked.optimizers import BOUNDS

    for name, kind in kinds.items():
        for value in (-1.0, -1e-9, 0.0, 0.5, 1.0, 2.0):
            parameters = [torch.zeros(1, requires_grad=True)]
            given = {"betas": (value, 0.9) if name == "betas.0" else (0.9, value)} if "betas" in name else {name: value}
            try:
                kind(parameters, lr=0.1, **given)
                taken = True
            except ValueError:
                taken = False
            assert bool(within(torch.tensor(value), *BOUNDS[name])) == taken, (name, value)


def sweep(monkeypatch, folder, *overrides, launch="stacked", name="study"):
    """Sweep in a folder as the working one; its exit code and what it said."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    keep = ("hydra.launcher.keep=0",) if launch == "stacked" and not any("keep" in item for item in overrides) else ()
    code, out, errors = command(entry, "-m", f"launch={launch}", f"name={name}", *keep, *overrides)
    return code, errors + out


def rows(folder, name="study"):
    """The results of a sweep's stacks, by job."""
    found = results.read_results(folder / "outputs/sweeps" / name)
    return {row["name"]: row for row in found.iter_rows(named=True)}


@pytest.fixture
def without_page(monkeypatch):
    """Leave out the pictures of the sweep's page, which take longest."""
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
    """All numbers of a record's parameters."""
    given = [np.ravel(values) for _, values in sorted(parameters.items()) if values is not None]
    return np.concatenate(given).astype(float)


CONVERGED = "sgd, converged"  # to where rounding, another one on each processor, decides the best step
MLP = ("model=mlp", "model.hidden=[5]", "data=synthetic", "data.samples=60", "data.features=2")
CASES = {
    "sgd": ("optimizer.momentum=0,0.9", "optimizer.lr=0.0002,0.0005", "seed=0,1", "optimizer.weight_decay=0,0.1",
        "data=synthetic", "data.samples=100"),
    CONVERGED: ("optimizer.momentum=0,0.9", "optimizer.lr=0.01,0.1", "seed=0,1", "optimizer.weight_decay=0,0.1"),
    "dampening": ("+optimizer.dampening=0.3", "optimizer.momentum=0.5,0.9", "optimizer.lr=0.01,0.02"),
    "nesterov": ("optimizer.nesterov=true", "optimizer.momentum=0.5,0.9", "data.batch_size=2", "seed=1,2"),
    "adam": ("optimizer=adam", "optimizer.lr=0.01,0.1", "data=toy_classes", "loss=cross_entropy", "data.batch_size=32",
        "loss.label_smoothing=0,0.1", "metric=val/accuracy", "mode=max"),
    "amsgrad": ("optimizer=adam", "+optimizer.amsgrad=true", "optimizer.lr=0.01,0.1", "seed=0,1"),
    "a reference": ("optimizer=adam", "optimizer.betas=[0.8,'${optimizer.lr}']", "optimizer.lr=0.5,0.9"),
    "betas": ("optimizer=adam", "optimizer.betas=[0.8,0.9],[0.5,0.99]", "optimizer.lr=0.05"),
    "adamw": ("optimizer=adamw", "data=table", "data.path=rows.csv", "data.y=[y]", "optimizer.lr=0.01,0.1",
        "data.batch_size=20", "seed=0,1"),
    "double": ("optimizer=adam,sgd", "trainer.precision=64-true", "optimizer.lr=0.01,0.02", "seed=0,1",
        "data.batch_size=3"),
    "double, full batch": ("optimizer=rmsprop,adamw", "trainer.precision=64-true", "optimizer.lr=0.01,0.02", "seed=0,1"),
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
        "model.bias=false", "trainer.max_steps=33", "scheduler=step", "scheduler.step_size=5,7", "logger=none"),
    "several starts": ("model.weight=0.5,null", "model.bias=true,2", "seed=0,1"),
    "mlp": (*MLP, "optimizer=adam,sgd", "optimizer.lr=0.01,0.03", "seed=0,1"),
    "mlp, batches": (*MLP, "model.activation=relu", "optimizer=sgd", "optimizer.lr=0.01,0.03", "optimizer.momentum=0,0.5",
        "data.batch_size=8", "seed=0,1"),
    "mlp, double": (*MLP, "trainer.precision=64-true", "optimizer=adamw", "optimizer.lr=0.01,0.03", "data.batch_size=8",
        "seed=0,1"),
    "mlp, classes": ("model=mlp", "model.hidden=[4]", "data=toy_classes", "loss=cross_entropy", "optimizer=adam", "optimizer.lr=0.01,0.03",
        "metric=val/accuracy", "mode=max"),
}  # fmt: skip
EPOCHS = {"sgd": 500, CONVERGED: 500, "adam": 100, "double": 160}
ALIKE = ("status", "seed", "steps", "config_hash", "excess_loss", "metrics", "stable_lr", "rows")


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_single_training(case, monkeypatch, tmp_path, without_page):
    random_rows = np.random.default_rng(0)
    x = random_rows.normal(5, 3, (60, 3))
    table = np.c_[x, x @ [1, 2, -3] + 4 + random_rows.normal(0, 0.1, 60)]
    np.savetxt(tmp_path / "rows.csv", table, delimiter=",", header="a,b,c,y", comments="")
    path = str(tmp_path / "rows.csv")
    overrides = [o.replace("rows.csv", path) for o in CASES[case]] + [f"trainer.max_epochs={EPOCHS.get(case, 60)}"]
    for launch in ("stacked", "local"):
        pictures = ["logger.pictures=false"] if "logger=none" not in overrides else []
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
