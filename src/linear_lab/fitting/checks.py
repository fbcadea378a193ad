"""Checks of a config, before anything is built, and errors of libraries that name the config."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from linear_lab import UserError, compat
from linear_lab.config import BUILT, GROUPS
from linear_lab.data import LinearData
from linear_lab.models import SupervisedModule
from linear_lab.terminal.report import describe
from linear_lab.text import first_line

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, MisconfigurationException)
CHANGED_ON_RESUME = ("resume", "trust", "trainer.", "callbacks.", "console.")  # keys that a resumed run may change
WHOLE_NUMBERS = (  # key, lowest, highest, example
    ("seed", 0, 2**32 - 1, 0),
    ("console.steps", 0, 2**31, 2),
    ("threads", 1, 2**15, 1),
    ("trainer.max_epochs", -1, 2**31, 500),
    ("trainer.max_steps", -1, 2**31, 1000),
    ("trainer.check_val_every_n_epoch", 1, 2**31, 10),
    ("trainer.accumulate_grad_batches", 1, 2**31, 1),
    ("trainer.num_sanity_val_steps", -1, 2**31, 0),
    ("trainer.log_every_n_steps", 0, 2**31, 1),
    ("scheduler.step_size", 1, 2**31, 100),
    ("scheduler.T_max", 1, 2**31, 100),
    ("scheduler.patience", 0, 2**31, 5),
    ("scheduler.cooldown", 0, 2**31, 0),
    ("callbacks.early_stopping.patience", 0, 2**31, 5),
)
AT_LEAST_0 = (0.0, math.inf, "[)", "a number of at least 0")
ANY = (-math.inf, math.inf, "()", "a number")
BELOW_1 = (0.0, 1.0, "[)", "a number from 0 to below 1")
NUMBERS = {  # key: lowest and highest value, which ends are allowed, the range in words, and an example
    "optimizer.lr": (0.0, math.inf, "()", "a positive number", 0.01),
    "optimizer.momentum": (*BELOW_1, 0.9),
    "optimizer.betas.0": (*BELOW_1, 0.9),
    "optimizer.betas.1": (*BELOW_1, 0.999),
    "optimizer.alpha": (0.0, 1.0, "[]", "a number from 0 to 1", 0.99),
    "optimizer.eps": (*AT_LEAST_0, 1e-8),
    "optimizer.weight_decay": (*AT_LEAST_0, 0.01),
    "optimizer.dampening": (*ANY, 0),
    "optimizer.tolerance_grad": (*AT_LEAST_0, 0),
    "optimizer.tolerance_change": (*AT_LEAST_0, 0),
    "scheduler.gamma": (0.0, math.inf, "()", "a positive number", 0.5),
    "scheduler.factor": (0.0, 1.0, "[]", "a number from 0 to 1", 0.5),
    "scheduler.eta_min": (*AT_LEAST_0, 0),
    "scheduler.min_lr": (*AT_LEAST_0, 0),
    "scheduler.threshold": (*ANY, 1e-4),
    "callbacks.early_stopping.min_delta": (*ANY, 0),
    "callbacks.early_stopping.stopping_threshold": (*ANY, 0.1),
    "callbacks.early_stopping.divergence_threshold": (*ANY, 100),
    "trainer.gradient_clip_val": (*AT_LEAST_0, 1),
}
# keys that may be null; for trainer it means Lightning's default
MAY_BE_NULL = ("threads", "trainer.", "callbacks.early_stopping.stopping", "callbacks.early_stopping.divergence")
MODES = {"loss": "min", "accuracy": "max"}  # whether the lowest or the highest value is best


class DataError(UserError):
    """The data cannot be used with any model."""


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Refuse a config that cannot work, before anything is built.

    Raises:
        UserError: if a value cannot work; the message names the key, its value, and what to write instead.
    """
    missing = [name for name in GROUPS if name not in cfg]
    missing += [f"{name}._target_" for name in BUILT if name in cfg and not (cfg[name] or {}).get("_target_")]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing from the config; a run needs {', '.join(GROUPS)}")
    for key, low, high, example in WHOLE_NUMBERS:
        value = OmegaConf.select(cfg, key, default=example if key != "seed" else None)
        if value is None and key.startswith(MAY_BE_NULL):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            words = f"a whole number from {low} to {high}"
            raise UserError(f"{key} must be {words}, got {shown(value)}; try {key}={example}")
    check_numbers(cfg)
    for key in ("optimum", "trainer.detect_anomaly"):
        value = OmegaConf.select(cfg, key, default=True)
        if not isinstance(value, bool) and (value is not None or key == "optimum"):
            raise UserError(f"{key} must be true or false, got {value}")
    fixed = [item for item in overrides if cfg.resume and not item.lstrip("+~").startswith(CHANGED_ON_RESUME)]
    if fixed:
        raise UserError(
            f"resume={cfg.resume}: a resumed run keeps its config, so {', '.join(fixed)} cannot change; "
            "trainer, callbacks and console can, as in trainer.max_epochs=1000; start a new run for the rest"
        )
    weight, bias = (cfg.model.get(key) for key in ("weight", "bias"))
    if cfg.get("ckpt_path") and (weight is not None or not isinstance(bias, bool | None)):
        raise UserError(f"model.weight={weight} model.bias={bias}: ckpt_path sets the weights; leave out either")
    check_accelerator(cfg)
    check_devices(cfg)


