"""Builds the data, model, reference and trainer of a config, and refuses values that do not fit together."""

import inspect
import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf
from torch import nn

from linear_lab import UserError
from linear_lab.config import as_dict
from linear_lab.data import LinearData
from linear_lab.fitting.checks import check_length, data_errors, user_errors
from linear_lab.fitting.seeding import seed_all
from linear_lab.models import SupervisedModule
from linear_lab.terminal.layout import names
from linear_lab.theory.reference import Reference, reference

for name in ("lightning", "lightning.pytorch", "lightning.fabric"):  # these handlers print tips on the terminal
    logging.getLogger(name).handlers.clear()
    logging.getLogger(name).propagate = True  # all messages go to train.log

TRAINING = ("loss", "optimizer", "scheduler")

T = TypeVar("T")


def build(cfg: DictConfig) -> tuple[LightningDataModule, LightningModule]:
    """Build data and model; ``model.metric`` is the metric that decides which weights are best."""
    data = build_data(cfg)
    return data, build_model(with_measured_metric(cfg, data), data)


def is_double(cfg: DictConfig) -> bool:
    """Tell whether a run computes in float64."""
    return str(cfg.trainer.precision) in ("64", "64-true")


def class_of(cfg: DictConfig, group: str, kind: type[T]) -> type[T]:
    """Return the class that a group of the config names.

    Raises:
        UserError: if the class cannot be imported, or is not a subclass of ``kind``.
    """
    with user_errors(group):
        cls: Any = get_class(cfg[group]._target_)
    if not issubclass(cls, kind):
        raise UserError(f"{group}._target_={cfg[group]._target_} is not a {kind.__name__}; name a subclass of it")
    return cls  # type: ignore[no-any-return]


def arguments_of(cls: type) -> set[str]:
    """Return the names of the arguments of a model; a SupervisedModule passes those of training to its base class."""
    named = {*inspect.signature(cls).parameters}
    return named | {*TRAINING, "metric", "schema"} if issubclass(cls, SupervisedModule) else named


