"""Decides which jobs of a sweep can be trained together in a stack, and why the others cannot."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf

from linear_lab import CONF, UserError
from linear_lab.fitting.build import class_of
from linear_lab.fitting.checks import check, within
from linear_lab.models import LinearModule, SupervisedModule
from linear_lab.runs.fingerprints import Path, leaves
from linear_lab.stacked import losses, optimizers, schedules
from linear_lab.stacked.columns import ORDER, SEED, Array, Column, Group, distinct, with_values
from linear_lab.sweep.composer import Composer
from linear_lab.sweep.plan import COLUMNS, Part, factorize, split_by_shape
from linear_lab.text import first_line

LINEAR = "linear_lab.models.linear.LinearModule"
START = (("model", "weight"), ("model", "bias"))  # the initial parameters of LinearModule
CALLBACKS = ("linear_lab.runs.checkpoints.SaveCheckpoints",)
# keys of the trainer that stacked training supports: those with the listed values only, and those with any value
TRAINER = {"devices": (1,), "precision": (None, 32, 64, "32", "64", "32-true", "64-true")}
TRAINER_ANY = {"accelerator", "max_epochs", "min_epochs", "max_steps", "min_steps", "check_val_every_n_epoch"}


def groups(planned: pl.DataFrame, composer: Composer) -> tuple[list[Group], dict[str, str]]:
    """Sort planned jobs into groups that are trained together; also return, by name, why other jobs are in no group."""
    typed = planned.drop(COLUMNS).with_row_index("_at")
    stackable: list[Group] = []
    alone: dict[str, str] = {}
    for part in split_by_shape(typed, composer):
        for group in split(part, planned, composer):
            reasons = refusals(group)
            fits = reasons == ""
            if fits.sum() == 1:
                reasons[fits] = "no other job differs from it in numbers alone"
            elif fits.any():
                stackable.append(group.only(np.flatnonzero(fits)))
            refused = np.flatnonzero(reasons != "")
            alone |= dict(zip(group.rows["name"][refused].to_list(), reasons[refused].tolist(), strict=True))
    return stackable, alone


def split(part: Part, planned: pl.DataFrame, composer: Composer) -> Iterator[Group]:
    """Split jobs whose configs have the same keys into groups that differ in numbers alone."""
    linear = (("model", "_target_"), LINEAR) in part.places.fixed
    columns: dict[Path, Column] = {}
    dividing = []
    for key, paths in part.places.of_key.items():
        texts, codes = factorize(part.rows[key])
        if len(texts) > 1:
            of_key = as_columns([composer.value(key, text) for text in texts], codes, paths, START if linear else ())
            columns |= of_key
            dividing += [key] * (not of_key)
    rows = planned[part.rows["_at"]]
    for piece in part.rows.partition_by(dividing, maintain_order=True) if dividing else [part.rows]:
        first = piece.row(0, named=True)
        config = composer([*part.fixed, *(f"{key}={first[key]}" for key in part.places.of_key)])
        which = np.searchsorted(part.rows["_at"].to_numpy(), piece["_at"].to_numpy())
        yield Group(rows, config, columns).only(which)


def as_columns(values: list[Any], codes: Array, paths: list[Path], starts: tuple[Path, ...]) -> dict[Path, Column]:
    """Return the columns for the distinct values of a key; {} if the values must not differ within a stack."""
    columns: dict[Path, Column] = {}
    for path in paths:
        if path in starts:
            if any(value is False for value in values):
                return {}
            columns[path] = Column(values, codes)
            continue
        parts = [dict(leaves(value, path)) for value in values]
        if any(part.keys() != parts[0].keys() for part in parts):
            return {}
        for leaf in parts[0]:
            of_leaf = [part[leaf] for part in parts]
            if not is_number(leaf, of_leaf):
                return {}
            columns[leaf] = Column(of_leaf, codes)
    return columns


def is_number(path: Path, values: list[Any]) -> bool:
    """Return whether the values of a leaf are numbers that may differ within a stack."""
    if any(type(value) not in (int, float) for value in values):
        return False
    if path[0] == "optimizer":
        return path[1] in {name.partition(".")[0] for rule in optimizers.RULES.values() for name in rule.numbers}
    if path[0] == "loss":
        return path[1] in losses.BOUNDS
    return path[0] == "scheduler" or path in (SEED, ORDER)


def refusals(group: Group) -> Array:
    """Return why each job of a group is trained alone, ``(J,)``; an empty string for jobs that can be stacked."""
    reasons = np.full(len(group.rows), "", object)
    for path, column in group.columns.items():
        for code, value in enumerate(column.values):
            if not in_bounds(path, value, group.config):
                reasons[column.codes == code] = f"{'.'.join(path)}={value}"
    for scheduler, which in distinct(group, "scheduler"):
        if reason := refused_by_class(group.config | {"scheduler": scheduler}):
            reasons[which] = reason
    fits = np.flatnonzero(reasons == "")
    if len(fits):
        values = {path: column.values[column.codes[fits[0]]] for path, column in group.columns.items()}
        if reason := next(obstacles(with_values(group.config, values)), None):
            reasons[fits] = reason
    return reasons


def in_bounds(path: Path, value: Any, config: dict[str, Any]) -> bool:
    """Return whether a number that differs within a group is in the range that its class accepts."""
    if path in (SEED, ORDER):
        return type(value) is int and 0 <= value < 2**32
    bounds = {"optimizer": optimizers.BOUNDS, "loss": losses.BOUNDS}.get(path[0], {})
    name = ".".join(path[1:])
    if name == "momentum" and config["optimizer"].get("nesterov") and not value > 0:
        return False
    return name not in bounds or bool(within(float(value), *bounds[name]))


def obstacles(config: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of a config that stacked training does not support."""
    try:
        model = class_of(OmegaConf.create(config), "model", LightningModule)
    except UserError as error:  # trained alone, the job fails with this error
        yield str(error)
    else:
        if not issubclass(model, SupervisedModule):
            yield f"{model.__name__} is not a SupervisedModule"
    optimizer, scheduler, loss, trainer = (config[name] for name in ("optimizer", "scheduler", "loss", "trainer"))
    rule, form = optimizers.RULES.get(optimizer["_target_"]), losses.LOSSES.get(loss["_target_"])
    if rule is None:
        yield f"optimizer is {optimizer['_target_']}"
    else:
        names = {name.partition(".")[0] for name in rule.numbers}
        yield from (f"optimizer.{key}" for key in optimizer if key not in {"_target_", *names, *optimizers.MODES})
    if form is None:
        yield f"loss is {loss['_target_']}"
    else:
        yield from (f"loss.{key}" for key in loss if key not in {"_target_", *form[1]})
    if scheduler and scheduler["_target_"] not in (*schedules.AFFINE, schedules.PLATEAU):
        yield f"scheduler is {scheduler['_target_']}"
    callbacks = {name: callback for name, callback in config["callbacks"].items() if callback}
    yield from (f"callbacks.{name}" for name, callback in callbacks.items() if callback["_target_"] not in CALLBACKS)
    if not callbacks.keys() >= defaults("callbacks/default").keys():
        yield "callbacks without checkpoints"
    for key, value in trainer.items():
        allowed = TRAINER.get(key, (defaults("trainer/auto").get(key),))
        if key not in TRAINER_ANY and value not in allowed:
            yield f"trainer.{key}={value}"
    for key, value in (("ckpt_path", config.get("ckpt_path")), ("console.steps", config["console"].get("steps"))):
        if value:
            yield f"{key}={value}"
    if trainer["check_val_every_n_epoch"] is None:
        yield "trainer.check_val_every_n_epoch=null"
    for path, value in ((SEED, config["seed"]), (ORDER, config["data"].get("order_seed", 0))):
        if not in_bounds(path, value, config):
            yield f"{'.'.join(path)}={value}"
    if refusal := refused_by_class(config):
        yield refusal
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    if 0 in (epochs, steps):
        yield "it trains for no step"
    if epochs == -1 and steps in (-1, None):
        yield "it trains without a limit"


@functools.cache
def defaults(name: str) -> dict[str, Any]:
    """Read a file of conf/."""
    return dict(yaml.safe_load((CONF / f"{name}.yaml").read_text()))


def refused_by_class(config: dict[str, Any]) -> str | None:
    """Return the error that `check`, or a class of optimizer, scheduler or loss, raises for a config; None if none."""
    target = torch.zeros(1, dtype=torch.long) if "CrossEntropy" in config["loss"]["_target_"] else torch.zeros(1, 1)
    specs: dict[str, Any] = {name: config[name] or None for name in ("optimizer", "scheduler", "loss")}
    try:
        check(OmegaConf.create(config))
        module = LinearModule(1, 1, **specs)
        module.configure_optimizers()
        module.loss(torch.zeros(1, 1), target)  # some losses check their arguments only when called
    except Exception as error:  # whatever it is, the job fails with it when trained alone
        return first_line(error)
    return None
