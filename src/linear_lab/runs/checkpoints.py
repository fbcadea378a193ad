"""Checkpoints of a run: written atomically, and read again."""

import io
import logging
import pickle
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from linear_lab import UserError, compat
from linear_lab.data import LinearData
from linear_lab.runs import atomic
from linear_lab.runs.folder import BEST, LAST, Run, release
from linear_lab.text import first_line

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint atomically; Lightning's own goes through the system's temporary folder and may be cut."""

    checked = False  # whether a checkpoint of this process could be read again

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        content = io.BytesIO()
        # a module may keep parts of itself as hyperparameters; they are built from the config
        if "state_dict" in checkpoint:
            arguments = checkpoint.get("hyper_parameters", {})
            checkpoint["hyper_parameters"] = {key: value for key, value in arguments.items() if is_plain(value)}
        try:
            torch.save(checkpoint, content)
            if not self.checked:
                torch.load(io.BytesIO(content.getbuffer()), weights_only=True)
                self.checked = True
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise UserError(
                f"the module cannot be saved so that it can be read again: {first_line(error)}; let its buffers, "
                "on_save_checkpoint and the state_dict of its callbacks give tensors, numbers, texts, lists and dicts"
            ) from error
        with suppress(FileNotFoundError):  # the run folder has been deleted, which `replace` says
            Path(path).parent.mkdir(exist_ok=True)
        # fsync would take half of the time of a run that validates after each step
        atomic.replace(Path(path), content.getbuffer(), sync=False)


def is_plain(value: Any) -> bool:
    """Tell whether a value holds nothing but tensors, numbers, texts, lists and dicts."""
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


class SaveCheckpoints(callbacks.Checkpoint):
    """Keeps ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt``, taken after validations.

    With data that are no `LinearData`, which alone can go on within an epoch, they are taken at the end of the epoch;
    where there is nothing to validate on, of every ``check_val_every_n_epoch``-th one.

    Lightning's ModelCheckpoint forgets the best score when the run folder was moved before the run is resumed.

    Args:
        monitor: the metric that decides which weights are best; None keeps last.ckpt alone.
        mode: ``min`` or ``max``: whether a lower or a higher metric is better.

    Raises:
        ValueError: for another mode.
    """

    def __init__(self, monitor: str | None, mode: str = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode}")
        self.monitor, self.mode = monitor, mode
        self.best: Tensor | None = None
        self.step = 0  # of the last checkpoint
        self.due = False  # at the end of the epoch
        self.plateaus: dict[int, float] = {}  # what schedulers, by number, are to look at after this checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path and not goes_on_within_epochs(trainer):
            compat.begin_next_epoch(trainer)
            for number, value in self.plateaus.items():
                scheduler: Any = trainer.lr_scheduler_configs[number].scheduler
                scheduler.step(value)
        self.plateaus = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.due = True
            if goes_on_within_epochs(trainer):
                self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due or compat.is_measured_without_validation(trainer):
            for number, config in enumerate(trainer.lr_scheduler_configs):
                # Lightning has these look at their metric after this hook, and leaves it out when the run is resumed
                value = trainer.callback_metrics.get(str(config.monitor)) if config.reduce_on_plateau else None
                if value is not None and not (trainer.current_epoch + 1) % config.frequency:
                    self.plateaus[number] = value.item()
            self.save(trainer)
            self.plateaus = {}

    def save(self, trainer: Trainer) -> None:
        """Save last.ckpt, and best.ckpt if the metric is the best so far."""
        self.due, step, folder = False, trainer.global_step, Path(trainer.default_root_dir)
        if trainer.fast_dev_run or step == self.step:  # type: ignore[attr-defined]
            return
        self.step = step
        for logger in trainer.loggers:
            logger.save()  # so that the curves reach as far as the checkpoint after a kill
        is_best = self.is_best(trainer)
        trainer.save_checkpoint(folder / (BEST if is_best else LAST), weights_only=False)
        if is_best and (folder / BEST).is_dir():  # a strategy has cut the model into parts
            trainer.save_checkpoint(folder / LAST, weights_only=False)
        elif is_best:  # a copy, since to make a checkpoint takes longer; best.ckpt is never behind last.ckpt
            if trainer.is_global_zero:
                atomic.replace(folder / LAST, (folder / BEST).read_bytes(), sync=False)
            trainer.strategy.barrier()

    def is_best(self, trainer: Trainer) -> bool:
        """Tell whether the monitored metric is the best so far, and keep it."""
        if self.monitor is None:
            return False
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            raise UserError(not_measured(self.monitor, trainer.callback_metrics))
        better = self.best is None or bool(value < self.best if self.mode == "min" else value > self.best)
        better = better and not value.isnan().item()  # a metric may be no number for an epoch
        better = trainer.strategy.reduce_boolean_decision(better)  # all processes save, or none
        if better:
            self.best = value.clone()
        return better

    def state_dict(self) -> dict[str, Any]:
        measured = {} if self.best is None else {str(self.monitor): self.best.item()}
        return {"best": self.best, "measured": measured, "plateaus": self.plateaus}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.plateaus = state_dict["best"], state_dict.get("plateaus", {})
        if not isinstance(self.best, Tensor | None):
            raise ValueError(f"the best {self.monitor} of the checkpoint is no number; delete the checkpoints")


def not_measured(metric: str, measured: Iterable[str]) -> str:
    """Say that a metric is not measured, and what is."""
    names = ", ".join(name for name in measured if name != "step")
    remedy = f"choose one of {names}" if names else f"nor is another; log it, as in self.log('{metric}', value)"
    return f"metric={metric}: is not measured by the end of the first validation or epoch; {remedy}, or metric=null"


def goes_on_within_epochs(trainer: Trainer) -> bool:
    """Tell whether a checkpoint can be taken within an epoch: whether the data know where they were."""
    return isinstance(getattr(trainer, "datamodule", None), LinearData)


CONTENT = {  # what Lightning writes, as far as it is read here
    "global_step": int, "pytorch-lightning_version": str, "state_dict": dict, "hyper_parameters": dict, "loops": dict,
    "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


def load_weights(model: LightningModule, path: str) -> None:
    """Give a model the weights of a checkpoint; raise UserError for another model's, and for no checkpoint."""
    try:
        if not Path(path).is_file():
            raise ValueError("it is a folder" if Path(path).is_dir() else "there is no such file")
        content = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict) or "state_dict" not in content:
            raise ValueError("it has no state_dict")
        saved = {name: (*values.shape,) for name, values in content["state_dict"].items()}
    except Exception as error:  # a damaged file raises anything
        remedy = "name one such as outputs/runs/<id>/checkpoints/best.ckpt"
        why = first_line(error) if isinstance(error, ValueError) else "no file of tensors and numbers alone"
        raise UserError(f"ckpt_path={path}: is no checkpoint ({why}); {remedy}") from error
    own = {name: (*values.shape,) for name, values in model.state_dict().items()}
    if wrong := min((name for name, _ in own.items() ^ saved.items()), default=None):
        shapes = f"{wrong} is {saved.get(wrong, 'missing')} there, and {own.get(wrong, 'missing')} here"
        raise UserError(f"ckpt_path={path}: holds another model ({shapes}); choose model and data as it was trained")
    model.load_state_dict(content["state_dict"])


