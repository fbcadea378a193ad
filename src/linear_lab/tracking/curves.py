"""Curves of any run: HPARAMS row, config, learning rate and speed, in addition to what its module logs."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from torch.optim import Optimizer

from linear_lab import compat
from linear_lab.models import SupervisedModule
from linear_lab.runs.fingerprints import decides, leaves
from linear_lab.tracking import hparams
from linear_lab.tracking.summary import Summary
from linear_lab.tracking.tensorboard import RunLogger


class Curves(Callback):
    """Logs, after each validation, the numbers of a run that its module does not log itself.

    Scalars go to all loggers. TensorBoard gets an HPARAMS row and the config as text, other loggers get the config as
    hyperparameters. ``config`` consists of plain containers with unresolved interpolations. `StopOnDivergence`, which
    runs before this callback, updates ``summary``.
    """

    state: tuple[str, ...] = ("logged", "lr")  # attributes that checkpoints save

    def __init__(self, loggers: Sequence[Logger], config: dict[str, Any], summary: Summary) -> None:
        self.loggers, self.config, self.summary = loggers, config, summary
        self.logger = next((logger for logger in loggers if isinstance(logger, RunLogger)), None)  # for TensorBoard
        self.logged = -1  # the last step whose numbers were logged
        self.due = False  # whether to log at the end of the epoch
        self.caught_up = False  # whether `finish` logged the last numbers, since no validation did
        self.lr: float | None = None  # of the last step
        self.training_since: tuple[int, float] | None = None  # step and time of the first batch after a validation
        self.speed: float | None = None  # steps per second between the last two validations

    def begin(self) -> None:
        """Log what does not change during training."""
        self.describe(0)
        resolved: Any = OmegaConf.to_container(OmegaConf.create(self.config), resolve=True)
        for logger in self.loggers:
            logger.log_hyperparams({".".join(keys): value for keys, value in leaves(resolved) if decides(keys, value)})

    def describe(self, step: int) -> None:
        """Write the hyperparameters of the run's row, and log the config; a resumed run may have changed both."""
        columns = self.hyperparameters()
        if self.logger is None:
            return
        hparams.write_start(Path(self.logger.root_dir), columns)
        yaml = OmegaConf.to_yaml(OmegaConf.create(self.config), resolve=True)
        self.logger.log_text("config", f"```yaml\n{yaml}```", step)

    def hyperparameters(self) -> dict[str, hparams.Cell]:
        return hparams.hyperparameters(self.config)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, now = trainer.global_step, time.perf_counter()
        first, started = self.training_since or (step, now)
        self.speed = (step - first) / (now - started) if step > first else None
        self.training_since = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_step(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.due = trainer.state.fn == "fit"  # Lightning computes means over an epoch at its end
        if not self.due:
            self.log_measured(trainer)

    def log_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of steps, which Lightning takes as the x axis; its default is one step behind."""
        if not isinstance(pl_module, SupervisedModule):
            pl_module.log("step", float(trainer.global_step), sync_dist=True)

    def log_measured(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if value.numel() == 1}
            self.log_scalars(trainer.global_step, metrics)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.training_since = self.training_since or (trainer.global_step, time.perf_counter())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.lr = optimizer.param_groups[0].get("lr")  # here, since after the step a scheduler may change it

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_step(trainer, pl_module)
        if compat.is_measured_without_validation(trainer):
            self.on_validation_start(trainer, pl_module)
            self.due = True
        if self.due:
            self.due = False
            self.log_measured(trainer)

    def finish(self, step: int, metrics: dict[str, float]) -> None:
        """Log the numbers of the final model if no validation has logged them, as in a run that diverged."""
        self.caught_up = step != self.logged
        if self.caught_up:
            self.log_scalars(step, metrics)

    def log_scalars(self, step: int, metrics: dict[str, float]) -> None:
        self.logged = step
        numbers = {"optim/lr": self.lr, "time/steps_per_second": self.speed, **self.row(step, metrics)}
        for logger in self.loggers:
            logger.log_metrics({name: number for name, number in numbers.items() if number is not None}, step)

    def row(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Return the numbers of the HPARAMS row, by tag."""
        summary, metric, small_at = self.summary, str(self.summary.metric), int(self.summary.small_at)
        value, train_loss = metrics.get(metric), metrics.get("train/loss_epoch", metrics.get("train/loss"))
        # the initial model has no checkpoint, so it counts as the best one only until there is a checkpoint
        best = summary.best if summary.best_step >= 0 else summary.first.get(metric, value)
        steps_above = None if train_loss is None else step if small_at < 0 else small_at
        return hparams.metrics(metric, train_loss, None, value, None if best is None else float(best), steps_above)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in self.state})