def check_numbers(cfg: DictConfig) -> None:
    """Refuse numbers that a class would ignore, or would fail with later."""
    betas = OmegaConf.select(cfg, "optimizer.betas", default=[0, 0])
    if not isinstance(betas, (list, ListConfig)) or len(betas) != 2:
        raise UserError(f"optimizer: betas must be two numbers, got {shown(betas)}; try optimizer.betas=[0.9,0.999]")
    for key, (low, high, ends, words, example) in NUMBERS.items():
        value = OmegaConf.select(cfg, key, default=example)
        if value is None and key.startswith(MAY_BE_NULL):
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not within(value, low, high, ends):
            group, _, name = key.partition(".")
            remedy = "optimizer.betas=[0.9,0.999]" if "betas" in key else f"{key}={example}"
            raise UserError(f"{group}: {name} must be {words}, got {shown(value)}; try {remedy}")
    if (value := cfg.trainer.get("limit_train_batches")) == 0:
        raise UserError(f"trainer.limit_train_batches={value} leaves nothing to train on; try trainer.max_epochs=0")
    batches_per_step, size = cfg.trainer.get("accumulate_grad_batches") or 1, cfg.data.get("batch_size")
    if str(cfg.optimizer.get("_target_")).endswith(".LBFGS") and batches_per_step > 1 and size:
        raise UserError(
            "optimizer: LBFGS evaluates the loss several times per step, so it cannot accumulate gradients of batches; "
            f"leave out trainer.accumulate_grad_batches={batches_per_step} or data.batch_size={size}"
        )


def shown(value: Any) -> str:
    """Return a value for a message, which tells strings from numbers."""
    return f"the text {value!r}" if isinstance(value, str) else str(value)


def within(value: Any, low: float, high: float, ends: str) -> Any:
    """Tell whether a number, or each of a tensor, lies in an interval; ``ends`` gives its brackets, such as ``[)``.

    >>> [within(value, 0, 1, "[)") for value in (0.0, 0.5, 1.0)]
    [True, True, False]
    """
    above = value >= low if ends[0] == "[" else value > low
    return above & (value <= high if ends[1] == "]" else value < high)


def check_accelerator(cfg: DictConfig) -> None:
    """Refuse a GPU if this machine has none."""
    typed = cfg.trainer.accelerator in ("gpu", "cuda")
    if typed and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise UserError("trainer.accelerator=gpu: PyTorch finds no GPU on this machine; run with trainer=cpu")


def check_devices(cfg: DictConfig) -> None:
    """Refuse more processes than GPUs: each process needs one of its own."""
    devices, accelerator = cfg.trainer.devices, cfg.trainer.accelerator
    if type(devices) is not int or accelerator not in ("gpu", "cuda", "auto") or not torch.cuda.is_available():
        return
    if devices > (count := torch.cuda.device_count()):
        raise UserError(
            f"trainer.devices={devices}: PyTorch finds {count} GPU{'s' * (count != 1)}, and each process needs one; "
            f"run with trainer.devices={count}, or on the CPU with trainer=ddp"
        )


def check_resume(
    cfg: DictConfig, data: LightningDataModule, model: Any, path: Path | None, checkpoint: dict[str, Any]
) -> None:
    """Refuse to resume beyond ``max_epochs`` or ``max_steps``, as a dry run, or with other data or another model."""
    if path is None:
        return
    if cfg.trainer.fast_dev_run:
        raise UserError(f"trainer.fast_dev_run={cfg.trainer.fast_dev_run} works for new runs only; leave it out")
    reached = {"epoch": compat.epochs_begun(checkpoint), "step": checkpoint["global_step"]}
    for unit, count in reached.items():
        limit = cfg.trainer[f"max_{unit}s"]
        if limit not in (None, -1) and count > limit:
            raise UserError(f"trainer.max_{unit}s={limit}: {path} has reached {unit} {count}; set a larger value")
    check_same(cfg, data, model, checkpoint)