def without_unread(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the config with the loss, optimizer and scheduler that the model gets; a group it does not take is empty.

    Raises:
        UserError: if an override changes a group that the model does not take.
    """
    cls, text = class_of(cfg, "model", LightningModule), OmegaConf.to_yaml(cfg)
    node: Any = OmegaConf.to_container(cfg.model)  # the YAML file of the model may set some of them
    fixed = {group: node[group] for group in TRAINING if group in node and not str(node[group]).startswith("${")}
    taken = arguments_of(cls) - fixed.keys()
    unread = [group for group in TRAINING if group not in taken and not re.search(rf"\$\{{{group}\b", text)]
    for override in overrides:
        if override.lstrip("+~").startswith(tuple(unread)):
            group = re.split("[.=]", override.lstrip("+~"))[0]
            raise UserError(f"{override}: {cls.__name__} takes no {group}, so this changes nothing; leave it out")
    cfg = cfg.copy()
    for group in unread:
        cfg[group] = fixed[group] if isinstance(fixed.get(group), dict) else {}
    return cfg


def build_data(cfg: DictConfig) -> LightningDataModule:
    """Build the data, and load them if they are `LinearData`; the loss tells whether y holds class labels."""
    class_of(cfg, "data", LightningDataModule)
    supervised, loss = class_of(cfg, "model", LightningModule), as_dict(cfg)["loss"]
    with data_errors():
        data: LightningDataModule = instantiate(cfg.data, _convert_="all")
    if not isinstance(data, LinearData):
        return data
    with user_errors("loss"):
        classification = bool(loss) and issubclass(get_class(loss["_target_"]), nn.CrossEntropyLoss)
    with data_errors():
        data.classification, data.dtype = classification, torch.float64 if is_double(cfg) else torch.float32
        data.by_part = issubclass(supervised, SupervisedModule)
        data.prepare_data()
        data.setup("fit")
    loss_name, kind = str(loss.get("_target_")).rpartition(".")[2], type(data).__name__
    if classification and not data.schema.labels:
        raise UserError(
            f"loss: {loss_name} needs class labels, but {kind} has numbers in {', '.join(data.schema.y)}; "
            "choose loss=mse, or data=toy_classes, or a table with a column of labels"
        )
    if data.schema.labels and loss and not classification:
        raise UserError(
            f"loss: {loss_name} needs numbers, but {kind} has class labels ({names(data.schema.labels)}); "
            "choose loss=cross_entropy"
        )
    return data


def with_measured_metric(cfg: DictConfig, data: LightningDataModule) -> DictConfig:
    """Return the config, with the metric of train in place of that of val if there is no val part."""
    without_val = isinstance(data, LinearData) and data.by_part and "val" not in data.parts
    if without_val and str(cfg.metric).startswith("val/"):
        cfg = OmegaConf.merge(cfg, {"metric": str(cfg.metric).replace("val/", "train/")})  # type: ignore[assignment]
        data.notes.append(f"there is no val part, so {cfg.metric} decides which weights are best")  # type: ignore[attr-defined]
    return cfg


def check_metric(cfg: DictConfig, data: LinearData, model: SupervisedModule) -> None:
    """Refuse a metric that is not measured in training, and a mode that would select its worst value."""
    parts = [part for part in data.parts if part != "test"]
    modes = {"loss": "min"} | ({"accuracy": "max"} if data.classification else {}) | dict.fromkeys(model.metrics)
    measured = {f"{part}/{name}": mode for name, mode in modes.items() for part in parts}
    hooks = ("validation_step", "on_validation_epoch_end")  # a subclass may log others in these
    if cfg.metric is None or any(getattr(type(model), hook) is not getattr(SupervisedModule, hook) for hook in hooks):
        return
    if cfg.metric not in measured:
        raise UserError(
            f"metric={cfg.metric} is not measured in training; choose one of {', '.join(measured)}, as in "
            f"metric={next(iter(measured))}"
        )
    if (mode := measured[cfg.metric]) and cfg.get("mode", "min") != mode:
        raise UserError(f"mode={cfg.get('mode', 'min')} would select the worst {cfg.metric}; choose mode={mode}")


def build_model(cfg: DictConfig, data: LightningDataModule) -> LightningModule:
    """Build the model; its sizes come from the data, and its initial weights from the seed.

    Its constructor gets the arguments that it names, unless the YAML file sets them: loss, optimizer and scheduler as
    dicts, or as partial functions if they have ``_partial_: true``.
    """
    plain, cls = as_dict(cfg), class_of(cfg, "model", LightningModule)
    node = plain["model"]
    specs = {name: node.pop(name, plain[name]) or None for name in TRAINING}
    import_targets(specs)
    partial = [name for name, spec in specs.items() if isinstance(spec, dict) and spec.get("_partial_")]
    given: dict[str, Any] = specs | {name: instantiate(specs[name]) for name in partial} | {"metric": cfg.metric}
    if isinstance(data, LinearData):
        given |= {"in_features": data.in_features, "out_features": data.out_features, "schema": asdict(data.schema)}
    given = {name: value for name, value in given.items() if name in arguments_of(cls)}
    parameters = inspect.signature(cls).parameters
    for name in ("in_features", "out_features"):
        wanted = name in parameters and parameters[name].default is inspect.Parameter.empty
        if wanted and name not in {*given, *node}:
            raise UserError(
                f"model: {cls.__name__} needs {name}, which {type(data).__name__} does not define; set it, as in "
                f"+model.{name}=4"
            )
    if twice := [name for name in given if name in node]:
        raise UserError(f"model.{twice[0]}={node[twice[0]]}: the run sets it; leave it out")
    seed_all(cfg.seed)
    # in float64 from the start, so that no initial value is rounded to float32
    with user_errors("model"), DoublePrecision().module_init_context() if is_double(cfg) else nullcontext():
        # in two steps, since Hydra would resolve a ${...} in the name of a column
        model: LightningModule = instantiate(node, _partial_=True, _convert_="all")(**given)
    if isinstance(data, LinearData) and is_overridden("train_dataloader", model):
        raise UserError(
            f"model: {cls.__name__} defines a train_dataloader, which data={type(data).__name__} would replace; "
            "move it into a LightningDataModule and choose that as data"
        )
    if not isinstance(model, SupervisedModule):
        return model
    # some losses, optimizers and schedulers check their values only when they are used
    if isinstance(data, LinearData):
        check_metric(cfg, data, model)
        x, y = data.parts["train"]
        with user_errors("loss", specs["loss"]):
            model.loss(torch.zeros(1, data.out_features, dtype=x.dtype), y[:1])
    with user_errors("optimizer", specs["optimizer"], specs["scheduler"]):
        optimizers: Any = model.configure_optimizers()
    scheduler = optimizers["lr_scheduler"]["scheduler"] if isinstance(optimizers, dict) else None
    check_length(cfg, data, getattr(scheduler, "total_steps", None))
    return model


def import_targets(specs: dict[str, Any]) -> None:
    """Import the classes of loss, optimizer and scheduler, since the model builds only imported classes."""
    for name in TRAINING:
        if isinstance(specs[name], dict):
            with user_errors(name):
                get_class(specs[name]["_target_"])


def build_reference(cfg: DictConfig, data: LightningDataModule, model: LightningModule) -> Reference:
    """Compute the optimum and the largest stable rate, in the first process only."""
    wanted = cfg.get("optimum", True) and not getattr(rank_zero_only, "rank", None)
    if not (wanted and isinstance(data, LinearData) and isinstance(model, SupervisedModule)):
        return Reference()
    optimizer, schema = model.fresh_optimizer(), data.schema
    result = reference(model.network, model.loss, optimizer, *data.raw["train"], schema.x_units, schema.y_units)
    # with clipping, no largest stable rate is known
    return result if cfg.trainer.gradient_clip_val is None else result._replace(stable_lr=None)


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks of the config, and the timer of ``trainer.max_time``, which Lightning would put last."""
    callbacks, key = [], "check_on_train_epoch_end"
    for name, spec in cfg.callbacks.items():
        if not spec:
            continue
        early = OmegaConf.is_dict(spec) and str(spec.get("_target_")).endswith(".EarlyStopping")
        # by default it may need its metric at the end of an epoch; if that epoch was validated before the run was
        # interrupted, the resumed run has no metric there
        given = {key: False} if early and spec.get(key) is None else {}
        with user_errors("callbacks"):
            callbacks.append(instantiate(spec, **given))
        if not isinstance(callbacks[-1], Callback):
            raise UserError(f"callbacks.{name}={spec} is not a callback; see conf/callbacks for examples")
    with user_errors("trainer"):  # as text, since Timer fails with a number
        return [*callbacks, *([Timer(str(cfg.trainer.max_time))] if cfg.trainer.get("max_time") else [])]


def build_trainer(cfg: DictConfig, folder: Path, loggers: Sequence[Logger], callbacks: Sequence[Callback]) -> Trainer:
    """Build the trainer; Lightning puts checkpoint callbacks after all others."""
    parameters = inspect.signature(Trainer).parameters
    given = {key: parameter.default for key, parameter in parameters.items() if cfg.trainer.get(key, ...) is None}
    given.pop("check_val_every_n_epoch", None)  # null means that validations count batches across epochs
    given |= {"default_root_dir": str(folder), "callbacks": list(callbacks), "logger": list(loggers) or False}
    with user_errors("trainer"):
        trainer: Trainer = instantiate(cfg.trainer, **given | {"max_time": None})  # a callback does this
    return trainer
