"""What a run refuses before anything is built, and how errors of its parts name the config."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from linear_lab import UserError, compat
from linear_lab.data import LinearData
from linear_lab.terminal.report import describe

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, MisconfigurationException)
CHANGED_ON_RESUME = ("resume", "trainer.", "callbacks.", "console.")  # keys that a resumed run may change
GROUPS = ("data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks", "logger")
WHOLE_NUMBERS = (  # key, lowest, highest, example
    ("seed", 0, 2**32 - 1, 0),
    ("console.steps", 0, 2**31, 2),
    ("threads", 1, 2**15, 1),
    ("trainer.max_epochs", -1, 2**31, 500),
    ("trainer.max_steps", -1, 2**31, 1000),
    ("trainer.check_val_every_n_epoch", 1, 2**31, 10),
    ("trainer.accumulate_grad_batches", 1, 2**31, 1),
    ("scheduler.step_size", 1, 2**31, 100),
    ("scheduler.T_max", 1, 2**31, 100),
)


class DataError(UserError):
    """The data cannot be used, whatever is trained on them."""


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Refuse a config that cannot work, before anything is built.

    Raises:
        UserError: naming the key, its value, and what to write instead.
    """
    missing = [name for name in GROUPS if name not in cfg]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing; a run needs each of {', '.join(GROUPS)}")
    for key, low, high, example in WHOLE_NUMBERS:
        value = OmegaConf.select(cfg, key)
        if value is None and key != "seed":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{key} must be a whole number from {low} to {high}, got {value}; try {key}={example}")
    lr = cfg.optimizer.get("lr", 1.0)  # some optimizers have none
    if not isinstance(lr, (int, float)) or isinstance(lr, bool) or not 0 < lr < math.inf:
        raise UserError(f"optimizer: lr must be a positive number, got {lr}; try optimizer.lr=0.01")
    if not isinstance(cfg.get("optimum", True), bool):
        raise UserError(f"optimum must be true or false, got {cfg.optimum}")
    fixed = [item for item in overrides if cfg.resume and not item.lstrip("+~").startswith(CHANGED_ON_RESUME)]
    if fixed:
        raise UserError(
            f"resume={cfg.resume}: the run goes on as it began, so {', '.join(fixed)} cannot change; "
            "trainer, callbacks and console can, as in trainer.max_epochs=1000; start a new run for the rest"
        )
    check_accelerator(cfg)


def check_accelerator(cfg: DictConfig) -> None:
    """Refuse a GPU that is not there."""
    if cfg.trainer.accelerator in ("gpu", "cuda") and not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    ):
        raise UserError("trainer.accelerator=gpu: PyTorch finds no GPU on this machine; run with trainer=cpu")


def check_resume(cfg: DictConfig, data: LinearData, path: Path | None, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint beyond ``max_epochs`` or ``max_steps``, as a dry run, or with other data."""
    if path is None:
        return
    if cfg.trainer.fast_dev_run:
        raise UserError(f"trainer.fast_dev_run={cfg.trainer.fast_dev_run}: is for new runs; leave it out to go on")
    reached = {"epoch": compat.epochs_begun(checkpoint), "step": checkpoint["global_step"]}
    for unit, count in reached.items():
        limit = cfg.trainer[f"max_{unit}s"]
        if limit not in (None, -1) and count > limit:
            raise UserError(f"trainer.max_{unit}s={limit}: {path} is from {unit} {count} already; give a larger one")
    check_same_data(cfg, data, checkpoint)


def check_length(cfg: DictConfig, total: int | None) -> None:
    """Refuse a schedule that ends before training does, as OneCycleLR's after its ``total_steps`` epochs."""
    epochs, steps = cfg.trainer.max_epochs, cfg.trainer.max_steps
    if total and steps in (None, -1) and (epochs == -1 or (epochs or 1000) > total):
        raise UserError(
            f"scheduler: its total_steps, {total}, end before trainer.max_epochs={epochs}, one per epoch; "
            f"try trainer.max_epochs={total}, or a new run with another scheduler"
        )


def check_monitors(cfg: DictConfig, initial: dict[str, Any]) -> None:
    """Refuse checkpoints and early stopping by a metric that the initial validation did not measure."""
    measured = [name for name in initial if "/" in name]
    for name, spec in cfg.callbacks.items():
        at_validation = spec and str(spec.get("_target_")).endswith((".SaveCheckpoints", ".EarlyStopping"))
        if at_validation and measured and spec.monitor not in initial and spec.get("strict", True):
            key = f"callbacks.{name}.monitor"
            names = ", ".join(measured)
            raise UserError(f"{key}={spec.monitor}: is not measured; choose one of {names}, as in {key}={measured[-1]}")


def check_same_data(cfg: DictConfig, data: LinearData, checkpoint: dict[str, Any]) -> None:
    """Refuse other data than those that a checkpoint was trained on."""
    fingerprint = checkpoint.get(type(data).__qualname__)
    if fingerprint is not None and fingerprint != data.state_dict():
        raise UserError(
            f"data: {cfg.data.get('path') or type(data).__name__} has changed since the run was trained; "
            "put the old data back, or train anew"
        )


@contextmanager
def user_errors(group: str, *specs: dict[str, Any] | None) -> Iterator[None]:
    """Turn what a library refuses into a UserError that names the config group and values; defects pass unchanged."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, *CONFIG_ERRORS) as error:
        cause: BaseException = error
        while isinstance(cause, HydraException) and cause.__cause__:  # Hydra wraps the first error
            cause = cause.__cause__
        if isinstance(cause, (NameError, AttributeError, LookupError, AssertionError, NotImplementedError)):
            raise cause from None
        values = ", ".join(describe(spec) for spec in specs if spec)
        raise UserError(f"{group}: {cause}{f' (in {values})' if values else ''}") from error


@contextmanager
def data_errors() -> Iterator[None]:
    """As `user_errors`, with DataError for what the data refuse."""
    try:
        with user_errors("data"):
            yield
    except UserError as error:
        raise DataError(str(error)) from error
