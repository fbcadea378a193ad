"""Config -> data, model, reference, trainer; and what of it is refused."""

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

for name in ("lightning", "lightning.pytorch", "lightning.fabric"):  # handlers that put tips on the terminal
    logging.getLogger(name).handlers.clear()
    logging.getLogger(name).propagate = True  # train.log has all messages

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
    """Return the class that a group names.

    Raises:
        UserError: if it cannot be imported, or is none of that kind.
    """
    with user_errors(group):
        cls: Any = get_class(cfg[group]._target_)
    if not issubclass(cls, kind):
        raise UserError(f"{group}._target_={cfg[group]._target_}: is no {kind.__name__}; name a class derived from it")
    return cls  # type: ignore[no-any-return]


def arguments_of(cls: type) -> set[str]:
    """Name what a class takes of what a run has for a model; a SupervisedModule hands all that trains on."""
    named = {*inspect.signature(cls).parameters}
    return named | {*TRAINING, "metric", "schema"} if issubclass(cls, SupervisedModule) else named


def without_unread(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the config with loss, optimizer and scheduler as the model gets them; empty where it takes none.

    Raises:
        UserError: if one of them was typed.
    """
    cls, text = class_of(cfg, "model", LightningModule), OmegaConf.to_yaml(cfg)
    own: Any = OmegaConf.to_container(cfg.model)  # its YAML file may say which
    own = {group: own[group] for group in TRAINING if group in own and not str(own[group]).startswith("${")}
    taken = arguments_of(cls) - own.keys()
    unread = [group for group in TRAINING if group not in taken and not re.search(rf"\$\{{{group}\b", text)]
    for override in overrides:
        if override.lstrip("+~").startswith(tuple(unread)):
            group = re.split("[.=]", override.lstrip("+~"))[0]
            raise UserError(f"{override}: {cls.__name__} takes no {group}, so it changes nothing; leave it out")
    cfg = cfg.copy()
    for group in unread:
        cfg[group] = own[group] if isinstance(own.get(group), dict) else {}
    return cfg


def build_data(cfg: DictConfig) -> LightningDataModule:
    """Build the data, and load those of `LinearData`; whether they are class labels follows from the loss."""
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
            f"loss: {loss_name} wants class labels, but {kind} has numbers in {', '.join(data.schema.y)}; "
            "choose loss=mse, or data=toy_classes, or a table with a column of labels"
        )
    if data.schema.labels and loss and not classification:
        raise UserError(
            f"loss: {loss_name} wants numbers, but {kind} has class labels ({names(data.schema.labels)}); "
            "choose loss=cross_entropy"
        )
    return data


def with_measured_metric(cfg: DictConfig, data: LightningDataModule) -> DictConfig:
    """Return the config with train's metric in place of val's, where there is no val part."""
    without_val = isinstance(data, LinearData) and data.by_part and "val" not in data.parts
    if without_val and str(cfg.metric).startswith("val/"):
        cfg = OmegaConf.merge(cfg, {"metric": str(cfg.metric).replace("val/", "train/")})  # type: ignore[assignment]
        data.notes.append(f"no val part, so {cfg.metric} decides which weights are best")  # type: ignore[attr-defined]
    return cfg


def check_metric(cfg: DictConfig, data: LinearData, model: SupervisedModule) -> None:
    """Refuse a metric that is not measured while training, or for its worst value, and name those that there are."""
    parts = [part for part in data.parts if part != "test"]
    modes = {"loss": "min"} | ({"accuracy": "max"} if data.classification else {}) | dict.fromkeys(model.metrics)
    measured = {f"{part}/{name}": mode for name, mode in modes.items() for part in parts}
    hooks = ("validation_step", "on_validation_epoch_end")  # in which a class of one's own may log others
    if cfg.metric is None or any(getattr(type(model), hook) is not getattr(SupervisedModule, hook) for hook in hooks):
        return
    if cfg.metric not in measured:
        raise UserError(
            f"metric={cfg.metric}: while training these data measure {', '.join(measured)}; "
            f"choose metric={next(iter(measured))}"
        )
    if (mode := measured[cfg.metric]) and cfg.get("mode", "min") != mode:
        raise UserError(f"mode={cfg.get('mode', 'min')}: of {cfg.metric} choose mode={mode}")


def build_model(cfg: DictConfig, data: LightningDataModule) -> LightningModule:
    """Build the model; it takes its features from the data, and its start from the seed.

    It gets what its constructor names, or its YAML file gives: loss, optimizer and scheduler as dicts, or as
    partials if they have ``_partial_: true``.
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
                f"model: {cls.__name__} wants {name}, which data of {type(data).__name__} do not say; give it, as in "
                f"+model.{name}=4"
            )
    if twice := [name for name in given if name in node]:
        raise UserError(f"model.{twice[0]}={node[twice[0]]}: the data say it; leave it out")
    seed_all(cfg.seed)
    # created in float64, so that none of its numbers was ever rounded to float32
    with user_errors("model"), DoublePrecision().module_init_context() if is_double(cfg) else nullcontext():
        # in two steps: Hydra would resolve a ${...} in the name of a column
        model: LightningModule = instantiate(node, _partial_=True, _convert_="all")(**given)
    if isinstance(data, LinearData) and is_overridden("train_dataloader", model):
        raise UserError(
            f"model: {cls.__name__} has a train_dataloader of its own, which data={type(data).__name__} would take the "
            "place of; put it into a LightningDataModule and name that as data"
        )
    if not isinstance(model, SupervisedModule):
        return model
    # a loss, an optimizer or a scheduler may refuse its values only when it is used
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
    """Import the classes of loss, optimizer and scheduler: the module builds only classes that are imported."""
    for name in TRAINING:
        if isinstance(specs[name], dict):
            with user_errors(name):
                get_class(specs[name]["_target_"])


