"""Writes the checkpoints of a run atomically, and reads them."""

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
    """Writes checkpoints atomically, which Lightning's own class does not: a kill can leave its file truncated."""

    checked = False  # whether this process has checked that its checkpoints can be loaded

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        content = io.BytesIO()
        # modules and other objects among the hyperparameters are left out: a resumed run builds them from its config
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
                f"the module's checkpoint cannot be saved and loaded: {first_line(error)}; let its buffers, its "
                "on_save_checkpoint and its callbacks' state_dict hold tensors, numbers, strings, lists and dicts only"
            ) from error
        with suppress(FileNotFoundError):  # the run folder was deleted; `replace` reports it
            Path(path).parent.mkdir(exist_ok=True)
        # no fsync: it takes half of the time of a run that validates after each step
        atomic.replace(Path(path), content.getbuffer(), sync=False)


def is_plain(value: Any) -> bool:
    """Return whether a value consists of tensors, numbers, strings, lists and dicts only."""
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


class SaveCheckpoints(callbacks.Checkpoint):
    """Saves ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt`` after each validation.

    Only a run on `LinearData` can be resumed within an epoch. With other data, checkpoints are saved at the end of each
    epoch with a validation; without validation data, at the end of every ``check_val_every_n_epoch``-th epoch.

    It replaces Lightning's ModelCheckpoint, which forgets the best score if the run folder is moved before a resume.

    Args:
        monitor: the metric that decides which weights are best; None saves last.ckpt only.
        mode: ``min`` if a lower metric is better, ``max`` if a higher one is.

    Raises:
        ValueError: for another mode.
    """

    def __init__(self, monitor: str | None, mode: str = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode}")
        self.monitor, self.mode = monitor, mode
        self.best: Tensor | None = None
        self.step = 0  # the step of the last checkpoint
        self.due = False  # whether to save a checkpoint at the end of the epoch
        self.plateaus: dict[int, float] = {}  # by index of a ReduceLROnPlateau, the metric that a resume passes to it

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
                # Lightning steps ReduceLROnPlateau after this hook, and skips that step when the run is resumed
                value = trainer.callback_metrics.get(str(config.monitor)) if config.reduce_on_plateau else None
                if value is not None and not (trainer.current_epoch + 1) % config.frequency:
                    self.plateaus[number] = value.item()
            self.save(trainer)
            self.plateaus = {}

    def save(self, trainer: Trainer) -> None:
        """Save last.ckpt, and also best.ckpt if the metric is the best so far."""
        self.due, step, folder = False, trainer.global_step, Path(trainer.default_root_dir)
        if trainer.fast_dev_run or step == self.step:  # type: ignore[attr-defined]
            return
        self.step = step
        for logger in trainer.loggers:
            logger.save()  # after a kill, the curves then reach as far as the checkpoint
        is_best = self.is_best(trainer)
        trainer.save_checkpoint(folder / (BEST if is_best else LAST), weights_only=False)
        if is_best and (folder / BEST).is_dir():  # a sharded checkpoint, as some strategies write
            trainer.save_checkpoint(folder / LAST, weights_only=False)
        elif is_best:  # copying is faster than saving again; best.ckpt comes first, so it is never behind last.ckpt
            if trainer.is_global_zero:
                atomic.replace(folder / LAST, (folder / BEST).read_bytes(), sync=False)
            trainer.strategy.barrier()

    def is_best(self, trainer: Trainer) -> bool:
        """Return whether the monitored metric is the best so far, and if so, remember it."""
        if self.monitor is None:
            return False
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            raise UserError(not_measured(self.monitor, trainer.callback_metrics))
        better = self.best is None or bool(value < self.best if self.mode == "min" else value > self.best)
        better = better and not value.isnan().item()
        better = trainer.strategy.reduce_boolean_decision(better)  # either all processes save, or none does
        if better:
            self.best = value.clone()
        return better

    def state_dict(self) -> dict[str, Any]:
        measured = {} if self.best is None else {str(self.monitor): self.best.item()}
        return {"best": self.best, "measured": measured, "plateaus": self.plateaus}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.plateaus = state_dict["best"], state_dict.get("plateaus", {})
        if not isinstance(self.best, Tensor | None):
            raise ValueError(f"the best {self.monitor} in the checkpoint is not a number; delete the checkpoints")


