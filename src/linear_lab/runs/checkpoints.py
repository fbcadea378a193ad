"""Checkpoints of a run: written atomically, and read again."""

import io
import logging
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from linear_lab import UserError, compat
from linear_lab.runs import atomic
from linear_lab.runs.folder import BEST, LAST, Run, release
from linear_lab.text import first_line

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint atomically; Lightning's own goes through the system's temporary folder and may be cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with suppress(FileNotFoundError):  # the run folder has been deleted, which `replace` says
            Path(path).parent.mkdir(exist_ok=True)
        # fsync would take half of the time of a run that validates after each step
        atomic.replace(Path(path), content.getbuffer(), sync=False)


class SaveCheckpoints(callbacks.Checkpoint):
    """Keeps ``checkpoints/best.ckpt`` and ``checkpoints/last.ckpt``, taken after validations.

    Lightning's ModelCheckpoint forgets the best score when the run folder was moved before the run is resumed.

    Args:
        monitor: the metric that decides which weights are best.
        mode: ``min`` or ``max``: whether a lower or a higher metric is better.

    Raises:
        ValueError: for another mode.
    """

    def __init__(self, monitor: str, mode: str = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode}")
        self.monitor, self.mode = monitor, mode
        self.best: Tensor | None = None
        self.step = 0  # of the last checkpoint

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, folder = trainer.global_step, Path(trainer.default_root_dir)
        dry = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or dry or step == self.step:
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
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            measured = ", ".join(name for name in trainer.callback_metrics if name != "step")
            raise ValueError(f"{self.monitor} is not measured; choose one of {measured}")
        better = self.best is None or bool(value < self.best if self.mode == "min" else value > self.best)
        if trainer.world_size > 1:  # all processes save, or none
            better = trainer.strategy.reduce_boolean_decision(better)
        if better:
            self.best = value.clone()
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        if not isinstance(self.best, Tensor | None):
            raise ValueError(f"the best {self.monitor} of the checkpoint is no number; delete the checkpoints")


CONTENT = {  # what Lightning writes, as far as it is read here
    "global_step": int, "pytorch-lightning_version": str, "state_dict": dict, "hyper_parameters": dict, "loops": dict,
    "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


def load_weights(model: LightningModule, path: str) -> None:
    """Give a model the weights of a checkpoint; raise UserError for another model's, and for no checkpoint."""
    try:
        if not Path(path).is_file():
            raise ValueError("there is no such file")
        content = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict) or "state_dict" not in content:
            raise ValueError("it has no state_dict")
        saved = {name: (*values.shape,) for name, values in content["state_dict"].items()}
    except Exception as error:  # a damaged file raises anything
        remedy = "name one such as outputs/runs/<id>/checkpoints/best.ckpt"
        raise UserError(f"ckpt_path={path}: is no checkpoint ({first_line(error)}); {remedy}") from error
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