def build_reference(cfg: DictConfig, data: LightningDataModule, model: LightningModule) -> Reference:
    """Compute what the run is compared with, in the first process alone."""
    wanted = cfg.get("optimum", True) and not getattr(rank_zero_only, "rank", None)
    if not (wanted and isinstance(data, LinearData) and isinstance(model, SupervisedModule)):
        return Reference()
    optimizer, schema = model.fresh_optimizer(), data.schema
    result = reference(model.network, model.loss, optimizer, *data.raw["train"], schema.x_units, schema.y_units)
    # no largest stable rate is known under clipping
    return result if cfg.trainer.gradient_clip_val is None else result._replace(stable_lr=None)


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the config's callbacks, and the timer of ``trainer.max_time``, which Lightning would add behind ours."""
    callbacks, key = [], "check_on_train_epoch_end"
    for name, spec in cfg.callbacks.items():
        if not spec:
            continue
        early = OmegaConf.is_dict(spec) and str(spec.get("_target_")).endswith(".EarlyStopping")
        # by default it may look for its metric at the end of an epoch, also of one that was validated before the run
        # was interrupted, and then there is none
        given = {key: False} if early and spec.get(key) is None else {}
        with user_errors("callbacks"):
            callbacks.append(instantiate(spec, **given))
        if not isinstance(callbacks[-1], Callback):
            raise UserError(f"callbacks.{name}={spec}: is no callback; see conf/callbacks for some")
    with user_errors("trainer"):  # as text, since Timer chokes on a number
        return [*callbacks, *([Timer(str(cfg.trainer.max_time))] if cfg.trainer.get("max_time") else [])]


def build_trainer(cfg: DictConfig, folder: Path, loggers: Sequence[Logger], callbacks: Sequence[Callback]) -> Trainer:
    """Build the trainer; Lightning moves checkpoint callbacks behind all others."""
    parameters = inspect.signature(Trainer).parameters
    given = {key: parameter.default for key, parameter in parameters.items() if cfg.trainer.get(key, ...) is None}
    given.pop("check_val_every_n_epoch", None)  # its null has a meaning: validations count batches across epochs
    given |= {"default_root_dir": str(folder), "callbacks": list(callbacks), "logger": list(loggers) or False}
    with user_errors("trainer"):
        trainer: Trainer = instantiate(cfg.trainer, **given | {"max_time": None})  # a callback keeps the time
    return trainer
