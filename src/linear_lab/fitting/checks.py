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

from linear_lab import UserError
from linear_lab.data import LinearData
from linear_lab.terminal.report import describe

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, MisconfigurationException)
CHANGED_ON_RESUME = ("resume", "trust", "trainer.", "callbacks.", "console.")  # keys that a resumed run may change
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
    """Refuse to go on from a checkpoint beyond ``max_epochs``, or with other data."""
    limit = cfg.trainer.max_epochs
    if limit not in (None, -1) and checkpoint.get("epoch", 0) > limit:
        raise UserError(
            f"trainer.max_epochs={limit}: {path} is from epoch {checkpoint['epoch'] + 1} already; give a larger one"
        )
    check_same_data(cfg, data, checkpoint)


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
