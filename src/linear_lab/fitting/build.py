"""Config -> data, model, trainer."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import DoublePrecision
from omegaconf import DictConfig, OmegaConf
from torch import nn

from linear_lab import UserError
from linear_lab.data import LinearData
from linear_lab.fitting.callbacks import MeasureLastStep, StopOnSignal
from linear_lab.fitting.checks import data_errors, user_errors
from linear_lab.models import SupervisedModule
from linear_lab.terminal.layout import names

logging.getLogger("lightning").handlers.clear()  # its own handler puts tips on the terminal; train.log has all messages


def build(cfg: DictConfig) -> tuple[LinearData, SupervisedModule]:
    """Build data and model; the model takes its features from the data, and its start from the seed.

    Where the data have no val part, ``cfg.metric`` becomes the train part's.
    """
    double = str(cfg.trainer.precision) in ("64", "64-true")
    loss = as_dict(cfg)["loss"]
    with user_errors("loss"):
        classification = issubclass(get_class(loss["_target_"]), nn.CrossEntropyLoss)
    with data_errors():
        data: LinearData = instantiate(cfg.data, _convert_="all")
        if not isinstance(data, LinearData):
            raise UserError(f"data._target_={cfg.data.get('_target_')}: derive it from linear_lab.data.LinearData")
        data.classification, data.dtype = classification, torch.float64 if double else torch.float32
        data.prepare_data()
        data.setup("fit")
    check_loss(cfg, data, classification=classification)
    check_metric(cfg, data, classification=classification)
    plain = as_dict(cfg)
    specs = {name: plain[name] or None for name in ("loss", "optimizer", "scheduler")}
    import_targets(specs)
    torch.manual_seed(cfg.seed)
    # born in float64, so that no number of it was ever rounded to float32
    with user_errors("model"), DoublePrecision().module_init_context() if double else nullcontext():
        model: SupervisedModule = instantiate(
            cfg.model,
            in_features=data.in_features,
            out_features=data.out_features,
            metric=cfg.metric,
            schema=asdict(data.schema),
            **specs,
            _recursive_=False,
            _convert_="all",
        )
    x, y = data.parts["train"]
    with user_errors("loss", specs["loss"]):
        model.loss(torch.zeros(1, data.out_features, dtype=x.dtype), y[:1])  # says now what it refuses
    with user_errors("optimizer", specs["optimizer"], specs["scheduler"]):
        model.configure_optimizers()  # likewise
    return data, model


def import_targets(specs: dict[str, Any]) -> None:
    """Import the loss, the optimizer, and the scheduler: the module itself builds only what is imported.

    Raises:
        UserError: naming what is not there.
    """
    for name in ("loss", "optimizer", "scheduler"):
        if specs[name]:
            with user_errors(name):
                get_class(specs[name]["_target_"])


def check_loss(cfg: DictConfig, data: LinearData, *, classification: bool) -> None:
    """Refuse numbers for cross-entropy, and class labels for a loss of numbers.

    Raises:
        UserError: naming the loss and the data.
    """
    loss, kind = cfg.loss._target_.rpartition(".")[2], type(data).__name__
    if classification and not data.schema.labels:
        raise UserError(
            f"loss: {loss} wants class labels, but {kind} has numbers in {', '.join(data.schema.y)}; "
            "choose loss=mse, or data=toy_classes, or a table with a column of labels"
        )
    if data.schema.labels and not classification:
        raise UserError(
            f"loss: {loss} wants numbers, but {kind} has class labels ({names(data.schema.labels)}); "
            "choose loss=cross_entropy"
        )


def check_metric(cfg: DictConfig, data: LinearData, *, classification: bool) -> None:
    """Let train stand in for val where there is no val part, and refuse a metric that is not measured.

    Raises:
        UserError: naming the metrics that there are.
    """
    parts = [part for part in data.parts if part != "test"]
    if "val" not in parts and str(cfg.metric).startswith("val/"):
        cfg.metric = str(cfg.metric).replace("val/", "train/")
        data.notes.append(f"no val part, so {cfg.metric} decides which weights are best")
    known = {f"{part}/{name}": mode for name, mode in (("loss", "min"), ("accuracy", "max")) for part in parts}
    known = {name: mode for name, mode in known.items() if mode == "min" or classification}
    mode = cfg.get("mode", "min")
    if cfg.metric not in known:
        raise UserError(
            f"metric={cfg.metric}: while training these data measure {', '.join(known)}; "
            f"choose metric={next(iter(known))}"
        )
    if mode != known[cfg.metric]:
        raise UserError(f"mode={mode}: of {cfg.metric} choose mode={known[cfg.metric]}")


def build_trainer(cfg: DictConfig, folder: Path, callbacks: list[Callback], purge_step: int | None) -> Trainer:
    """Build the trainer with the config's callbacks and logger, and ours."""
    with user_errors("callbacks"):
        callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback] + callbacks
    with user_errors("logger"):
        logger = instantiate(cfg.logger, save_dir=str(folder), purge_step=purge_step) if cfg.logger else False
    with user_errors("trainer"):
        trainer: Trainer = instantiate(cfg.trainer, default_root_dir=str(folder), callbacks=callbacks, logger=logger)
    # What ends the training (Lightning's timer comes after our callbacks) must have said so before the last step is
    # measured, and that before a signal is heeded.
    late = {MeasureLastStep: 1, StopOnSignal: 2}
    trainer.callbacks.sort(key=lambda callback: late.get(type(callback), 0))  # type: ignore[attr-defined]
    return trainer


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers, with its interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@contextmanager
def restored_process(folder: str | Path, threads: int | None = None) -> Iterator[None]:
    """Leave the process as it was, so that the next job of a sweep equals the same job alone.

    Within, ``sys.argv`` is the command that joins this run: DDP starts its other processes with it.

    Args:
        folder: the run's.
        threads: of the CPU, on whose number sums and factorizations depend in the last bits; None leaves them.
    """
    arguments, environment = sys.argv, dict(os.environ)
    rng_state, threads_before = torch.get_rng_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    sys.argv = [sys.argv[0], f"resume={Path(folder).resolve()}"]
    try:
        if threads:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(threads_before)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        sys.argv = arguments
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        for name, value in environment.items():  # only what changed: another thread may read the environment meanwhile
            if os.environ.get(name) != value:
                os.environ[name] = value
        torch.set_rng_state(rng_state)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