class LostError(UserError):
    """A run has checkpoints, of which none can be read."""


def readable_checkpoint(run: Run, which: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the path and content of a run's checkpoint, or of the other one if it cannot be read; None for none.

    Raises:
        LostError: if there are some, but none can be read.
        UserError: if a newer version of Lightning made them.
    """
    if which not in ("best", "last"):
        raise UserError(f"checkpoint={which}: choose checkpoint=best or checkpoint=last")
    unreadable = []
    for kind in (which, "last" if which == "best" else "best"):
        path = run.checkpoint(kind)
        if path is None:
            continue
        try:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
            wrong = [key for key, kind in CONTENT.items() if not isinstance(checkpoint[key], kind)]
            if wrong or {*map(type, checkpoint["state_dict"].values())} != {Tensor}:
                raise ValueError(f"{wrong or ['state_dict']} not as in a checkpoint")
            compat.epochs_begun(checkpoint)
            step, made_by = checkpoint["global_step"], checkpoint["pytorch-lightning_version"]
            newer = release(made_by) > release(version("lightning"))
        except Exception as error:  # a damaged file raises anything
            unreadable.append(f"{path} ({first_line(error)})")
            continue
        if newer:
            raise UserError(f"{path}: made by lightning {made_by}, newer than {version('lightning')}; update lightning")
        if unreadable:
            log.warning("cannot read %s; taking %s instead, of step %d", unreadable[0], path, step)
        return path, checkpoint
    if unreadable:
        raise LostError(f"cannot read {', '.join(unreadable)}; delete the checkpoints to train from the start")
    return None, {}