def not_measured(metric: str, measured: Iterable[str]) -> str:
    """Return the error message for a metric that is not measured, which lists the metrics that are."""
    names = ", ".join(name for name in measured if name != "step")
    remedy = f"choose one of {names}" if names else f"no metric was; log it by self.log('{metric}', value)"
    return f"metric={metric}: it was not measured in the first validation or epoch; {remedy}, or set metric=null"


def goes_on_within_epochs(trainer: Trainer) -> bool:
    """Return whether the run can be resumed within an epoch, which `LinearData` alone supports."""
    return isinstance(getattr(trainer, "datamodule", None), LinearData)


CHECKPOINT_TYPES = {  # the entries of Lightning's checkpoints that are read here
    "global_step": int, "pytorch-lightning_version": str, "state_dict": dict, "hyper_parameters": dict, "loops": dict,
    "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


def load_weights(model: LightningModule, path: str) -> None:
    """Load the weights of a checkpoint; raise UserError if it is not one, or is that of another model."""
    try:
        if not Path(path).is_file():
            raise ValueError("it is not a regular file" if Path(path).exists() else "the file does not exist")
        content = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict) or "state_dict" not in content:
            raise ValueError("it has no state_dict")
        saved = {name: (*values.shape,) for name, values in content["state_dict"].items()}
    except Exception as error:  # torch.load of a damaged file can raise any exception
        remedy = "give a file such as outputs/runs/<id>/checkpoints/best.ckpt"
        why = first_line(error) if isinstance(error, ValueError) else "it does not hold only tensors and numbers"
        raise UserError(f"ckpt_path={path}: it is not a checkpoint ({why}); {remedy}") from error
    expected = {name: (*values.shape,) for name, values in model.state_dict().items()}
    if wrong := min((name for name, _ in expected.items() ^ saved.items()), default=None):
        shapes = f"{wrong} is {saved.get(wrong, 'missing')} there, and {expected.get(wrong, 'missing')} in this model"
        raise UserError(f"ckpt_path={path}: it holds another model ({shapes}); choose the model and data of that run")
    model.load_state_dict(content["state_dict"])


class NoCheckpointError(UserError):
    """A run has checkpoints, but none of them can be read."""


def readable_checkpoint(run: Run, which: str) -> tuple[Path | None, dict[str, Any]]:
    """Return path and content of a run's checkpoint, or of its other one if it cannot be read; (None, {}) without any.

    Raises:
        NoCheckpointError: if there are checkpoints, but none can be read.
        UserError: if a newer version of Lightning wrote the checkpoint.
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
            wrong = [key for key, kind in CHECKPOINT_TYPES.items() if not isinstance(checkpoint[key], kind)]
            if wrong or {*map(type, checkpoint["state_dict"].values())} != {Tensor}:
                raise ValueError(f"wrong type of {', '.join(wrong) or 'state_dict'}")
            compat.epochs_begun(checkpoint)
            step, made_by = checkpoint["global_step"], checkpoint["pytorch-lightning_version"]
            newer = release(made_by) > release(version("lightning"))
        except Exception as error:  # torch.load of a damaged file can raise any exception
            ours = isinstance(error, (OSError, ValueError))  # PyTorch's own text would advise to load any pickle
            unreadable.append(f"{path} ({first_line(error) if ours else 'it is damaged, or not a checkpoint'})")
            continue
        if newer:
            raise UserError(f"{path}: a newer lightning, {made_by}, wrote it; update lightning")
        if unreadable:
            log.warning("cannot read %s; taking %s instead (step %d)", unreadable[0], path, step)
        return path, checkpoint
    if unreadable:
        raise NoCheckpointError(f"cannot read {', '.join(unreadable)}; delete the checkpoints to train from the start")
    return None, {}
