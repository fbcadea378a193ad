"""Config -> data, model, reference, trainer; and what of it is refused."""

import inspect
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import DoublePrecision
from omegaconf import DictConfig, OmegaConf
from torch import nn

from linear_lab import UserError
from linear_lab.config import as_dict
from linear_lab.data import LinearData
from linear_lab.fitting.checks import check_length, data_errors, user_errors
from linear_lab.models import SupervisedModule
from linear_lab.terminal.layout import names
from linear_lab.theory.reference import Reference, reference

logging.getLogger("lightning").handlers.clear()  # its own handler puts tips on the terminal; train.log has all messages

EVERY = "check_val_every_n_epoch"  # of which null is no default: validations then count batches across epochs


def build(cfg: DictConfig) -> tuple[LinearData, SupervisedModule]:
    """Build data and model; ``model.metric`` is the metric that decides which weights are best."""
    data = build_data(cfg)
    return data, build_model(with_measured_metric(cfg, data), data)


def is_double(cfg: DictConfig) -> bool:
    """Tell whether a run computes in float64."""
    return str(cfg.trainer.precision) in ("64", "64-true")


def build_data(cfg: DictConfig) -> LinearData:
    """Build the data, and load them; whether they are class labels follows from the loss."""
    loss = as_dict(cfg)["loss"]
    with user_errors("loss"):
        classification = issubclass(get_class(loss["_target_"]), nn.CrossEntropyLoss)
    with data_errors():
        data: LinearData = instantiate(cfg.data, _convert_="all")
        if not isinstance(data, LinearData):
            raise UserError(f"data._target_={cfg.data.get('_target_')}: derive it from linear_lab.data.LinearData")
        data.classification, data.dtype = classification, torch.float64 if is_double(cfg) else torch.float32
        data.prepare_data()
        data.setup("fit")
    loss_name, kind = loss["_target_"].rpartition(".")[2], type(data).__name__
    if classification and not data.schema.labels:
        raise UserError(
            f"loss: {loss_name} wants class labels, but {kind} has numbers in {', '.join(data.schema.y)}; "
            "choose loss=mse, or data=toy_classes, or a table with a column of labels"
        )
    if data.schema.labels and not classification:
        raise UserError(
            f"loss: {loss_name} wants numbers, but {kind} has class labels ({names(data.schema.labels)}); "
            "choose loss=cross_entropy"
        )
    return data


def with_measured_metric(cfg: DictConfig, data: LinearData) -> DictConfig:
    """Return the config with a metric that these data measure: train's where there is no val part.

    Raises:
        UserError: naming the metrics that there are.
    """
    parts = [part for part in data.parts if part != "test"]
    if "val" not in parts and str(cfg.metric).startswith("val/"):
        cfg = OmegaConf.merge(cfg, {"metric": str(cfg.metric).replace("val/", "train/")})  # type: ignore[assignment]
        data.notes.append(f"no val part, so {cfg.metric} decides which weights are best")
    measured = {f"{part}/loss": "min" for part in parts}
    if data.classification:
        measured |= {f"{part}/accuracy": "max" for part in parts}
    mode = cfg.get("mode", "min")
    if cfg.metric not in measured:
        raise UserError(
            f"metric={cfg.metric}: while training these data measure {', '.join(measured)}; "
            f"choose metric={next(iter(measured))}"
        )
    if mode != measured[cfg.metric]:
        raise UserError(f"mode={mode}: of {cfg.metric} choose mode={measured[cfg.metric]}")
    return cfg


def build_model(cfg: DictConfig, data: LinearData) -> SupervisedModule:
    """Build the model; it takes its features from the data, and its start from the seed."""
    plain = as_dict(cfg)
    specs = {name: plain[name] or None for name in ("loss", "optimizer", "scheduler")}
    import_targets(specs)
    torch.manual_seed(cfg.seed)
    # created in float64, so that none of its numbers was ever rounded to float32
    with user_errors("model"), DoublePrecision().module_init_context() if is_double(cfg) else nullcontext():
        # in two steps: Hydra would resolve a ${...} in the name of a column
        model: SupervisedModule = instantiate(cfg.model, _partial_=True, _recursive_=False, _convert_="all")(
            in_features=data.in_features,
            out_features=data.out_features,
            metric=cfg.metric,
            schema=asdict(data.schema),
            **specs,
        )
    x, y = data.parts["train"]
    with user_errors("loss", specs["loss"]):
        model.loss(torch.zeros(1, data.out_features, dtype=x.dtype), y[:1])  # some losses refuse their numbers only now
    with user_errors("optimizer", specs["optimizer"], specs["scheduler"]):
        optimizers: Any = model.configure_optimizers()
    scheduler = optimizers["lr_scheduler"]["scheduler"] if isinstance(optimizers, dict) else None
    check_length(cfg, data, getattr(scheduler, "total_steps", None))
    return model


def import_targets(specs: dict[str, Any]) -> None:
    """Import the classes of loss, optimizer and scheduler: the module builds only classes that are imported."""
    for name in ("loss", "optimizer", "scheduler"):
        if specs[name]:
            with user_errors(name):
                get_class(specs[name]["_target_"])


def build_reference(cfg: DictConfig, data: LinearData, model: SupervisedModule) -> Reference:
    """Compute what the run is compared with, in the first process alone."""
    if not cfg.get("optimum", True) or getattr(rank_zero_only, "rank", None):
        return Reference()
    optimizers: Any = model.configure_optimizers()
    optimizer = optimizers["optimizer"] if isinstance(optimizers, dict) else optimizers
    schema = data.schema
    result = reference(model.network, model.loss, optimizer, *data.raw["train"], schema.x_units, schema.y_units)
    # no largest stable rate is known under clipping
    return result if cfg.trainer.gradient_clip_val is None else result._replace(stable_lr=None)


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the config's callbacks, and the timer of ``trainer.max_time``, which Lightning would add behind ours."""
    with user_errors("callbacks"):
        callbacks = {name: instantiate(spec, **at_validation(spec)) for name, spec in cfg.callbacks.items() if spec}
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.{name}={cfg.callbacks[name]}: is no callback; see conf/callbacks for some")
    with user_errors("trainer"):  # as text, since Timer chokes on a number
        return [*callbacks.values(), *([Timer(str(cfg.trainer.max_time))] if cfg.trainer.get("max_time") else [])]


def at_validation(spec: Any) -> dict[str, bool]:
    """Have early stopping look for its metric after a validation.

    By default it may do so at the end of an epoch, also of one that was validated before the run was interrupted, and
    then there is no metric.
    """
    key = "check_on_train_epoch_end"
    early = OmegaConf.is_dict(spec) and str(spec.get("_target_")).endswith(".EarlyStopping")
    return {key: False} if early and spec.get(key) is None else {}


def build_trainer(cfg: DictConfig, folder: Path, loggers: Sequence[Logger], callbacks: Sequence[Callback]) -> Trainer:
    """Build the trainer; Lightning moves checkpoint callbacks behind all others."""
    parameters = {key: value for key, value in inspect.signature(Trainer).parameters.items() if key != EVERY}
    with user_errors("trainer"):
        own = {key: value.default for key, value in parameters.items() if cfg.trainer.get(key, ...) is None}
        given = {
            "default_root_dir": str(folder),
            "callbacks": list(callbacks),
            "logger": list(loggers) or False,
            "max_time": None,
        }
        trainer: Trainer = instantiate(cfg.trainer, **own | given)
    return trainer