def check_trained(trainer: Trainer, data: LightningDataModule) -> None:
    """Refuse data without a batch, for which Lightning trains nothing and raises no error."""
    if not trainer.num_training_batches and trainer.limit_train_batches and not trainer.global_step:
        raise UserError(f"data: the train_dataloader of {type(data).__name__} has no batch; add rows to it")


def check_length(cfg: DictConfig, data: LightningDataModule, total: int | None) -> None:
    """Refuse less than one batch, and a schedule that ends before training, such as OneCycleLR's."""
    epochs, steps, share = cfg.trainer.max_epochs, cfg.trainer.max_steps, cfg.trainer.overfit_batches
    if isinstance(data, LinearData) and isinstance(share, float) and share:
        loaders: Any = data.val_dataloader()
        fewest = min(map(len, [data.train_dataloader(), *(loaders.values() if data.by_part else loaders)]))
        if share * fewest < 1:
            raise UserError(
                f"trainer.overfit_batches={share} is less than one batch, as there are {fewest}; set a whole number, "
                "such as trainer.overfit_batches=1"
            )
    if total and steps in (None, -1) and (epochs == -1 or (epochs or 1000) > total):
        raise UserError(
            f"scheduler: total_steps={total} ends before trainer.max_epochs={epochs}, at one step per epoch; "
            f"try trainer.max_epochs={total}, or a new run with another scheduler"
        )


def check_monitors(cfg: DictConfig, initial: dict[str, Any], model: Any) -> None:
    """Refuse checkpoints and early stopping whose metric is not measured, or whose mode selects its worst value.

    The metric of a user's own module may be logged later, so only that of a SupervisedModule must be measured.
    """
    measured = [name for name in initial if "/" in name] if isinstance(model, SupervisedModule) else []
    for name, spec in cfg.callbacks.items():
        kind, key = str((spec or {}).get("_target_")).rpartition(".")[2], f"callbacks.{name}.monitor"
        if kind not in ("SaveCheckpoints", "EarlyStopping"):
            continue
        if spec.monitor is None:
            if kind == "SaveCheckpoints":  # it saves last.ckpt only
                continue
            raise UserError(f"{key}=null: early stopping needs a metric; name one")
        mode_key = "mode" if spec.monitor == cfg.metric else f"callbacks.{name}.mode"
        if measured and spec.monitor not in initial and spec.get("strict", True):
            names = ", ".join(measured)
            raise UserError(f"{key}={spec.monitor} is not measured; choose one of {names}, as in {key}={measured[-1]}")
        best, mode = MODES.get(str(spec.monitor).rpartition("/")[2]), spec.get("mode", "min")
        if best and mode != best:
            raise UserError(f"{mode_key}={mode} would select the worst {spec.monitor}; choose {mode_key}={best}")


def check_same(cfg: DictConfig, data: LightningDataModule, model: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse data that a checkpoint was not trained on, and weights of another model."""
    fingerprint = checkpoint.get(type(data).__qualname__)
    if isinstance(data, LinearData) and fingerprint is not None and fingerprint != data.state_dict():
        raise UserError(
            f"data: {cfg.data.get('path') or type(data).__name__} has changed since the run was trained; "
            "restore the old data, or train a new run"
        )
    ours, saved = ({k: v.shape for k, v in states.items()} for states in (model.state_dict(), checkpoint["state_dict"]))
    if ours != saved:
        raise UserError("the checkpoint holds weights of another model; delete the checkpoints to train from the start")


@contextmanager
def user_errors(group: str, *specs: dict[str, Any] | None) -> Iterator[None]:
    """Turn a library's error into a UserError that names the config group and values; defects pass unchanged."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, *CONFIG_ERRORS) as error:
        cause: BaseException = error
        while isinstance(cause, HydraException) and cause.__cause__:  # Hydra wraps the first error
            cause = cause.__cause__
        if isinstance(cause, (NameError, AttributeError, LookupError, AssertionError, NotImplementedError)):
            raise cause from None
        values = ", ".join(describe(spec) for spec in specs if spec)
        raise UserError(f"{group}: {first_line(cause)}{f' (in {values})' if values else ''}") from error


@contextmanager
def training_errors(trainer: Trainer) -> Iterator[None]:
    """Turn an error of Lightning into a UserError; other errors may be defects, and pass unchanged."""
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
    except RuntimeError as error:
        if trainer.optimizers:
            raise
        raise UserError(f"model: {first_line(error)}") from error  # such as two optimizers


@contextmanager
def data_errors() -> Iterator[None]:
    """Turn errors into a DataError like `user_errors`."""
    try:
        with user_errors("data"):
            yield
    except UserError as error:
        raise DataError(str(error)) from error
